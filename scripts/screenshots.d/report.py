# SPDX-License-Identifier: GPL-2.0
"""What a browser has to show of the page of `lg run --report`."""

# In the page: what is wrong with it as it is laid out now.
LOOK = """(sections => {
    const wrong = [];
    for (const id of sections)
        if (!(document.getElementById(id)?.getBoundingClientRect().height > 60))
            wrong.push(`there is no section ${id}`);
    if (document.documentElement.scrollWidth > innerWidth)
        wrong.push(`it is ${document.documentElement.scrollWidth} wide, in a window of ${innerWidth}`);
    const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => {
        const linear = rgb(colour).slice(0, 3).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (rgb(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    // Each text can be told from what is behind it: WCAG 2.2, 1.4.3.
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const faint = new Set();
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.matches("script, title")) continue;
        const style = getComputedStyle(element);
        const ink = element.closest("svg") ? style.fill : style.color;
        const [one, other] = [light(ink), light(behind(element))].sort((a, b) => b - a);
        const contrast = (one + 0.05) / (other + 0.05);
        if (contrast < 4.5) faint.add(`${element.tagName} ${element.className} has a contrast of ${contrast.toFixed(1)}`);
    }
    wrong.push(...faint);
    // The texts of a chart are in it, and none lies on another.
    for (const chart of document.querySelectorAll("svg.chart")) {
        const name = chart.getAttribute("aria-label"), frame = chart.getBoundingClientRect();
        const boxes = [...chart.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
        for (const [text, box] of boxes)
            if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
                wrong.push(`${name}: '${text}' is not in the chart`);
        boxes.forEach(([text, box], index) => {
            for (const [other, below] of boxes.slice(index + 1))
                if (box.left < below.right - 1 && below.left < box.right - 1 &&
                    box.top < below.bottom - 3 && below.top < box.bottom - 3)
                    wrong.push(`${name}: '${text}' and '${other}' are on top of each other`);
        });
        const tips = [...chart.querySelectorAll(".tip, g")];
        if (!tips.length || !tips.every(tip => tip.querySelector("title")?.textContent))
            wrong.push(`${name}: it tells no numbers`);
    }
    if ([...document.scripts].some(script => script.type !== "application/json"))
        wrong.push("it has a program");
    return wrong;
})"""


def complaints(page, sections):
    """What is wrong with a report that has these sections, light and dark, wide and narrow."""
    for scheme in ("light", "dark"):
        for width in (1280, 720):
            page.size(width, 900, scheme)
            for what in page.value(f"{LOOK}({sections})"):
                yield f"{scheme}, {width} wide: {what}"
    if page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)":
        yield "it is as light in the dark"
    # What is folded away, unfolds.
    page.value("document.querySelectorAll('details:not([open]) > summary').forEach(summary => summary.click())")
    if not page.value("[...document.querySelectorAll('details')].every(all => all.lastElementChild.offsetHeight > 0)"):
        yield "something does not unfold"
    yield from page.complaints
    # The page itself is all that is asked for.
    yield from (f"it asks for {address}" for address in page.requests[1:])
