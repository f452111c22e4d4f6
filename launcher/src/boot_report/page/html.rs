// SPDX-License-Identifier: GPL-2.0
//! How text gets into a page, and numbers: whatever it says, it stays text.

use std::fmt::{self, Display, Write};

use serde::Serialize;

/// Text as HTML shows it, in an element or in the quotes of an attribute.
pub struct Text<'a>(pub &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c if c.is_control() && !matches!(c, '\n' | '\t') => f.write_char('\u{fffd}'),
            // These turn the direction of what follows, or are not seen.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                f.write_char('\u{fffd}')
            }
            c => f.write_char(c),
        })
    }
}

/// JSON that can stand in an element of its own, which its text does not end.
pub fn json(data: &impl Serialize) -> String {
    let text = serde_json::to_string(data).expect("plain data");
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// A time for people: three digits, or as many as seconds have.
pub fn time(seconds: f64) -> String {
    let size = seconds.abs();
    match size {
        _ if !size.is_finite() => "?".into(),
        _ if size >= 100.0 => format!("{seconds:.0} s"),
        _ if size >= 1.0 => format!("{seconds:.2} s"),
        _ if size >= 0.1 => format!("{:.0} ms", seconds * 1e3),
        _ if size >= 0.001 => format!("{:.1} ms", seconds * 1e3),
        _ if size > 0.0 => format!("{:.1} µs", seconds * 1e6),
        _ => "0".into(),
    }
}

/// A time on an axis, where it is round.
pub fn tick(seconds: f64) -> String {
    let text = time(seconds);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            let number = number.trim_end_matches('0').trim_end_matches('.');
            format!("{number} {unit}")
        }
        _ => text,
    }
}

/// A number with its thousands apart.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A share of a whole.
pub fn percent(part: f64, whole: f64) -> String {
    match part / whole {
        share if share.is_finite() => format!("{:.1} %", 100.0 * share),
        _ => "–".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_numbers() {
        assert_eq!(time(123.4), "123 s");
        assert_eq!(time(1.5), "1.50 s");
        assert_eq!(time(0.25), "250 ms");
        assert_eq!(time(-0.0012), "-1.2 ms");
        assert_eq!(time(0.000_012_3), "12.3 µs");
        assert_eq!((time(0.0), time(f64::NAN)), ("0".into(), "?".into()));
        assert_eq!([tick(10.0), tick(0.25), tick(0.0)], ["10 s", "250 ms", "0"]);
        assert_eq!([tick(2.5), tick(100.0)], ["2.5 s", "100 s"]);
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((number(12), number(123)), ("12".into(), "123".into()));
        assert_eq!(percent(1.0, 8.0), "12.5 %");
        assert_eq!(percent(1.0, 0.0), "–");
    }

    #[test]
    fn blanks_are_no_control_characters() {
        assert_eq!(Text("a\n\tb\x07").to_string(), "a\n\tb\u{fffd}");
    }

    proptest! {
        #[test]
        fn text_stays_text(text: String) {
            let shown = Text(&text).to_string();
            let escaped = !shown.contains(['<', '>', '"', '\'', '\u{1b}', '\u{202e}']);
            prop_assert!(escaped, "{}", shown);
            let json = json(&text);
            let escaped = !json.contains(['<', '>', '&']);
            prop_assert!(escaped, "{}", json);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
