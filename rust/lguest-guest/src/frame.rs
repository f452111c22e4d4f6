// SPDX-License-Identifier: GPL-2.0
//! The state of an interrupted or a resumed program, as the stubs of [`event`](crate::event) have it on the stack.

use lguest_call::abi::{LGUEST_CS_KERNEL, LGUEST_CS_USER32, LGUEST_CS_USER64, LGUEST_SS_USER};

/// The interrupted state, as the stubs push it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// One of [`vector`], or that of a virtual interrupt.
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// Was user mode interrupted?
    pub fn from_user(&self) -> bool {
        self.cs != KERNEL_CS
    }
}

/// CS of Guest kernel mode, of 64-bit and of 32-bit user mode.
pub const KERNEL_CS: u64 = LGUEST_CS_KERNEL as u64;
#[allow(missing_docs)]
pub const USER_CS: u64 = LGUEST_CS_USER64 as u64;
#[allow(missing_docs)]
pub const USER32_CS: u64 = LGUEST_CS_USER32 as u64;
/// SS of user mode.
pub const USER_SS: u64 = LGUEST_SS_USER as u64;
