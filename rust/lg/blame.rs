// SPDX-License-Identifier: GPL-2.0

//! Who is to blame when something cannot be done: the types that `?` carries through the module.
//!
//! [`Stop`] ends a step of the Guest: it has to be done elsewhere, or the Guest dies of it, or the Host
//! failed. [`Errno`] is what a hypercall answers, and [`Protection`] the #GP of an instruction: neither
//! ends anything, and neither is an error of the Host's, so neither can be mixed up with one.

use crate::{
    abi::*,
    lg_core::{
        addr::{
            Gpa,
            Gva, //
        },
        event::Event, //
    },
    sys::compat, //
};
use core::fmt::{
    self,
    Write, //
};
use kernel::prelude::*;

/// The reasons why a step of the Guest could not be done.
pub(crate) enum Stop {
    /// It has to wait for something, which must not be done in a run section. Nothing has been done yet:
    /// it is to be done again outside, where waiting is allowed.
    Later,
    /// The Guest dies of this.
    Death(Death),
    /// The Host could not do its part; the Launcher gets the errno.
    Host(Error),
}

impl From<Death> for Stop {
    fn from(death: Death) -> Self {
        Self::Death(death)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

/// The Guest was refused something, is told by `E`, and goes on; or the step stops.
pub(crate) enum Refused<E> {
    Guest(E),
    Stop(Stop),
}

impl<E> From<Stop> for Refused<E> {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl<E> From<Death> for Refused<E> {
    fn from(death: Death) -> Self {
        Self::Stop(death.into())
    }
}

/// The errno that a hypercall returns to the Guest.
#[derive(Clone, Copy)]
pub(crate) enum Errno {
    /// An argument makes no sense.
    Invalid,
    /// There is no such hypercall.
    NoSuchCall,
    /// It can be done once only, or not as long as others are at it.
    Busy,
}

impl Errno {
    /// As RAX has it, negative.
    pub(crate) fn rax(self) -> u64 {
        let error = match self {
            Self::Invalid => EINVAL,
            Self::NoSuchCall => compat::enosys(),
            Self::Busy => EBUSY,
        };
        i64::from(error.to_errno()) as u64
    }
}

impl<E> From<Error> for Refused<E> {
    fn from(error: Error) -> Self {
        Self::Stop(error.into())
    }
}

impl From<Errno> for Refused<Errno> {
    fn from(errno: Errno) -> Self {
        Self::Guest(errno)
    }
}

/// The #GP that an instruction raises.
pub(crate) struct Protection;

impl From<Protection> for Refused<Protection> {
    fn from(fault: Protection) -> Self {
        Self::Guest(fault)
    }
}

/// The deed for which a Guest dies. It will never run again.
#[derive(Clone, Copy)]
pub(crate) enum Death {
    /// An event came before hypercall SET_ENTRIES.
    NoEntries(Event, u64),
    /// An event came before the Guest had taken the one before.
    DoubleFault(Event, u64, u64),
    /// CR3 was loaded with something that is not RAM.
    BadRoot(Gpa),
    /// A page-table entry points to a table that is not in RAM.
    TableOutside(Gpa, Gva),
    /// Guest kernel mode touched the slot of the switcher.
    SwitcherSlot(Gva),
    /// An exception that cannot happen at CPL3.
    Impossible(Event, u64),
    /// HALT or HLT with interrupts off: nothing can ever wake it.
    HaltForever(u64),
    /// The Host has lost memory that the Guest used.
    MemoryError,
    /// lg's own fault: an exception at CPL0 in the switcher.
    SwitcherFault {
        vector: u8,
        error: u64,
        rip: u64,
        cr2: u64,
    },
}

/// An event by its name in the manual.
struct Named(Event);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 22] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP",
            "#SS", "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
        ];
        match NAMES.get(usize::from(self.0.vector)) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "vector {:#x}", self.0.vector)?,
        }
        match self.0.error_code {
            Some(code) => write!(f, " (error code {code:#x})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoEntries(event, rip) => {
                write!(f, "{} at rip {rip:#x} before hypercall SET_ENTRIES", Named(event))
            }
            Self::DoubleFault(event, first, rip) => write!(
                f,
                "double fault: {} at rip {rip:#x} while vector {:#x} was being delivered",
                Named(event),
                first & 0xff
            ),
            Self::BadRoot(root) => write!(f, "bad root: CR3 {root} is not RAM"),
            Self::TableOutside(at, gva) => {
                write!(f, "page table outside RAM: entry at {at} for address {gva}")
            }
            Self::SwitcherSlot(gva) => write!(f, "touched the switcher's slot at {gva}"),
            Self::Impossible(event, rip) => write!(f, "unexpected {} at rip {rip:#x}", Named(event)),
            Self::HaltForever(rip) => write!(f, "halted with interrupts off at rip {rip:#x}"),
            Self::MemoryError => {
                f.write_str("memory error: the host's memory lost what the guest had in it")
            }
            Self::SwitcherFault {
                vector,
                error,
                rip,
                cr2,
            } => write!(
                f,
                "bug in lg: exception {vector} (error code {error:#x}) in the switcher at {rip:#x}, cr2 {cr2:#x}"
            ),
        }
    }
}

impl Death {
    /// The text for the Launcher, cut to what fits.
    pub(crate) fn write_to(&self, reason: &mut [u8; LGUEST_REASON_MAX as usize]) {
        struct Cut<'a>(&'a mut [u8], usize);
        impl Write for Cut<'_> {
            fn write_str(&mut self, s: &str) -> fmt::Result {
                for byte in s.bytes() {
                    // The last byte stays 0.
                    if self.1 + 1 < self.0.len() {
                        self.0[self.1] = byte;
                        self.1 += 1;
                    }
                }
                Ok(())
            }
        }
        *reason = [0; LGUEST_REASON_MAX as usize];
        let _ = write!(Cut(reason, 0), "{self}");
    }
}
