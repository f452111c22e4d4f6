// SPDX-License-Identifier: GPL-2.0

//! The reason why the Guest left, decoded once from what the switcher wrote down, and whose it is.

use super::addr::Gva;
use super::event::{self, Event, FIRST_INTERRUPT, INT80};
use super::paging::Access;

/// SYSCALL of 64-bit code. This and those below are what the switcher writes for a vector when the Guest left by
/// other means than an exception or an interrupt (0 to 255).
pub const SYSCALL: u64 = 0x100;
/// SYSCALL of 32-bit code.
pub const SYSCALL32: u64 = 0x101;
/// The Guest has done nothing: something of the Host's came first.
pub const INTERRUPTED: u64 = 0x102;
/// Or'ed with the vector of an exception at CPL0 in the switcher itself.
pub const SWITCHER_FAULT: u64 = 0x200;

/// The switcher's notes of when the Guest left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw {
    /// An exception's or an interrupt's, or one of this file's constants.
    pub vector: u64,
    /// The exception's error code, 0 where it has none.
    pub error: u64,
    /// CR2, which means something for a page fault.
    pub cr2: u64,
    /// The mode that the Guest left.
    pub user_mode: bool,
    /// A SYSCALL of Guest kernel mode is the monitor's, if the Guest left by one.
    pub monitored: bool,
    /// The Host may have given vector 0x80 to a device, and its gate is closed to `int 0x80`.
    pub int80_is_a_device: bool,
}

/// The reason why the Guest left, and with that who has to do something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// SYSCALL in Guest kernel mode.
    Hypercall,
    /// SYSCALL in Guest user mode. The switcher does it alone unless the Guest is stepped.
    Syscall,
    /// SYSCALL in Guest kernel mode that is for the Guest's monitor. As above.
    Monitored,
    /// SYSCALL of 32-bit code, in whichever mode.
    Syscall32 {
        /// The mode.
        user_mode: bool,
    },
    /// None: something of the Host's hit the switcher, and the Guest can be entered again as it is.
    Interrupted,
    /// An interrupt of the Host's devices: replay it with interrupts on in its frame, or the Host's
    /// tick dies.
    HostInterrupt(u8),
    /// An NMI. The Host's handler hears of it when the run section is over.
    Nmi,
    /// A machine check; so does the one for those.
    MachineCheck,
    /// A page fault. Look at the Guest's tables first: most are the shadow's, not the Guest's.
    PageFault {
        /// Where.
        gva: Gva,
        /// The Guest's attempt.
        access: Access,
    },
    /// #GP because the gate of `int 0x80` is closed to programs, not because the Guest did wrong.
    Int80Refused(Event),
    /// Any other #GP. Look at the instruction first: the Guest's kernel may have executed a privileged one.
    Protection(Event),
    /// The Guest's own exception, or its `int 0x80`.
    Exception(Event),
    /// A vector that cannot happen at CPL 3 under the switcher's IDT and GDT. It only ends the
    /// Guest.
    Impossible(Event),
    /// An exception in the switcher, by its vector: a bug of lg's.
    SwitcherFault(u8),
}

// Two words, for every exit writes one down.
const _: () = assert!(size_of::<Exit>() == 16);

impl Exit {
    /// Decodes what the switcher wrote.
    pub fn decode(raw: &Raw) -> Self {
        const { assert!(SWITCHER_FAULT > 0xff) };
        let Ok(vector) = u8::try_from(raw.vector) else {
            return match raw.vector {
                SYSCALL if raw.user_mode => Self::Syscall,
                SYSCALL if raw.monitored => Self::Monitored,
                SYSCALL => Self::Hypercall,
                SYSCALL32 => Self::Syscall32 {
                    user_mode: raw.user_mode,
                },
                INTERRUPTED => Self::Interrupted,
                fault => Self::SwitcherFault(fault as u8),
            };
        };
        let error = raw.error as u32;
        let event = Event::new(vector, error);
        match vector {
            INT80 if raw.int80_is_a_device => Self::HostInterrupt(vector),
            event::NMI => Self::Nmi,
            event::MC => Self::MachineCheck,
            event::PF => Self::PageFault {
                gva: Gva::new(raw.cr2),
                access: Access::from_error_code(error, raw.user_mode),
            },
            event::GP if error == event::INT80_REFUSED && raw.int80_is_a_device => {
                Self::Int80Refused(event)
            }
            event::GP => Self::Protection(event),
            event::DE..=event::NM
            | event::TS..=event::SS
            | event::MF
            | event::AC
            | event::XM
            | event::CP
            | INT80 => Self::Exception(event),
            FIRST_INTERRUPT..=u8::MAX => Self::HostInterrupt(vector),
            // The double fault, and all that is reserved or belongs to confidential machines.
            _ => Self::Impossible(event),
        }
    }

    /// Does it end the run section, because the Host's handlers have to hear of something, or have dealt with
    /// something in the middle of it?
    pub const fn is_hosts(&self) -> bool {
        matches!(self, Self::Interrupted | Self::HostInterrupt(_))
    }
}
