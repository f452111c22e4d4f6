// SPDX-License-Identifier: GPL-2.0
//! The messages of lg to its user, on standard error.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::OnceLock;

/// The outlet for messages, once nobody may wait for who reads them.
static ROAD: OnceLock<Road> = OnceLock::new();

struct Road {
    add: Box<dyn Fn(&str) + Send + Sync>,
    finish: Box<dyn Fn() + Send + Sync>,
}

/// From now on, messages go by `add`; `finish` waits until all are out, or nobody takes them.
pub fn go_by(
    add: impl Fn(&str) + Send + Sync + 'static,
    finish: impl Fn() + Send + Sync + 'static,
) {
    let (add, finish) = (Box::new(add), Box::new(finish));
    let _ = ROAD.set(Road { add, finish });
}

/// Prints a message of lg's to standard error.
pub fn say(message: &str) {
    print(&format!("lg: {message}\n"));
}

/// Prints to standard error, as plain lines.
pub fn print(text: &str) {
    match ROAD.get() {
        Some(road) => (road.add)(text),
        // Who closes standard error wants no messages.
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// Waits until all messages are out, or nobody takes them: a reader that has taken none for a
/// second is not going to.
pub fn finish() {
    if let Some(road) = ROAD.get() {
        (road.finish)();
    }
}

/// `text` without what a terminal would take for commands, to be printed as part of a message.
pub fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .map(|c| {
            if c.is_control() && !matches!(c, '\n' | '\t') {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_guests_are_harmless() {
        assert_eq!(printable(b"VFS: \tno root\n"), "VFS: \tno root\n");
        assert_eq!(
            printable(b"\x1b]0;title\x07\xff"),
            "\u{fffd}]0;title\u{fffd}\u{fffd}"
        );
    }
}
