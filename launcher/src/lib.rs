// SPDX-License-Identifier: GPL-2.0
//! lg, the Launcher: supplies a Guest of lg.ko with a kernel, memory and devices.
//!
//! Read in this order: [`commands`] what lg can do, and [`cli`] what the user asks for · [`plan`] what
//! is to run · [`machine`] how a machine is put together, runs and ends: the module, the run loop,
//! loads and stores to devices, and gdb · [`session`] the user's side of it · [`boot`], with [`image`],
//! how the Guest gets into [`memory`] · [`devices`], a folder for each · [`sandbox`] what lg itself may
//! do · [`report`] what the user and programs are told.

#![deny(unsafe_code)]

pub mod boot;
pub mod cli;
pub mod commands;
pub mod devices;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod image;
pub mod machine;
pub mod memory;
pub mod plan;
pub mod report;
pub mod sandbox;
pub mod session;
pub mod socket_file;
