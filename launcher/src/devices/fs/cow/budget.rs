// SPDX-License-Identifier: GPL-2.0
//! This module bounds the memory that a Guest's changes may take.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use rustix::io::Errno;

/// The whole budget in bytes, and how much of it is taken.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `max` bytes.
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicU64::new(0),
        })
    }

    /// All of it, in bytes.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The rest of it, in bytes.
    pub(super) fn left(&self) -> u64 {
        self.max - self.used.load(Ordering::Relaxed)
    }
}

/// A part of a budget, which goes back when this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// `bytes` of `budget`.
    ///
    /// # Errors
    ///
    /// ENOSPC: there is not so much left.
    pub(super) fn new(budget: &Arc<Budget>, bytes: u64) -> io::Result<Self> {
        let mut charge = Self {
            budget: budget.clone(),
            bytes: 0,
        };
        charge.add(bytes)?;
        Ok(charge)
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more; all of them, or, with ENOSPC, none.
    pub(super) fn add(&mut self, bytes: u64) -> io::Result<()> {
        let max = self.budget.max;
        let take = |used: u64| used.checked_add(bytes).filter(|&used| used <= max);
        let used = &self.budget.used;
        match used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => {
                self.bytes += bytes;
                Ok(())
            }
            Err(_) => Err(Errno::NOSPC.into()),
        }
    }

    /// Gives back `bytes`, which were taken.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
