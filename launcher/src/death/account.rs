// SPDX-License-Identifier: GPL-2.0
//! The account of a death, as it is kept and as people read it.

use std::fmt;
use std::fs;
use std::path::Path;

use lg_core::addr::Gva;
use lg_core::monitor;
use lguest_abi::lguest_regs;
use serde::{Deserialize, Serialize};

use super::unwind::Frame;
use super::words::{self, Words};
use crate::machine::pagetable::PageTable;
use crate::machine::view::Kernel;
use crate::report::end::{registers, End};
use crate::report::messages::printable;
use crate::trace::symbols::Symbols;

/// The format of the file.
const FORMAT: u32 = 1;
/// The frames that are told at once.
const AT_ONCE: usize = 16;

/// An account.
#[derive(Debug, Serialize, Deserialize)]
pub struct Death {
    /// The format.
    lg_death: u32,
    end: Kind,
    /// lg.ko's reason, or the kernel's message.
    message: String,
    /// The kernel that ran.
    pub(super) kernel: Option<Kernel>,
    #[serde(with = "Registers")]
    regs: lguest_regs,
    /// From the innermost.
    backtrace: Vec<Called>,
    /// The last world switches.
    switches: Vec<String>,
    /// The page tables of the address in question.
    pub(super) walk: Option<PageTable>,
}

/// The two ways to die.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Killed,
    Panic,
}

/// Whose code ran last.
pub(super) enum Where {
    Kernel,
    /// A monitor's, whose stack is not the kernel's.
    Monitor,
    Program,
}

impl Where {
    pub(super) fn of(regs: &lguest_regs) -> Self {
        match regs.user_mode {
            0 if monitor::covers(Gva::new(regs.rip)) => Self::Monitor,
            0 => Self::Kernel,
            _ => Self::Program,
        }
    }
}

/// One of those that called.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Called {
    ip: u64,
    name: Option<String>,
    sure: bool,
}

impl Called {
    pub(super) fn new(frame: &Frame, symbols: &Symbols) -> Self {
        // The call may be the last instruction of its function.
        let back = u64::from(frame.called);
        let found = symbols.find(frame.ip.wrapping_sub(back));
        Self {
            ip: frame.ip,
            name: found.map(|(name, offset)| format!("{name}+{:#x}", offset + back)),
            sure: frame.sure,
        }
    }
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubt = if self.sure { ' ' } else { '?' };
        let name = self.name.as_deref().unwrap_or("(no name)");
        write!(f, "{:016x} {doubt} {name}", self.ip)
    }
}

/// `struct lguest_regs`, for a file.
#[derive(Serialize, Deserialize)]
#[serde(remote = "lguest_regs")]
struct Registers {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rip: u64,
    rflags: u64,
    rsp: u64,
    fs_base: u64,
    gs_base: u64,
    cr2: u64,
    cr3: u64,
    user_mode: u64,
}

impl Death {
    /// Of this end.
    pub(super) fn new(
        end: &End,
        regs: lguest_regs,
        backtrace: Vec<Called>,
        switches: Vec<String>,
    ) -> Self {
        Self {
            lg_death: FORMAT,
            end: match end {
                End::Panic(_) => Kind::Panic,
                _ => Kind::Killed,
            },
            message: end.message().unwrap_or_default(),
            kernel: None,
            regs,
            backtrace,
            switches,
            walk: None,
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// A message: it cannot be read, or is no account.
    pub fn open(path: &Path) -> Result<Self, String> {
        let bytes = fs::read(path).map_err(|error| error.to_string())?;
        Self::parse(&bytes)
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    ///
    /// A message: it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        match serde_json::from_slice::<Self>(bytes) {
            Ok(death) if death.lg_death == FORMAT => Ok(death),
            _ if bytes.is_empty() => Err("no guest has died there".into()),
            _ => Err("it is no account of a guest's death that this lg can read".into()),
        }
    }

    fn words(&self) -> &'static Words {
        match self.end {
            Kind::Killed => words::of(&self.message),
            Kind::Panic => &words::PANIC,
        }
    }

    /// The address in question, and why it is that.
    pub fn address(&self) -> (u64, &'static str) {
        let named = ["for address 0x", "slot at 0x"].iter().find_map(|before| {
            let (_, behind) = self.message.split_once(before)?;
            let digits = behind.split(|c: char| !c.is_ascii_hexdigit()).next()?;
            u64::from_str_radix(digits, 16).ok()
        });
        match (named, &self.end) {
            (Some(address), _) => (address, "which the reason names"),
            (None, Kind::Killed) if self.message.contains("#PF") => {
                (self.regs.cr2, "CR2, the address of that page fault")
            }
            (None, Kind::Killed) => (self.regs.rip, "RIP, the next instruction"),
            (None, Kind::Panic) => (self.regs.cr2, "CR2, the address of the last page fault"),
        }
    }

    /// What the user is told at once, beside the end itself.
    pub fn beginning(&self) -> String {
        if self.backtrace.is_empty() {
            return String::new();
        }
        let mut text = String::from("    called from, the innermost first:\n");
        for called in self.backtrace.iter().take(AT_ONCE) {
            text += &format!("      {called}\n");
        }
        if self.backtrace.len() > AT_ONCE {
            text += &format!("      and {} more\n", self.backtrace.len() - AT_ONCE);
        }
        // The kernel's names are its own.
        printable(text.as_bytes())
    }

    fn whole(&self) -> String {
        let Words {
            meaning, chapter, ..
        } = self.words();
        let end = match self.end {
            Kind::Killed => "the guest was killed",
            Kind::Panic => "the guest's kernel panicked",
        };
        let mut text = format!("{end}: {}\n", self.message);
        if let Some(kernel) = &self.kernel {
            text += &format!("kernel: {}\n", kernel.path.display());
        }
        text += &format!("\n{}\n\nto read: {chapter}\n", wrapped(meaning));
        text += &format!("\nregisters:\n{}\n", registers(&self.regs));
        text += "\nbacktrace, the innermost first (? where it only looks like a caller):\n";
        text += match Where::of(&self.regs) {
            Where::Kernel => "",
            Where::Program => "    none: a program ran, and not the kernel\n",
            Where::Monitor => {
                "    none: the registers are those of the shim, which answered the kernel by Xen's ABI;\n    \
                 the kernel's own backtrace is in its log\n"
            }
        };
        (self.backtrace.iter()).for_each(|called| text += &format!("    {called}\n"));
        text += "\nthe last world switches:\n";
        match &self.switches[..] {
            [] => text += "    none: the guest never ran\n",
            switches => {
                text += crate::trace::text::HEAD;
                switches
                    .iter()
                    .for_each(|line| text += &format!("{line}\n"));
                // As `text::line` has it, where there was no record.
                if switches
                    .iter()
                    .any(|line| line.trim_start().starts_with('-'))
                {
                    text += "    (-: not recorded; it is if lg run is told --trace /dev/null)\n";
                }
            }
        }
        let (_, why) = self.address();
        match &self.walk {
            Some(walk) => text += &format!("\nthe address in question ({why}):\n{walk}"),
            None => text += "\nthere are no page tables to look at\n",
        }
        text
    }
}

/// The whole of it.
impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The file may be anybody's.
        f.write_str(&printable(self.whole().as_bytes()))
    }
}

/// `text` in lines that a terminal has room for.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 76;
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        if length > 0 && length + 1 + word.len() > WIDTH {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines += word;
        length += word.len();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(reason: &str) -> Death {
        let regs = lguest_regs {
            rip: 0x1000,
            cr2: 0x2000,
            ..Default::default()
        };
        let end = End::Death {
            reason: reason.into(),
            regs: Box::new(regs),
        };
        let frame =
            |ip, called, sure| Called::new(&Frame { ip, called, sure }, &Symbols::default());
        let frames = vec![frame(0x1000, false, true), frame(0x1010, true, false)];
        Death::new(&end, regs, frames, vec!["a switch".into()])
    }

    #[test]
    fn it_is_kept_and_read() {
        let death = death("bad root: CR3 0x2000000000 is not RAM");
        let file = serde_json::to_vec(&death).unwrap();
        let text = Death::parse(&file).unwrap().to_string();
        for part in [
            "the guest was killed: bad root: CR3 0x2000000000 is not RAM\n",
            "address\nat which the guest has no RAM",
            "to read: Documentation/shadow-memory.md",
            "    rip 0000000000001000 (guest kernel mode)\n",
            "    0000000000001000   (no name)\n    0000000000001010 ? (no name)\n",
            "\na switch\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let beginning = death.beginning();
        assert_eq!(beginning.lines().count(), 3, "{beginning}");
        assert!(Death::parse(b"").unwrap_err().contains("has died"));
        assert!(Death::parse(b"{}").unwrap_err().contains("no account"));
        let other = String::from_utf8(file)
            .unwrap()
            .replace("\"lg_death\":1", "\"lg_death\":2");
        Death::parse(other.as_bytes()).unwrap_err();
    }

    #[test]
    fn the_address_in_question() {
        let address = |reason| death(reason).address().0;
        assert_eq!(address("bad root: CR3 0x3000 is not RAM"), 0x1000);
        assert_eq!(
            address("double fault: #PF (error code 0x2) at rip 0x5"),
            0x2000
        );
        assert_eq!(address("double fault: #GP at rip 0x5"), 0x1000);
        let outside = "page table outside RAM: entry at 0x2000000008 for address 0x40001234";
        assert_eq!(address(outside), 0x4000_1234);
        assert_eq!(
            address("touched the switcher's slot at 0xffff878000000000"),
            0xffff_8780_0000_0000
        );
        let panic = Death::new(
            &End::Panic(String::new()),
            lguest_regs::default(),
            Vec::new(),
            Vec::new(),
        );
        assert_eq!(panic.address().0, 0);
        assert!(panic.beginning().is_empty());
    }

    #[test]
    fn control_characters_of_a_guests_do_nothing() {
        let text = death("\x1b]0;title\x07").to_string();
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text}");
    }
}
