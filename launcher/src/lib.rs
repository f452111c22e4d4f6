// SPDX-License-Identifier: GPL-2.0
//! lg, the Launcher: supplies a Guest of lg.ko with a kernel, memory and devices.
//!
//! Read in this order: [`cli`] what the user asks for, and [`options_file`] where else · [`run`]
//! from there to the end, or only to a [`plan`] · [`guest`] (with [`image`], `bzimage` and
//! `unpack`) what is to run, [`root`] where, and [`told`] how its init hears of it · [`machine`]
//! how a machine is put together and ends · [`boot`] (with [`page_tables`] and [`cpio`]) how the
//! Guest gets into [`memory`], of which [`cgroup`] says how much there is · [`vm`] the module · [`vcpu`] the run loop, with [`insn`] for loads
//! and stores to devices, and [`gdb`] · [`devices`] and [`virtio`], with [`fs`], [`mod@net`] and
//! [`disk`] behind three of them · [`streams`], [`terminal`] and [`keys`] · [`end`] and [`error`]
//! what the user is told, and [`record`] what a program is; `deadline` when, at the latest.

#![deny(unsafe_code)]

pub mod boot;
mod bzimage;
pub mod cgroup;
pub mod cli;
pub mod codes;
pub mod commands;
pub mod cpio;
mod deadline;
pub mod devices;
pub mod disk;
pub mod end;
pub mod error;
pub mod fs;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gdb;
pub mod guest;
pub mod image;
pub mod insn;
pub mod keys;
pub mod log;
pub mod machine;
pub mod memory;
pub mod net;
pub mod options_file;
pub mod page_tables;
pub mod plan;
pub mod record;
pub mod root;
pub mod run;
pub mod sandbox;
pub mod socket_file;
pub mod speculation;
pub mod stats;
pub mod streams;
pub mod terminal;
pub mod told;
mod unpack;
pub mod vcpu;
pub mod virtio;
pub mod vm;
pub mod vsock;
mod watcher;
