// SPDX-License-Identifier: GPL-2.0
//! Areas on top of each other, over time, in SVG.

use std::fmt::Write;

use crate::boot_report::page::html::{tick, time, Text};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 70.0;
/// The last number on the axis of time may stand at its end.
const RIGHT: f64 = 22.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// No page has more bins, whatever its data say.
const BINS_MAX: usize = 1000;

/// One area.
pub struct Series<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its colour: a class of the style sheet.
    pub class: String,
    /// Its height in each bin.
    pub values: Vec<f64>,
}

/// A chart.
pub struct Chart<'a> {
    /// What it shows, for who does not see it.
    pub title: &'a str,
    /// From the bottom.
    pub series: Vec<Series<'a>>,
    /// The beginning of the first bin, and the length of each.
    pub began: f64,
    /// In seconds.
    pub width: f64,
    /// The time that is shown.
    pub span: (f64, f64),
    /// The value at the top.
    pub top: f64,
    /// A value for people.
    pub unit: fn(f64) -> String,
}

/// Round steps for an axis up to `top`: about so many of them.
pub fn steps(top: f64, count: f64) -> Vec<f64> {
    if !top.is_normal() || top < 0.0 {
        return vec![0.0];
    }
    let rough = top / count;
    let power = 10f64.powf(rough.log10().floor());
    let unit = [1.0, 2.0, 5.0, 10.0];
    let step = unit.iter().find(|unit| *unit * power >= rough);
    let step = step.unwrap_or(&10.0) * power;
    let number = (top / step).floor().min(100.0) as u32;
    (0..=number).map(|index| f64::from(index) * step).collect()
}

impl Chart<'_> {
    fn x(&self, at: f64) -> f64 {
        let (from, to) = self.span;
        let share = (at - from) / (to - from);
        let share = if share.is_finite() { share } else { 0.0 };
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = value / self.top;
        let share = if share.is_finite() { share } else { 0.0 };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    /// Where a bin begins.
    fn edge(&self, index: usize) -> f64 {
        self.x(self.began + index as f64 * self.width)
    }

    /// The bins that are drawn.
    fn bins(&self) -> usize {
        let longest = self.series.iter().map(|series| series.values.len()).max();
        longest.unwrap_or(0).min(BINS_MAX)
    }

    /// The chart in SVG.
    pub fn render(&self) -> String {
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            Text(self.title)
        );
        self.axes(&mut svg);
        let mut below = vec![0.0; self.bins()];
        for series in &self.series {
            let above: Vec<_> = below
                .iter()
                .enumerate()
                .map(|(index, below)| below + series.values.get(index).copied().unwrap_or(0.0))
                .collect();
            self.area(&mut svg, series, &below, &above);
            below = above;
        }
        self.tips(&mut svg);
        svg + "</svg>\n"
    }

    fn axes(&self, svg: &mut String) {
        let right = WIDTH - RIGHT;
        for value in steps(self.top, 4.0) {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                Text(&(self.unit)(value))
            );
        }
        let (from, to) = self.span;
        for at in steps(to, 8.0).into_iter().filter(|at| *at >= from) {
            let (x, y) = (self.x(at), HEIGHT - BOTTOM);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {y}v4\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                y + 18.0,
                Text(&tick(at))
            );
        }
    }

    /// The area between two lines of steps.
    fn area(&self, svg: &mut String, series: &Series<'_>, below: &[f64], above: &[f64]) {
        if series.values.iter().all(|value| *value == 0.0) {
            return;
        }
        let mut path = String::new();
        for (index, value) in above.iter().enumerate() {
            let (letter, from, to) = match index {
                0 => ('M', self.edge(0), self.edge(1)),
                _ => ('V', 0.0, self.edge(index + 1)),
            };
            let y = self.y(*value);
            let _ = match letter {
                'M' => write!(path, "M{from:.1} {y:.1}H{to:.1}"),
                _ => write!(path, "V{y:.1}H{to:.1}"),
            };
        }
        for (index, value) in below.iter().enumerate().rev() {
            let _ = write!(path, "V{:.1}H{:.1}", self.y(*value), self.edge(index));
        }
        let _ = writeln!(
            svg,
            "<path class=\"{}\" d=\"{path}Z\"><title>{}</title></path>",
            Text(&series.class),
            Text(series.name)
        );
    }

    /// What a bin has, for who points at it.
    fn tips(&self, svg: &mut String) {
        for index in 0..self.bins() {
            let has = |series: &&Series<'_>| series.values.get(index).is_some_and(|v| *v > 0.0);
            let lines = self.series.iter().rev().filter(has);
            let lines: Vec<_> = lines
                .map(|series| format!("{}: {}", series.name, (self.unit)(series.values[index])))
                .collect();
            if lines.is_empty() {
                continue;
            }
            let (from, to) = (self.edge(index), self.edge(index + 1));
            let at = time(self.began + index as f64 * self.width);
            let _ = writeln!(
                svg,
                "<rect class=\"tip\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\">\
                 <title>{}\n{}</title></rect>",
                to - from,
                HEIGHT - TOP - BOTTOM,
                Text(&at),
                Text(&lines.join("\n"))
            );
        }
    }
}

/// The names of `series` with their colours, the uppermost first, as in the chart; and what each comes to.
pub fn legend<'a>(entries: impl DoubleEndedIterator<Item = (&'a str, &'a str, String)>) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (name, class, sum) in entries.rev() {
        let _ = write!(
            html,
            "<li><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><rect class=\"{}\" width=\"10\" height=\"10\"/></svg>{} \
             <b>{}</b></li>",
            Text(class),
            Text(name),
            Text(&sum)
        );
    }
    html + "</ul>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(top: f64, width: f64) -> Chart<'static> {
        Chart {
            title: "a < b",
            series: vec![
                Series {
                    name: "one",
                    class: "p0".into(),
                    values: vec![1.0, 2.0],
                },
                Series {
                    name: "none",
                    class: "p1".into(),
                    values: vec![0.0, 0.0],
                },
            ],
            began: 0.0,
            width,
            span: (0.0, 2.0),
            top,
            unit: |value| format!("{value}"),
        }
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(steps(1.0, 4.0), [0.0, 0.5, 1.0]);
        assert_eq!(steps(9000.0, 4.0), [0.0, 5000.0]);
        for top in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(steps(top, 4.0), [0.0]);
        }
        assert!(steps(1e300, 4.0).len() < 10);
    }

    #[test]
    fn areas_have_their_heights() {
        let svg = chart(2.0, 1.0).render();
        // To the middle and to the top, and back along the bottom.
        let path = "d=\"M70.0 107.0H504.0V10.0H938.0V204.0H504.0V204.0H70.0Z\"";
        assert!(svg.contains(path), "{svg}");
        assert!(svg.contains("aria-label=\"a &lt; b\""), "{svg}");
        assert!(svg.contains("<title>1.00 s\none: 2</title>"), "{svg}");
        assert!(!svg.contains("none"), "{svg}");
    }

    #[test]
    fn what_cannot_be_drawn_is_left_out() {
        for (top, width) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, 1e308), (1.0, f64::NAN)] {
            let svg = chart(top, width).render();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let mut large = chart(1.0, 1.0);
        large.series[0].values = vec![1.0; 1 << 20];
        assert!(large.render().len() < 400 << 10);
    }
}
