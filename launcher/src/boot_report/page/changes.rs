// SPDX-License-Identifier: GPL-2.0
//! What has changed since an earlier report: times, kinds of exits, initcalls.

use std::collections::BTreeMap;

use crate::boot_report::data::{Data, Phase};
use crate::boot_report::page::html::{number, time, Text};
use crate::boot_report::page::tables::{bar, table};

/// Less than that is not told as a difference.
const NOISE: f64 = 0.03;

/// The difference as a cell: more is worse.
fn difference(old: f64, new: f64, unit: fn(f64) -> String) -> String {
    let change = new - old;
    let sign = if change > 0.0 { "+" } else { "" };
    let share = change / old;
    let class = match share {
        share if share.is_nan() || share.abs() < NOISE => "same",
        share if share > 0.0 => "worse",
        _ => "better",
    };
    let share = match share {
        share if share.is_finite() => format!(" ({sign}{:.0} %)", 100.0 * share),
        _ => String::new(),
    };
    let text = format!("{sign}{}{share}", unit(change));
    format!("<td class=\"n {class}\">{}</td>", Text(&text))
}

/// A row: what was, what is, and the difference, with a bar for each. What one of the two lacks, is told.
fn row(
    name: &str,
    old: Option<f64>,
    new: Option<f64>,
    most: f64,
    unit: fn(f64) -> String,
) -> String {
    let cell = |value: Option<f64>| {
        let text = value.map_or("–".into(), unit);
        format!("<td class=\"n\">{}</td>", Text(&text))
    };
    let last = match (old, new) {
        (Some(old), Some(new)) => difference(old, new, unit),
        (None, Some(_)) => "<td class=\"n worse\">new</td>".into(),
        (Some(_), None) => "<td class=\"n better\">gone</td>".into(),
        (None, None) => "<td></td>".into(),
    };
    let bars = [("old", old), ("new", new)];
    let bars = bars.map(|(class, value)| bar(class, value.unwrap_or(0.0) / most));
    format!(
        "<td>{}</td>{}{}{last}<td class=\"pair\">{}</td>",
        Text(name),
        cell(old),
        cell(new),
        bars.concat()
    )
}

/// What two reports have by the same names.
type Pairs<'a> = Vec<(&'a str, Option<f64>, Option<f64>)>;

/// Rows for all of `pairs`.
fn rows(pairs: &Pairs<'_>, unit: fn(f64) -> String) -> Vec<String> {
    let values = pairs.iter().flat_map(|(_, old, new)| [*old, *new]);
    let most = values.flatten().fold(0.0, f64::max);
    let rows = pairs.iter();
    rows.map(|(name, old, new)| row(name, *old, *new, most, unit))
        .collect()
}

/// Those of `old` and `new` that differ most, in that order.
fn most_different<'a>(
    old: impl Iterator<Item = (&'a str, f64)>,
    new: impl Iterator<Item = (&'a str, f64)>,
) -> Pairs<'a> {
    let mut both = BTreeMap::<&str, (Option<f64>, Option<f64>)>::new();
    old.for_each(|(name, value)| both.entry(name).or_default().0 = Some(value));
    new.for_each(|(name, value)| both.entry(name).or_default().1 = Some(value));
    let pairs = both.into_iter().map(|(name, (old, new))| (name, old, new));
    let mut pairs: Vec<_> = pairs.collect();
    let change = |(_, old, new): &(&str, Option<f64>, Option<f64>)| {
        (new.unwrap_or(0.0) - old.unwrap_or(0.0)).abs()
    };
    pairs.sort_by(|one, other| change(other).total_cmp(&change(one)));
    pairs
}

/// The phases of both, in the order of the new one; those that are gone come last.
fn phases(old: &Data, new: &Data) -> Vec<String> {
    fn all(data: &Data) -> impl Iterator<Item = &Phase> {
        data.steps.iter().chain(&data.phases)
    }
    fn find(data: &Data, name: &str) -> Option<f64> {
        all(data)
            .find(|phase| phase.name == name)
            .map(Phase::length)
    }
    let total = (
        "total",
        Some(old.run.seconds.total),
        Some(new.run.seconds.total),
    );
    let common = all(new).map(|phase| {
        let name = phase.name.as_str();
        (name, find(old, name), Some(phase.length()))
    });
    let gone = all(old).filter(|phase| find(new, &phase.name).is_none());
    let gone = gone.map(|phase| (phase.name.as_str(), Some(phase.length()), None));
    let pairs = [total].into_iter().chain(common).chain(gone).collect();
    rows(&pairs, time)
}

fn count(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", number(value.abs() as u64))
}

/// The kinds of exits, and how many there were.
fn kinds(data: &Data) -> impl Iterator<Item = (&str, f64)> {
    let kinds = data.exits.iter().flat_map(|exits| &exits.kinds);
    kinds.map(|kind| (kind.name.as_str(), kind.count as f64))
}

/// The initcalls, and what they took.
fn initcalls(data: &Data) -> impl Iterator<Item = (&str, f64)> {
    let calls = data.initcalls.slowest.iter();
    calls.map(|call| (call.name.as_str(), call.took as f64 / 1e6))
}

/// What has changed from `old` to `new`.
pub fn render(old: &Data, new: &Data) -> String {
    let parts = [
        ("Times", phases(old, new)),
        (
            "Exits, by the change of their number",
            rows(&most_different(kinds(old), kinds(new)), count),
        ),
        (
            "Initcalls, by the change of their time",
            rows(&most_different(initcalls(old), initcalls(new)), time),
        ),
    ];
    let head = ["", "before", "now", "difference", ""];
    let parts = parts.iter().filter(|(_, rows)| !rows.is_empty());
    let parts =
        parts.map(|(name, rows)| format!("<h3>{}</h3>\n{}", Text(name), table(&head, rows)));
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_report::page::tests::data;

    #[test]
    fn what_is_more_is_worse() {
        let (old, mut new) = (data(), data());
        new.run.seconds.total = old.run.seconds.total * 2.0;
        new.phases[0].name = "a phase of its own".into();
        new.initcalls.slowest[0].took = 1;
        let html = render(&old, &new);
        assert!(html.contains("worse\">+1.00 s (+100 %)"), "{html}");
        assert!(
            html.contains("<td>a phase of its own</td><td class=\"n\">–</td>"),
            "{html}"
        );
        assert!(
            html.contains("better\">gone</td>") && html.contains("worse\">new</td>"),
            "{html}"
        );
        assert!(html.contains("better\">-4.0 ms (-100 %)"), "{html}");
        // The initcall that changed comes first, the others after it.
        let at = |name: &str| html.find(&format!("<td>{name}</td>")).unwrap();
        assert!(at("core_one") < at("early_one"));
    }

    #[test]
    fn the_same_is_the_same() {
        let html = render(&data(), &data());
        assert!(
            !html.contains("worse") && !html.contains("better"),
            "{html}"
        );
        assert!(!render(&Data::default(), &Data::default()).contains("NaN"));
    }
}
