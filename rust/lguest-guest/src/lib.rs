// SPDX-License-Identifier: GPL-2.0
//! Everything a bare Guest of lg needs: a program without an operating system that runs as a Guest kernel.
//!
//! ```no_run
//! #![no_std]
//! #![no_main]
//! use lguest_guest::{entry, println};
//!
//! entry!(main);
//!
//! fn main() -> u8 {
//!     println!("Hello from guest kernel mode.");
//!     0 // the exit status of `lg run`
//! }
//! ```
//!
//! The contract behind it is `include/uapi/linux/lguest.h` (in Rust: [`abi`]); the modules here are its parts in the order
//! in which a Guest meets them. With one vCPU plain statics are enough; [`smp`] starts more.
//!
//! Each line knows what is on lines below it, and nothing above; a test holds that (`rust/layers`):
//!
//! ```text
//!   boot            from the entry point to `main`, and the end
//!   smp             other vCPUs: start, stop, call, flush
//!   event           exceptions, interrupts, system calls: the stubs and the handlers
//!   user            guest user mode
//!   paging          frames and page tables
//!   console         printing
//!   params          what the Launcher told
//!   frame, address  the interrupted state; GVAs and GPAs
//! ```
//!
//! Below all of them is `lguest-call`: hypercalls, the shared page, virtual interrupts.

#![no_std]

pub use lguest_call::{abi, hypercall, irq, shared, shared_read, shared_write};

mod address;
mod boot;
pub mod console;
pub mod event;
mod frame;
pub mod paging;
mod params;
pub mod smp;
pub mod user;

pub use boot::exit;
pub use params::{boot_params, command_line};

/// Makes `fn main() -> u8` the Guest's program; what it returns is the exit status of `lg run`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[no_mangle]
        extern "C" fn lguest_main() -> u8 {
            let main: fn() -> u8 = $main;
            main()
        }
    };
}
