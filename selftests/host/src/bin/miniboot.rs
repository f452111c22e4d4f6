// SPDX-License-Identifier: GPL-2.0
//! miniboot IMAGE [COMMAND-LINE]: boots a bare Guest without a Launcher, in 64 MiB; exits as `lg run` would.

use lguest_host_tests::{End, Result, Vm};
use std::path::Path;
use std::process::ExitCode;

fn main() -> Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or("usage: miniboot IMAGE [COMMAND-LINE]")?;
    let command_line = args.next().unwrap_or_default();
    let vm = Vm::load(Path::new(&image), 64 << 20, &command_line)?;
    let (text, status) = match vm.run()? {
        End::PowerOff(status) => return Ok(ExitCode::from(status as u8)),
        End::Restart => ("restart".to_owned(), 0),
        End::Panic(message) => (format!("guest panicked: {message}"), 255),
        End::Death(reason) => (format!("guest died: {reason}"), 255),
    };
    eprintln!("miniboot: {text}");
    Ok(ExitCode::from(status))
}
