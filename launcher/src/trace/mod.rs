// SPDX-License-Identifier: GPL-2.0
//! The trace of a run: every entry of the Guest and what came of the exit that ended it, as lg.ko records
//! that, in a file (`lg run --trace FILE`) and as people and programs read it (`lg trace FILE`).
//!
//! [`file`] has the format, [`event`] one record of it. The rest makes something of many: [`text`], [`summary`],
//! [`perfetto`], with the names of [`symbols`].

#![forbid(unsafe_code)]

pub mod event;
pub mod file;
pub mod perfetto;
pub mod summary;
pub mod symbols;
pub mod text;
