# SPDX-License-Identifier: GPL-2.0
"""Look at what lg makes for browsers, in one: reports, a trace, the book. See scripts/screenshots."""

import json
import pathlib
import sys

import perfetto
import report
from browser import Browser

TOP = pathlib.Path("/lg")
MADE = TOP / "build/pages"
PICTURES = TOP / "Documentation/pictures"
SECTIONS = ["phases", "exits", "time", "kinds", "pages", "initcalls", "counters", "log"]
REPORTS = {
    "boot.html": SECTIONS,
    "since.html": ["changes", *SECTIONS],
    "panic.html": ["ending", *SECTIONS],
}


def book(browser):
    """The book's first page, once its list of chapters is there."""
    page = browser.open(f"file://{TOP}/build/book/index.html", 1280, 800)
    page.wait("document.querySelectorAll('#sidebar a').length")
    return page


def of_the_book(page):
    """What is wrong with that page, and with the search."""
    page.value("document.getElementById('search-toggle').click()")
    page.value(
        "const bar = document.getElementById('searchbar'); bar.value = 'switcher';"
        " bar.dispatchEvent(new KeyboardEvent('keyup', {keyCode: 13})); null"
    )
    page.wait("document.querySelectorAll('#searchresults li').length > 3")
    yield from page.complaints
    yield from (f"it asks for {address}" for address in page.requests if not address.startswith("file:"))


def check(browser):
    """What is wrong with all of it."""
    for name, sections in REPORTS.items():
        page = browser.open(f"file://{MADE}/{name}", 1280, 900)
        yield from (f"{name}: {what}" for what in report.complaints(page, sections))
    trace = MADE / "trace.json"
    summary = json.loads((MADE / "summary.json").read_text(encoding="utf-8"))
    with perfetto.opened(browser, trace) as page:
        text = trace.read_text(encoding="utf-8")
        yield from (f"the trace: {what}" for what in perfetto.complaints(page, text, summary))
    yield from (f"the book: {what}" for what in of_the_book(book(browser)))


def take(browser):
    """Takes the pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, last in (("boot", "time"), ("since", "changes")):
        page = browser.open(f"file://{MADE}/{name}.html", 1060)
        # Down to the end of this section.
        page.size(1060, page.value(f"Math.ceil(document.getElementById('{last}').getBoundingClientRect().bottom) + 20"))
        page.picture(PICTURES / f"report-{name}.png")
    # Around the Guest's page fault that is near the end, in a program of its command.
    trace = MADE / "trace.json"
    slices = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    faults = [slice["ts"] for slice in slices if slice["name"] == "page fault, the guest's"]
    begin, end = (int(1000 * (faults[-20] + more)) for more in (-150, 350))
    with perfetto.opened(browser, trace, f"&visStart={begin}&visEnd={end}", width=1280, height=340) as page:
        # Until it has been still for a while.
        page.wait(
            "(window.still = app.trace.engine.numRequestsPending || raf.hasPendingRedraws ? 0 : (window.still ?? 0) + 1) > 30"
        )
        page.picture(PICTURES / "trace.png")
    book(browser).picture(PICTURES / "book.png")


def main():
    with Browser() as browser:
        if sys.argv[1:] != ["--check"]:
            take(browser)
            return 0
        wrong = 0
        for wrong, what in enumerate(check(browser), 1):
            print(what)
    if not wrong:
        print("three reports, a trace and the book are in a browser as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
