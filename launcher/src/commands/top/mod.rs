// SPDX-License-Identifier: GPL-2.0
//! `lg top`: what the user's Guests do, as long as he looks.

#![forbid(unsafe_code)]

mod look;
mod screen;
mod table;

use std::io::{self, IsTerminal};
use std::time::Duration;

use crate::cli::Top as Options;
use crate::commands::top::screen::{Next, Screen};
use crate::report::system::setup;
use crate::report::Error;
use crate::session::terminal;

/// The time from one look to the next.
const EVERY: Duration = Duration::from_secs(1);
/// The time that a Guest has to answer: on a machine that is loaded, or while somebody waits for the next look.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_ON_SCREEN: Duration = Duration::from_secs(2);

/// Shows all Guests of the user's: again and again on a terminal; what there is to print elsewhere, or once, or as
/// JSON.
///
/// # Errors
///
/// The terminal cannot be had.
pub fn run(options: &Options) -> Result<String, Error> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if !options.json && !options.once && is_terminal {
        watch().map_err(setup("the terminal"))?;
        return Ok(String::new());
    }
    let guests = look::all(PATIENCE);
    let text = match options.json {
        true => serde_json::to_string_pretty(&guests).expect("plain data"),
        false => table::table(&guests, &[], usize::MAX).join("\n"),
    };
    Ok(text + "\n")
}

fn watch() -> io::Result<()> {
    let screen = Screen::take()?;
    let mut before = Vec::new();
    loop {
        let now = look::all(PATIENCE_ON_SCREEN);
        let (columns, rows) = terminal::window_size(&io::stdout())
            // Some terminals do not know.
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .unwrap_or((80, 24));
        let mut lines = table::table(&now, &before, columns.into());
        lines.truncate(usize::from(rows).saturating_sub(1).max(1));
        screen.draw(&lines)?;
        before = now;
        if screen.wait(EVERY)? == Next::Leave {
            return Ok(());
        }
    }
}
