// SPDX-License-Identifier: GPL-2.0
//! `lg run --report FILE`: a run as one page for a browser, in a file that needs no other and no network.
//!
//! While the Guest runs, [`klog`] reads its kernel's log and [`exits`] the record of its vCPU; both keep what is
//! bounded, however long it runs. At the end that becomes [`data`], which [`page`] shows and also holds, so that a
//! page is the file of its own data: [`earlier`] reads it, to say what has changed since. [`writer`] is what the rest
//! of lg knows.
//!
//! What a Guest prints is an enemy's, and so is the page of an earlier run: all of it is escaped where it is shown
//! (`page::html`), and no part of the page is a program.

#![forbid(unsafe_code)]

pub mod data;
pub mod earlier;
pub mod exits;
pub mod klog;
pub mod page;
pub mod writer;
