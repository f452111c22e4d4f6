// SPDX-License-Identifier: GPL-2.0

//! What is done against speculation when the CPU changes worlds, decided from what the Host's kernel
//! has decided for itself (arch/x86/kernel/cpu/bugs.c) and from the parameter `mitigations` of the
//! module.

/// A set of mitigations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(u16);

impl Set {
    /// VERW on the way to user mode, the Host's to the Guest and the Guest's own: the CPU's buffers
    /// hold nothing of who ran before (MDS, TAA, MMIO stale data, RFDS, TSA).
    pub const BUFFERS: Self = Self(1 << 0);
    /// Calls overwrite the Guest's return predictions on the way out.
    pub const RSB: Self = Self(1 << 1);
    /// Branches overwrite the Guest's branch history on the way out (BHI).
    pub const BHB: Self = Self(1 << 2);
    /// IBRS is written on the way out, and cleared on the way in.
    pub const IBRS: Self = Self(1 << 3);
    /// The Host's return thunk is untrained on the way out (Retbleed, SRSO).
    pub const UNTRAIN: Self = Self(1 << 4);
    /// A barrier on the way out: nothing that the Guest did predicts an indirect branch, or a
    /// return, of the Host's.
    pub const IBPB: Self = Self(1 << 5);
    /// The same barrier before the Launcher runs again (VMSCAPE).
    pub const VMSCAPE: Self = Self(1 << 6);

    /// All of them, and what they are called.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("buffers", Self::BUFFERS),
        ("rsb", Self::RSB),
        ("bhb", Self::BHB),
        ("ibrs", Self::IBRS),
        ("untrain", Self::UNTRAIN),
        ("ibpb", Self::IBPB),
        ("vmscape", Self::VMSCAPE),
    ];

    /// Are all those of `others` in it?
    pub fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    fn named(name: &[u8]) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(n, _)| n.as_bytes() == name);
        found.map(|(_, set)| *set)
    }
}

impl core::ops::BitOr for Set {
    type Output = Self;

    fn bitor(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

/// The Host kernel's view of its CPU, and what it does about that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    /// The CPU has Spectre v2 (as all have that predict), and the Host was not booted with
    /// `mitigations=off`.
    pub spectre_v2: bool,
    /// It does VERW on the way to user mode, or to Guests of KVM's.
    pub clears_buffers: bool,
    /// It overwrites branch history at system calls, or when a Guest of KVM's exits. (False where
    /// the hardware keeps user mode's history out of its branches: BHI_DIS_S.)
    pub clears_history: bool,
    /// It writes IBRS at each entry.
    pub kernel_ibrs: bool,
    /// It untrains its return thunk at each entry.
    pub untrains: bool,
    /// It makes an IBPB at each entry, or when a Guest of KVM's exits.
    pub ibpb_on_entry: bool,
    /// It makes one between a Guest of KVM's and user mode.
    pub ibpb_before_user: bool,
}

/// The administrator's wishes: the parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    without: Set,
    /// An IBPB also where the Host makes none.
    ibpb: bool,
}

impl Wish {
    /// Understands `auto`, `off`, or a list with commas of `no_NAME`, and `ibpb`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut wish = Self::default();
        match text {
            b"auto" => return Some(wish),
            b"off" => {
                for (_, set) in Set::NAMES {
                    wish.without = wish.without | set;
                }
                return Some(wish);
            }
            _ => {}
        }
        for word in text.split(|byte| *byte == b',') {
            match word.strip_prefix(b"no_") {
                Some(name) => wish.without = wish.without | Set::named(name)?,
                None if word == b"ibpb" => wish.ibpb = true,
                None => return None,
            }
        }
        // Both at once is a slip, and which one was meant is not ours to say.
        (!(wish.ibpb && wish.without.has(Set::IBPB))).then_some(wish)
    }

    /// Is an IBPB wanted whatever the Host does? Then the CPU must be able to.
    pub fn wants_ibpb(self) -> bool {
        self.ibpb
    }

    /// For a word of memory: `from_bits` makes the same of it.
    pub fn bits(self) -> u32 {
        u32::from(self.without.0) | (u32::from(self.ibpb) << 16)
    }

    /// The inverse of `bits`.
    pub fn from_bits(bits: u32) -> Self {
        Self {
            without: Set(bits as u16),
            ibpb: (bits >> 16) & 1 != 0,
        }
    }
}

/// The mitigations that are done, and those that are left out although the Host would have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    active: Set,
    relaxed: Set,
}

impl Policy {
    /// Decides.
    pub fn decide(host: &Host, wish: Wish) -> Self {
        let wanted = [
            (host.clears_buffers, Set::BUFFERS),
            // Linux does this for fewer CPUs: on others SMEP keeps user addresses, which are the only
            // ones that a program can leave there, from being executed at CPL0. A Guest leaves
            // addresses of the kernel's.
            (host.spectre_v2, Set::RSB),
            (host.clears_history, Set::BHB),
            (host.kernel_ibrs, Set::IBRS),
            (host.untrains, Set::UNTRAIN),
            (host.ibpb_on_entry || wish.ibpb, Set::IBPB),
            (host.ibpb_before_user, Set::VMSCAPE),
        ];
        let mut this = Self::default();
        for (wanted, set) in wanted {
            let list = match wish.without.has(set) {
                true => &mut this.relaxed,
                false => &mut this.active,
            };
            if wanted {
                *list = *list | set;
            }
        }
        this
    }

    /// Is this done?
    pub fn does(&self, set: Set) -> bool {
        self.active.has(set)
    }

    /// The words for it, to be read with commas between them: what is done, and with `no_` before
    /// it what the parameter has left out.
    pub fn words(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        Set::NAMES.into_iter().filter_map(move |(name, set)| {
            if self.active.has(set) {
                Some(("", name))
            } else if self.relaxed.has(set) {
                Some(("no_", name))
            } else {
                None
            }
        })
    }
}
