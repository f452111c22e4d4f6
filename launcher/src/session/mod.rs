// SPDX-License-Identifier: GPL-2.0
//! The user's side of a run: terminal, streams, keys and the time that is given.

pub(crate) mod deadline;
pub mod keys;
pub mod log;
pub mod streams;
pub mod terminal;
mod watcher;
