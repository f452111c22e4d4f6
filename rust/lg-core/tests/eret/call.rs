// SPDX-License-Identifier: GPL-2.0

//! What goes into a call, and what came of it.

/// What the Guest put into the shared page.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    pub(crate) cs: u64,
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) r11: u64,
    pub(crate) user_gs_base: u64,
}

/// The state in which it made the hypercall.
pub(crate) struct Call {
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Iret,
    Sysret,
    Host,
}

/// What the CPU would have been left with: by the instruction that enters the Guest, or for the Host to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Left {
    pub(crate) way: Way,
    pub(crate) vector: u64,
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) r11: u64,
    pub(crate) cs: u64,
    pub(crate) ss: u64,
    pub(crate) user_mode: bool,
    pub(crate) irq_enabled: u64,
    pub(crate) gs_base: u64,
}

impl Left {
    /// Without what a hypercall loses, and what the Host sets itself.
    pub(crate) fn without_scratch(self) -> Self {
        Self {
            rcx: 0,
            r11: 0,
            cs: 0,
            ss: 0,
            ..self
        }
    }
}

/// `LGUEST_EVENT_VALID` of the contract.
pub(crate) const EVENT_VALID: u64 = 0x100;
pub(crate) const KERNEL_GS: u64 = 0xffff_8888_0000_1000;
pub(crate) const IRQ_ENABLED: u64 = 0x5a5a;
/// Guest kernel mode, as it makes the hypercall.
pub(crate) const KERNEL_MODE: Left = Left {
    way: Way::Host,
    vector: 0,
    rip: 0,
    rflags: 0,
    rsp: 0,
    rax: 0,
    rcx: 0,
    r11: 0,
    cs: 0,
    ss: 0,
    user_mode: false,
    irq_enabled: IRQ_ENABLED,
    gs_base: KERNEL_GS,
};
