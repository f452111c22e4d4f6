// SPDX-License-Identifier: GPL-2.0
//! The tables of a page.

use std::fmt::Write;

use crate::boot_report::data::{Data, Exits, Initcalls};
use crate::boot_report::page::html::{number, percent, time, Text};

/// Rows that are seen at once; the rest is there for who asks.
const SHOWN: usize = 12;
/// There are never more.
const ROWS_MAX: usize = 100;

/// A bar as long as `share` of a whole.
pub fn bar(class: &str, share: f64) -> String {
    let share = if share.is_finite() { share } else { 0.0 };
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
         <rect class=\"{}\" width=\"{:.2}\" height=\"8\"/></svg>",
        Text(class),
        100.0 * share.clamp(0.0, 1.0)
    )
}

/// A table of rows that are HTML already, of which the first are seen.
pub fn table(head: &[&str], rows: &[String]) -> String {
    let names = head.iter().map(|name| Text(name).to_string());
    let head = names.collect::<Vec<_>>().join("</th><th>");
    let rows = &rows[..rows.len().min(ROWS_MAX)];
    let part = |rows: &[String]| {
        let rows = rows.join("</tr>\n<tr>");
        format!(
            "<table><thead><tr><th>{head}</th></tr></thead><tbody>\n<tr>{rows}</tr>\n</tbody></table>\n"
        )
    };
    let (first, rest) = rows.split_at(rows.len().min(SHOWN));
    match rest.len() {
        0 => part(first),
        more => format!(
            "{}<details><summary>{more} more</summary>\n{}</details>\n",
            part(first),
            part(rest)
        ),
    }
}

/// Cells, of which the first is a name and the others are numbers.
pub fn cells(name: &str, numbers: &[String]) -> String {
    let mut row = format!("<td>{}</td>", Text(name));
    for number in numbers {
        let _ = write!(row, "<td class=\"n\">{}</td>", Text(number));
    }
    row
}

/// What each kind of exit has cost.
pub fn kinds(exits: &Exits) -> String {
    let longest = exits.kinds.iter().map(|kind| kind.total);
    let longest = longest.chain([exits.guest]).fold(0.0, f64::max);
    let mut rows = vec![
        cells(
            "the guest itself",
            &[
                "".into(),
                time(exits.guest),
                "".into(),
                "".into(),
                percent(exits.guest, exits.together()),
            ],
        ) + &format!("<td>{}</td>", bar("p0", exits.guest / longest)),
    ];
    for kind in &exits.kinds {
        let numbers = [
            number(kind.count),
            time(kind.total),
            time(kind.total / kind.count.max(1) as f64),
            time(kind.longest),
            percent(kind.total, exits.together()),
        ];
        let class = class(&kind.name);
        let bar = format!("<td>{}</td>", bar(&class, kind.total / longest));
        rows.push(cells(&kind.name, &numbers) + &bar);
    }
    let head = ["kind", "count", "time", "mean", "longest", "share", ""];
    table(&head, &rows)
}

/// The colour of a kind: that of the part that it belongs to.
fn class(kind: &str) -> String {
    let part = match kind {
        "page fault, filled" | "page fault, spurious" => 1,
        "hypercall halt" => 4,
        _ if kind.starts_with("page fault") => 2,
        _ if kind.starts_with("hypercall") => 3,
        "interrupt of the host" | "NMI" | "machine check" => 5,
        _ if kind.starts_with("in lg") => 7,
        _ if kind.starts_with("nothing") => 5,
        _ => 6,
    };
    format!("p{part}")
}

/// The initcalls that took longest.
pub fn initcalls(initcalls: &Initcalls) -> String {
    let longest = initcalls.slowest.first().map_or(0, |call| call.took);
    let rows: Vec<_> = initcalls
        .slowest
        .iter()
        .map(|call| {
            let returned = match call.returned {
                0 => String::new(),
                other => other.to_string(),
            };
            let took = time(call.took as f64 / 1e6);
            let share = call.took as f64 / longest.max(1) as f64;
            let bar = format!("<td>{}</td>", bar("kernel", share));
            cells(&call.name, &[took, returned]) + &bar
        })
        .collect();
    table(&["initcall", "took", "returned", ""], &rows)
}

/// The counters: all of them, if the run has them, or those of the record.
pub fn counters(data: &Data) -> String {
    let of_record = data.exits.as_ref().map(|exits| &exits.counters);
    let Some(all) = data.run.counters.as_ref().or(of_record) else {
        return String::new();
    };
    let rows = all.iter().take(ROWS_MAX).map(|(name, value)| {
        let recorded = of_record.and_then(|counters| counters.get(name));
        let recorded = recorded.map_or("–".into(), |value| number(*value));
        cells(name, &[number(*value), recorded])
    });
    let rows = rows.collect::<Vec<_>>().join("</tr>\n<tr>");
    format!(
        "<details><summary>All counters</summary>\n<table><thead><tr><th>counter</th><th>lg.ko</th><th>this record</th>\
         </tr></thead><tbody>\n<tr>{rows}</tr></tbody></table></details>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_report::exits::tests::small_record;

    #[test]
    fn long_tables_are_folded() {
        let rows = vec![cells("<b>", &["1".into()]); 1000];
        let html = table(&["name", "n"], &rows);
        assert_eq!(html.matches("<td>&lt;b&gt;</td>").count(), ROWS_MAX);
        assert!(html.contains("<summary>88 more</summary>"), "{html}");
        assert!(!table(&["name", "n"], &rows[..5]).contains("<summary>"));
    }

    #[test]
    fn kinds_have_colours_and_shares() {
        let html = kinds(&small_record().data().unwrap());
        assert!(html.contains("page fault, filled") && html.contains("class=\"p1\""));
        assert!(html.contains("hypercall console") && html.contains("class=\"p3\""));
        assert!(html.contains("50.0 %"), "{html}");
        assert!(!bar("p0", f64::NAN).contains("NaN"));
    }
}
