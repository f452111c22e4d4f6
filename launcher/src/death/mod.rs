// SPDX-License-Identifier: GPL-2.0
//! The death of a Guest, told: what it died of, the registers, who called whom, the last world switches, and the page
//! tables of the address in question.
//!
//! [`Inquest`] gets ready before the sandbox, where nothing can be opened, and looks at what is left of a Guest that
//! lg.ko has killed or whose kernel has panicked. What comes of it is a [`Death`]: its beginning goes to the user, and
//! the whole to a file, for `lg explain FILE`.

#![forbid(unsafe_code)]

mod account;
mod orc;
pub mod slots;
mod unwind;
mod words;

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::image::Image;
use crate::machine::view::View;
use crate::report::end::End;
use crate::report::messages::{print, say};
use crate::trace::symbols::Symbols;
use crate::trace::text;
pub use account::Death;
use account::{Called, Where};
pub use orc::Orc;
use slots::Slot;
pub use unwind::backtrace;

/// Whoever looks at a Guest that has died.
#[derive(Default)]
pub struct Inquest {
    /// The kernel's file, and its size.
    kernel: Option<(File, u64)>,
    slot: Option<Slot>,
    found: OnceCell<Death>,
}

impl Inquest {
    /// Opens what is needed later; without a file there are no names, and without a slot no account is kept.
    pub fn open(kernel: &Path, verbose: bool) -> Self {
        let mut options = OpenOptions::new();
        // It may be a FIFO, from which the kernel has come and nothing more will.
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(kernel).and_then(|file| {
            let metadata = file.metadata()?;
            Ok(metadata.is_file().then_some((file, metadata.len())))
        });
        let slot = slots::directory().map(|directory| Slot::take(&directory));
        if let (Some(Err(error)), true) = (&slot, verbose) {
            say(&format!(
                "should the guest die, nothing is kept of it: {error}"
            ));
        }
        Self {
            kernel: file.ok().flatten(),
            slot: slot.and_then(Result::ok),
            found: OnceCell::new(),
        }
    }

    /// Looks at what is left of the machine of `view`, if this end was a death.
    pub fn hold(&self, end: &End, view: &View) {
        if !matches!(end, End::Death { .. } | End::Panic(_)) {
            return;
        }
        let Some(regs) = view.regs() else {
            return;
        };
        let (symbols, orc) = self.names();
        let frames = match Where::of(&regs) {
            Where::Kernel => backtrace(&regs, &orc, |at| view.read(regs.cr3, at)),
            Where::Monitor | Where::Program => Vec::new(),
        };
        let frames = frames.iter().map(|frame| Called::new(frame, &symbols));
        let trace = view.exits();
        let switches = trace.events.iter();
        let switches = switches.map(|event| text::line(&trace, event, &symbols).trim_end().into());
        let mut death = Death::new(end, regs, frames.collect(), switches.collect());
        let (address, _) = death.address();
        death.walk = view.page_table(address).ok();
        death.kernel = Some(view.kernel().clone());
        let _ = self.found.set(death);
    }

    /// The names and the tables of the kernel that ran.
    fn names(&self) -> (Symbols, Orc) {
        let read = |(file, size): &(File, u64)| -> io::Result<_> {
            let mut bytes = vec![0; usize::try_from(*size).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let file = self.kernel.as_ref().and_then(|kernel| read(kernel).ok());
        let Some(image) = file.and_then(|file| Image::parse(file).ok()) else {
            return (Symbols::default(), Orc::default());
        };
        (Symbols::parse(image.elf()), Orc::parse(image.elf()))
    }

    /// Tells the user, after the end itself, and writes the whole down.
    pub fn tell(&self) {
        let Some(death) = self.found.get() else {
            return;
        };
        print(&death.beginning());
        let account = serde_json::to_vec_pretty(death).expect("plain data");
        match self.slot.as_ref().map(|slot| slot.write(&account)) {
            Some(Ok(path)) => say(&format!("more of it: lg explain {}", path.display())),
            Some(Err(error)) => say(&format!("the account of it cannot be kept: {error}")),
            None => {}
        }
    }
}
