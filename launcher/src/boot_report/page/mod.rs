// SPDX-License-Identifier: GPL-2.0
//! The page: one file of HTML with its pictures and its data in it. It has no program and loads nothing, and says so
//! to the browser as well (Content-Security-Policy).

pub mod changes;
pub mod chart;
pub mod html;
pub mod tables;
pub mod waterfall;

use std::fmt::Write;

use nix::sys::signal::Signal;

use crate::boot_report::data::{Data, Exits, EXITS, PARTS, REGIONS};
use crate::boot_report::page::chart::{legend, Chart, Series};
use crate::boot_report::page::html::{json, number, percent, time, Text};
use crate::boot_report::page::waterfall::Lane;

/// Before the data, and after them.
pub const DATA_BEGINS: &str = "<script type=\"application/json\" id=\"lg-report\">";
/// See [`DATA_BEGINS`].
pub const DATA_ENDS: &str = "</script>";

const STYLE: &str = include_str!("style.css");

/// The page of `data`, beside that of `earlier`.
pub fn render(data: &Data, earlier: Option<&Data>) -> String {
    let kernel = data.run.kernel.as_deref().unwrap_or("nothing");
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>lg: {}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n",
        Text(kernel)
    );
    header(&mut page, data, earlier);
    section(&mut page, "ending", "How it ended", &ending(data));
    if let Some(earlier) = earlier {
        section(
            &mut page,
            "changes",
            "What changed",
            &changes::render(earlier, data),
        );
    }
    section(&mut page, "phases", "Phases", &phases(data));
    let pair: Vec<_> = [Some(data), earlier]
        .into_iter()
        .flatten()
        .filter_map(|data| data.exits.as_ref())
        .collect();
    if let Some(exits) = &data.exits {
        section(
            &mut page,
            "exits",
            "Exits over time",
            &exits_over_time(&pair),
        );
        section(
            &mut page,
            "time",
            "Whose time it was",
            &time_over_time(&pair),
        );
        section(
            &mut page,
            "kinds",
            "Where the time went",
            &tables::kinds(exits),
        );
        section(&mut page, "pages", "Pages touched", &pages(&pair));
    }
    section(
        &mut page,
        "initcalls",
        "The slowest initcalls",
        &initcalls(data),
    );
    section(&mut page, "counters", "Counters", &tables::counters(data));
    section(&mut page, "log", "The last lines of the log", &log(data));
    let _ = write!(
        page,
        "<footer>Written by <code>lg run --report</code>. This file is all there is: it holds its own data, for \
         <code>--report-since</code>, and asks nobody for anything.</footer>\n{DATA_BEGINS}{}{DATA_ENDS}\n\
         </body>\n</html>\n",
        json(data)
    );
    page
}

/// A section, unless it is empty.
fn section(page: &mut String, id: &str, title: &str, content: &str) {
    if !content.is_empty() {
        let _ = write!(
            page,
            "<section id=\"{id}\">\n<h2>{}</h2>\n{content}</section>\n",
            Text(title)
        );
    }
}

fn header(page: &mut String, data: &Data, earlier: Option<&Data>) {
    let run = &data.run;
    let command = match data.command.is_empty() {
        true => String::new(),
        false => format!("<code>{}</code>", Text(&shortened(&data.command.join(" ")))),
    };
    let class = if run.status == 0 { "good" } else { "bad" };
    let _ = write!(
        page,
        "<header>\n<h1>{} {command}</h1>\n<p class=\"sub\">{}</p>\n<p><span class=\"badge {class}\">{}</span> {}</p>\n",
        Text(run.kernel.as_deref().unwrap_or("no kernel")),
        Text(&shortened(data.kernel_version.as_deref().unwrap_or_default())),
        Text(&verdict(data)),
        Text(&shortened(run.message.as_deref().unwrap_or_default())),
    );
    page.push_str("<ul class=\"cards\">\n");
    for (name, value) in cards(data) {
        let before = earlier.and_then(|earlier| {
            let mut cards = cards(earlier).into_iter();
            cards.find_map(|(other, value)| (other == name).then_some(value))
        });
        let before = before.map(|value| format!("<i>before: {}</i>", Text(&value)));
        let _ = writeln!(
            page,
            "<li><b>{}</b><span>{}</span>{}</li>",
            Text(&value),
            Text(name),
            before.unwrap_or_default()
        );
    }
    page.push_str("</ul>\n</header>\n");
}

/// What a Guest's words may take of a page's head.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

fn verdict(data: &Data) -> String {
    let status = data.run.status;
    match data.run.reason.as_str() {
        "exited" => format!("ended with status {status}"),
        "restart" => "restarted, and so ended".into(),
        "panic" => "the guest's kernel panicked".into(),
        "killed" => "the guest was killed".into(),
        "left" => "ended by Ctrl-a x".into(),
        "timeout" => "the time was up".into(),
        "signal" => {
            let signal = Signal::try_from(i32::from(status) - 128);
            format!("lg got a signal: {}", signal.map_or("?", Signal::as_str))
        }
        "error" => "lg failed".into(),
        other => shortened(other),
    }
}

fn cards(data: &Data) -> Vec<(&'static str, String)> {
    let seconds = &data.run.seconds;
    let mut cards = vec![("in all", time(seconds.total))];
    cards.extend(
        seconds
            .setup
            .map(|at| ("to the first instruction", time(at))),
    );
    cards.extend(seconds.command.map(|at| ("to the command", time(at))));
    if let Some(exits) = &data.exits {
        let count = |name: &str| exits.counters.get(name).copied().unwrap_or(0);
        let outside = exits
            .kinds
            .iter()
            .filter(|kind| kind.name != "hypercall halt");
        let outside: f64 = outside.map(|kind| kind.total).sum();
        cards.push(("exits", number(count("entries"))));
        cards.push(("direct system calls", number(count("direct_syscalls"))));
        cards.push(("pages filled", number(count("pf_filled"))));
        cards.push((
            "of the time outside of the guest",
            percent(outside, exits.together()),
        ));
    }
    cards
}

fn ending(data: &Data) -> String {
    let run = &data.run;
    let parts = [&run.message, &run.why, &run.fix];
    let names = ["what", "why", "fix"];
    if data.run.status == 0 || parts.iter().all(|part| part.is_none()) {
        return String::new();
    }
    let mut html = format!("<p>{}.</p>\n<dl>\n", Text(&verdict(data)));
    for (name, part) in names.iter().zip(parts) {
        if let Some(part) = part {
            let _ = writeln!(html, "<dt>{name}</dt><dd>{}</dd>", Text(part));
        }
    }
    if let Some(code) = &run.code {
        let _ = writeln!(html, "<dt>code</dt><dd>{}</dd>", Text(code));
    }
    html + "</dl>\n"
}

fn phases(data: &Data) -> String {
    let lanes = [
        Lane {
            name: "lg",
            class: "lg",
            phases: &data.steps,
        },
        Lane {
            name: "the guest",
            class: "kernel",
            phases: &data.phases,
        },
    ];
    let mut html = waterfall::render(&lanes, data.run.seconds.total);
    if data.phases.is_empty() && data.exits.is_some() {
        html += "<p class=\"note\">The guest has said nothing of its phases: it is no Linux, or its log is silenced.</p>\n";
    }
    html
}

/// A chart over time for each report, with the same axes, the newest first. `values` makes its series of a bin.
fn over_time<const N: usize>(
    title: &str,
    pair: &[&Exits],
    names: [(&str, usize); N],
    unit: fn(f64) -> String,
    values: impl Fn(&Exits) -> Vec<[f64; N]>,
) -> String {
    let charts: Vec<_> = pair.iter().map(|exits| (exits, values(exits))).collect();
    let sums = charts.iter().flat_map(|(_, bins)| bins);
    let top = sums.map(|bin| bin.iter().sum()).fold(0.0, f64::max);
    let end = |exits: &Exits| exits.began + exits.total;
    let end = pair.iter().map(|exits| end(exits)).fold(0.0, f64::max);
    let mut html = String::new();
    for (index, (exits, bins)) in charts.iter().enumerate() {
        let series = names
            .iter()
            .enumerate()
            .map(|(part, (name, class))| Series {
                name,
                class: format!("p{class}"),
                values: bins.iter().map(|bin| bin[part]).collect(),
            });
        let chart = Chart {
            title,
            series: series.collect(),
            began: exits.began,
            width: exits.width,
            span: (0.0, end),
            top,
            unit,
        };
        if index > 0 {
            html += "<h3>before</h3>\n";
        }
        html += &chart.render();
    }
    html
}

fn exits_over_time(pair: &[&Exits]) -> String {
    let names: [_; EXITS] = std::array::from_fn(|part| (PARTS[part + 1], part + 1));
    let rate = |value: f64| format!("{}/s", number(value.max(0.0) as u64));
    let chart = over_time("exits over time", pair, names, rate, |exits| {
        let rates = exits.counts.iter();
        rates
            .map(|bin| bin.map(|count| f64::from(count) / exits.width))
            .collect()
    });
    let sum = |part: usize| -> u64 {
        let counts = pair[0].counts.iter();
        counts.map(|bin| u64::from(bin[part])).sum()
    };
    let classes: [_; EXITS] = std::array::from_fn(|part| format!("p{}", part + 1));
    let entries =
        (0..EXITS).map(|part| (PARTS[part + 1], classes[part].as_str(), number(sum(part))));
    let mut html = chart + &legend(entries);
    if pair[0].lost > 0 {
        let lost = number(pair[0].lost);
        let _ = writeln!(html, "<p class=\"note\">{lost} records were lost.</p>");
    }
    html
}

fn time_over_time(pair: &[&Exits]) -> String {
    let names: [_; PARTS.len()] = std::array::from_fn(|part| (PARTS[part], part));
    let share = |value: f64| format!("{:.0} %", 100.0 * value);
    let chart = over_time("whose time it was", pair, names, share, |exits| {
        // The last one is not over when the record ends.
        let last = exits.total - exits.width * (exits.time.len().max(1) - 1) as f64;
        let widths = (0..exits.time.len()).map(|index| match index + 1 == exits.time.len() {
            true => last.clamp(exits.width * 1e-9, exits.width),
            false => exits.width,
        });
        let bins = exits.time.iter().zip(widths);
        bins.map(|(bin, width)| bin.map(|time| (time / width).min(1.0)))
            .collect()
    });
    let sum = |part: usize| -> f64 { pair[0].time.iter().map(|bin| bin[part]).sum() };
    let classes: [_; PARTS.len()] = std::array::from_fn(|part| format!("p{part}"));
    let entries = (0..PARTS.len()).map(|part| {
        let share = percent(sum(part), pair[0].total);
        (PARTS[part], classes[part].as_str(), share)
    });
    let mut html = chart + &legend(entries);
    if pair[0].vcpus > 1 {
        let vcpus = pair[0].vcpus;
        let _ = writeln!(
            html,
            "<p class=\"note\">Of {vcpus} vCPUs, on the average.</p>"
        );
    }
    html
}

fn pages(pair: &[&Exits]) -> String {
    let names: [_; REGIONS.len()] = std::array::from_fn(|region| (REGIONS[region], 10 + region));
    let count = |value: f64| number(value.max(0.0) as u64);
    let chart = over_time("pages touched over time", pair, names, count, |exits| {
        let mut sums = [0.0; REGIONS.len()];
        let bins = exits.fills.iter();
        bins.map(|bin| {
            for (sum, fills) in sums.iter_mut().zip(bin) {
                *sum += f64::from(*fills);
            }
            sums
        })
        .collect()
    });
    let sum = |region: usize| -> u64 {
        let fills = pair[0].fills.iter();
        fills.map(|bin| u64::from(bin[region])).sum()
    };
    let classes: [_; REGIONS.len()] = std::array::from_fn(|region| format!("p{}", 10 + region));
    let entries = (0..REGIONS.len()).map(|region| {
        (
            REGIONS[region],
            classes[region].as_str(),
            number(sum(region)),
        )
    });
    format!(
        "{chart}{}<p class=\"note\">Each is a page fault that the shadow filled. What it fills ahead, unasked, is the \
         counter prefilled.</p>\n",
        legend(entries)
    )
}

fn initcalls(data: &Data) -> String {
    let calls = &data.initcalls;
    if calls.count == 0 {
        return String::new();
    }
    format!(
        "<p>{} initcalls took {} in all.</p>\n{}",
        number(calls.count),
        Text(&time(calls.total as f64 / 1e6)),
        tables::initcalls(calls)
    )
}

fn log(data: &Data) -> String {
    if data.log.is_empty() {
        return String::new();
    }
    let open = if data.run.status == 0 { "" } else { " open" };
    format!(
        "<details{open}><summary>{} lines</summary>\n<pre>{}</pre></details>\n",
        data.log.len(),
        Text(&data.log.join("\n"))
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use serde_json::Value;

    use super::*;
    use crate::boot_report::data::{Run, Seconds, VERSION};
    use crate::boot_report::exits::tests::small_record;
    use crate::boot_report::klog::tests::{reader, LOG};

    /// The data of a run of a second.
    pub(crate) fn data() -> Data {
        let reader = reader(&LOG, Instant::now());
        let counters = small_record().data().unwrap().counters;
        Data {
            version: VERSION,
            began: 1_800_000_000,
            run: Run {
                status: 255,
                reason: "panic".into(),
                message: Some("VFS: no root".into()),
                why: Some("because".into()),
                kernel: Some("/boot/vmlinux".into()),
                memory: Some(512 << 20),
                seconds: Seconds {
                    setup: Some(0.05),
                    command: Some(0.25),
                    total: 1.0,
                },
                counters: Some(counters),
                ..Run::default()
            },
            command: vec!["sh".into(), "-c".into(), "true".into()],
            kernel_version: reader.version().map(Into::into),
            steps: vec![crate::boot_report::data::Phase {
                name: "kernel read".into(),
                from: 0.0,
                to: 0.05,
            }],
            phases: reader.phases(0.05, Some(0.25), 1.0),
            initcalls: reader.initcalls(),
            exits: small_record().data(),
            log: vec!["one".into(), "two".into()],
        }
    }

    #[test]
    fn all_sections_are_there() {
        let page = render(&data(), Some(&data()));
        let ids = [
            "ending",
            "changes",
            "phases",
            "exits",
            "time",
            "kinds",
            "pages",
            "initcalls",
            "counters",
            "log",
        ];
        for id in ids {
            assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
        }
        assert!(page.contains("the guest&#39;s kernel panicked"), "{page}");
        assert!(page.contains("VFS: no root") && page.contains("core_one"));
        // Nothing comes from elsewhere, and nothing runs.
        for foreign in [
            "http://",
            "https://",
            "src=",
            "href=",
            "url(",
            "@import",
            "onload",
            "javascript",
        ] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<script").count(), 1);
    }

    #[test]
    fn a_run_that_never_began_has_a_page() {
        let page = render(&Data::default(), None);
        assert!(
            page.contains("no kernel") && !page.contains("id=\"exits\""),
            "{page}"
        );
        assert!(!page.contains("NaN"), "{page}");
    }

    /// Changes every text in it.
    fn poison(value: &mut Value, text: &str) {
        match value {
            Value::String(old) => *old = text.into(),
            Value::Array(values) => values.iter_mut().for_each(|value| poison(value, text)),
            Value::Object(fields) => fields.values_mut().for_each(|value| poison(value, text)),
            _ => {}
        }
    }

    #[test]
    fn no_text_gets_out_of_its_place() {
        let evil = "</pre></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>";
        let mut value = serde_json::to_value(data()).unwrap();
        poison(&mut value, evil);
        let evil: Data = serde_json::from_value(value).unwrap();
        for page in [
            render(&evil, None),
            render(&data(), Some(&evil)),
            render(&evil, Some(&data())),
        ] {
            assert_eq!(page.matches("<script").count(), 1);
            assert_eq!(page.matches("</script").count(), 1);
            assert!(!page.contains("<img") && !page.contains("\"'>"));
        }
    }

    #[test]
    fn a_page_has_its_bounds() {
        let mut large = data();
        let long = "x<".repeat(1 << 16);
        large.run.message = Some(long.clone());
        large.command = vec![long.clone(); 4];
        let plain = render(&data(), None).len();
        assert!(plain < 128 << 10, "{plain}");
        let shown = render(&large, None);
        let (shown, _) = shown.split_once(DATA_BEGINS).unwrap();
        // The message is shown once in whole: a panic's has 1 KiB.
        assert!(shown.len() < plain + 7 * long.len(), "{}", shown.len());
    }
}
