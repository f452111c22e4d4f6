// SPDX-License-Identifier: GPL-2.0
//! lg, the Launcher: supplies a Guest of lg.ko with a kernel, memory and devices.
//!
//! Read in this order. Each layer knows only those below it, and no file one that knows it:
//!
//! ```text
//! fuzz         what hostile bytes can do, whole (for fuzzers and their tests)
//! commands     what lg can do: `run`, from its options to its exit status
//! death        what is told of a Guest that has died: who called whom, the last switches, page tables
//! machine      how a machine is put together, runs and ends: the module, the vCPU, the devices' bus, gdb
//! plan         what is to run, found and checked
//! cli          what the user asks for
//! session      the user's side of a run: terminal, streams, keys, time
//! xen          what serves a kernel of Xen's ABI: events, console, xenstore, PCI bus, disks, a network
//! boot_report  a run as a page for a browser
//! trace        what a vCPU did: its file, and how people read it
//! boot         how a Guest gets into RAM
//! image        what is loaded: a kernel's file
//! devices      a folder for each, with what is behind it
//! sandbox      what lg may do while a Guest runs
//! socket_file  where others come to us
//! queries      what others may ask us while a Guest runs, and how
//! memory       where RAM is, how much there can be, and how devices reach it
//! signal       signals that do nothing
//! report       what users and programs are told: errors, ends, records
//! ```

#![deny(unsafe_code)]

pub mod boot;
pub mod boot_report;
pub mod cli;
pub mod commands;
pub mod death;
pub mod devices;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod image;
pub mod machine;
pub mod memory;
pub mod plan;
pub mod queries;
pub mod report;
pub mod sandbox;
pub mod session;
pub mod signal;
pub mod socket_file;
pub mod trace;
pub mod xen;
