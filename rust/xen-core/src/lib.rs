// SPDX-License-Identifier: GPL-2.0
//! The rules of the shim (`rust/xen-shim`) that need no machine, so that cargo can test them: what Xen's ABI says about
//! numbers and words, whoever reads and writes them.
//!
//! Each line knows what is on lines below it, and nothing above; a test holds that (`rust/layers`):
//!
//! ```text
//!   frame         what an IRET frame resumes
//!   ports         event channels: who has which port, and how one is raised
//!   cpuid         the CPU as the kernel shall see it
//!   clock         system time
//!   page_table    walking, and what an update stores
//!   descriptor    what an entry of the GDT means
//!   instruction   those that fault and are done for the kernel
//! ```

#![no_std]

pub mod clock;
pub mod cpuid;
pub mod descriptor;
pub mod frame;
pub mod instruction;
pub mod page_table;
pub mod ports;
