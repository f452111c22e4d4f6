// SPDX-License-Identifier: GPL-2.0
//! The steps of lg's own on its way to the Guest's first instruction, and when each was done.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The steps so far. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Steps(Arc<Mutex<Vec<(&'static str, Instant)>>>);

impl Steps {
    /// What lg has done since the step before was this.
    pub fn done(&self, what: &'static str) {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push((what, Instant::now()));
    }

    /// All of them in their order, with the times at which they were done.
    pub fn all(&self) -> Vec<(&'static str, Instant)> {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.clone()
    }
}
