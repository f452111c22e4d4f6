// SPDX-License-Identifier: GPL-2.0
//! The shim: Xen's paravirtual ABI for kernels that lg has not patched, as a program in their own address space.
//!
//! It lies in the slots of the top level that Xen keeps for itself and Linux leaves alone (`xen_abi::handover`). The
//! hypercalls of the kernel come here, as the monitor of lg's contract has it (`LHCALL_SET_MONITOR`), and so do all events;
//! it answers with lg's own hypercalls, and by writing to the kernel's memory. It has no more rights than the kernel, so a
//! hostile kernel that breaks it has won nothing.
//!
//! Each line knows what is on lines below it, and nothing above; a test holds that (`rust/layers`):
//!
//! ```text
//!   entry            assembly: the ways in and out
//!   boot             before the kernel's first instruction
//!   call             hypercalls
//!   call::channel, call::descriptor, call::kernel, call::mmu, call::reservation, call::vcpu_op  each kind
//!   call::sched      waiting, the end, the timer
//!   trap             events for the kernel
//!   interrupt, cpu   interrupts as ports; instructions done for the kernel
//!   console          text for the Launcher, and the end
//!   domain           what all vCPUs have in common
//!   vcpu             what is known of a vCPU
//!   memory           by physical address, and by the kernel's pointers
//! ```

#![no_std]
#![no_main]

mod boot;
mod call;
mod console;
mod cpu;
mod domain;
mod entry;
mod interrupt;
mod memory;
mod trap;
mod vcpu;
