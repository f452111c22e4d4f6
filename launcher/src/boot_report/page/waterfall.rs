// SPDX-License-Identifier: GPL-2.0
//! Phases under each other, each where it is in time, in SVG.

use std::fmt::Write;

use crate::boot_report::data::Phase;
use crate::boot_report::page::chart::steps;
use crate::boot_report::page::html::{tick, time, Text};

const WIDTH: f64 = 960.0;
const ROW: f64 = 22.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 24.0;
/// There are never more, whatever the data say.
const ROWS_MAX: usize = 60;

/// A group of phases, and the class of its colour.
pub struct Lane<'a> {
    /// Its heading.
    pub name: &'a str,
    /// Of the style sheet.
    pub class: &'a str,
    /// Its phases.
    pub phases: &'a [Phase],
}

/// All of them, on one axis up to `end`.
pub fn render(lanes: &[Lane<'_>], end: f64) -> String {
    let x = |at: f64| {
        let share = at / end;
        let share = if share.is_finite() { share } else { 0.0 };
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    };
    let shown = |lane: &Lane<'_>| lane.phases.len().min(ROWS_MAX);
    let rows: usize = lanes.iter().map(|lane| 1 + shown(lane)).sum();
    let height = TOP + ROW * rows as f64 + 6.0;
    let mut svg = format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"phases over time\">\n"
    );
    for at in steps(end, 6.0) {
        let x = x(at);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{x:.1} {TOP}V{height}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"16\" text-anchor=\"middle\">{}</text>",
            Text(&tick(at))
        );
    }
    let mut y = TOP;
    for lane in lanes {
        let _ = writeln!(
            svg,
            "<text class=\"lane\" x=\"0\" y=\"{}\">{}</text>",
            y + 16.0,
            Text(lane.name)
        );
        y += ROW;
        for phase in &lane.phases[..shown(lane)] {
            let (from, to) = (x(phase.from), x(phase.to));
            let length = Text(&time(phase.length())).to_string();
            let _ = writeln!(
                svg,
                "<g><title>{name}: {length}, from {begin}</title>\
                 <text class=\"label\" x=\"{label}\" y=\"{base}\" text-anchor=\"end\">{name}</text>\
                 <rect class=\"{class}\" x=\"{from:.1}\" y=\"{top}\" width=\"{wide:.1}\" height=\"{tall}\" rx=\"2\"/>\
                 <text class=\"tick\" x=\"{after:.1}\" y=\"{base}\">{length}</text></g>",
                name = Text(&phase.name.chars().take(40).collect::<String>()),
                begin = Text(&time(phase.from)),
                label = LEFT - 8.0,
                base = y + 15.5,
                class = Text(lane.class),
                top = y + 4.0,
                wide = (to - from).max(1.5),
                tall = ROW - 8.0,
                after = to.max(from + 1.5) + 6.0,
            );
            y += ROW;
        }
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_where_they_are() {
        let phase = |name: &str, from, to| Phase {
            name: name.into(),
            from,
            to,
        };
        let phases = [phase("a<b", 0.0, 1.0), phase("late", 1.5, 2.0)];
        let lane = Lane {
            name: "lg",
            class: "lg",
            phases: &phases,
        };
        let svg = render(&[lane], 2.0);
        assert!(
            svg.contains("x=\"250.0\" y=\"50\" width=\"315.0\""),
            "{svg}"
        );
        assert!(
            svg.contains("x=\"722.5\" y=\"72\" width=\"157.5\""),
            "{svg}"
        );
        assert!(svg.contains("a&lt;b: 1.00 s, from 0"), "{svg}");
        let endless = vec![phase("x", f64::NAN, f64::INFINITY); 10_000];
        let lane = Lane {
            name: "lg",
            class: "lg",
            phases: &endless,
        };
        let svg = render(&[lane], 0.0);
        assert!(svg.len() < 64 << 10 && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
