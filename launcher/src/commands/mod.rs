// SPDX-License-Identifier: GPL-2.0
//! The subcommands that run no Guest.

pub mod completions;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod inspect;
pub mod pagetable;
pub mod run;
pub mod top;
pub mod trace;
