// SPDX-License-Identifier: GPL-2.0

//! lg.ko: runs paravirtualized 64-bit Linux Guests without VT-x or SVM.
//!
//! The Guest, kernel and all, runs at CPL3 on page tables of ours (the shadow). The switcher, three
//! pages of assembly mapped in both worlds, takes the CPU from one to the other.
//!
//! Where things are. Each line knows what is on lines below it, and nothing above; a test holds that
//! (`rust/layers`).
//!
//! ```text
//!   device              /dev/lguest, copies arguments in and out
//!   vm                  an open file: memory regions, the vCPUs, ioctls
//!   vcpu                the run loop: enter the guest, see why it came out, have that done
//!   exits               what each exit leads to
//!   debug               steps and breakpoints of a debugger behind the Launcher
//!   guest::privileged   rare instructions of a guest's kernel
//!   guest::lguest       the lguest ABI: hypercalls, events, the shared page
//!   guest               the state of one virtual CPU
//!   counts              what a vCPU does: entries, exits, faults
//!   record              the same one by one, for a Launcher that asks for it
//!   shared              what vCPUs share: RAM, the shadow, kicks; the order of locks
//!   notify              which eventfd a virtqueue's kick goes to
//!   mmu                 the shadow
//!   memory              a VM's RAM, which the Host may take pages of
//!   crew                what vCPUs do to each other: start, stop, call, wait until they are out
//!   inbox               what one vCPU receives, and what others see of it
//!   blame               who is to blame when something cannot be done; why a guest died, in words
//!   sys                 all that is unsafe: switcher.S, run sections, page tables, guest RAM, the Host's C functions
//!   lg_core             pure logic, which cargo tests: walking tables, decoding, descriptors, flags
//!   abi, module_parameters  the contract, from include/uapi/linux/lguest.h; what `module!` below makes
//! ```
//!
//! To follow one
//! * system call: `lg_switcher_syscall` in `sys/switcher.S`; it never comes further.
//! * page fault: `page_fault` in `sys/switcher.S`, which gives some to the Guest itself; of the others,
//!   `Switcher::enter`, `exits::page_fault`, `Shared::fault`, `Mmu::fault`.
//! * interrupt of the Host's: `trap`, `Switcher::enter`, `Switcher::replay`; of the Guest's:
//!   `Inbox::raise`, `event::deliver_interrupts`, `event::inject`.
//! * virtqueue kick: `hypercall::handle`, `Notify::signal`, `EventFd::signal`.

#![deny(unsafe_code)]

use kernel::{
    miscdevice::{
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
};

/// The contract. Generated, so exempt from our style.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod abi {
    use kernel::ffi;
    include!(concat!(env!("LG_ABI_DIR"), "/abi_generated.rs"));
}

/// Pure logic, shared with the tests that cargo runs; the module does not use all of it.
#[allow(dead_code, unreachable_pub)]
#[path = "../lg-core/src"]
pub mod lg_core {
    pub mod addr;
    pub mod emulate;
    pub mod eret;
    pub mod event;
    pub mod exit;
    pub mod flags;
    pub mod foresight;
    pub mod irq;
    pub mod mitigations;
    pub mod monitor;
    pub mod paging;
    pub mod power;
    pub mod presence;
    pub mod segment;
    pub mod shadow;
    pub mod sync;
    pub mod tags;
    pub mod xcr0;
}

mod blame;
mod counts;
mod crew;
mod debug;
mod device;
mod exits;
mod guest;
mod inbox;
mod memory;
mod mmu;
mod notify;
mod record;
mod shared;
#[allow(unsafe_code)]
mod sys;
mod vcpu;
mod vm;

module! {
    type: Lg,
    name: "lg",
    authors: ["lg developers"],
    description: "Runs paravirtualized 64-bit Linux guests without VT-x or SVM",
    license: "GPL v2",
    params: {
        max_shadow_pages: u32 {
            default: 16384,
            description: "Pages of shadow page tables per VM before the least recently used are dropped",
        },
        pcids: u32 {
            default: 1,
            description: "0: each switch flushes the TLB. Else guests' translations stay there, under PCIDs of their own",
        },
    },
}

#[pin_data]
struct Lg {
    // The device goes first: no Guest runs once it is gone.
    #[pin]
    device: MiscDeviceRegistration<vm::Vm>,
    // No VM is left when these go.
    slots: sys::slots::Slots,
    _async_page_faults: sys::async_pf::Off,
}

impl kernel::InPlaceModule for Lg {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let fits = sys::probe::probe();
        try_pin_init!(Self {
            _: {
                fits?;
                sys::mitigations::probe()?;
            },
            slots: sys::slots::Slots::new(),
            _async_page_faults: sys::async_pf::refuse()?,
            device <- MiscDeviceRegistration::register(MiscDeviceOptions { name: c"lguest" }),
        })
    }
}
