// SPDX-License-Identifier: GPL-2.0
//! The clock of a kernel that nobody has patched for lg.
//!
//! Until it has a clock source, time goes by in ticks, of which its boot loses many. Files of the Host's would then be from
//! the future. The time stamp counter is the Host's and has lost none.

use std::num::NonZero;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{clock_gettime, clock_settime, ClockId};

use crate::machine::time_stamp;
use crate::{Doing, Failure};

/// The Host's time.
pub(crate) struct Clock {
    /// Unix time in nanoseconds, when ...
    pub(crate) wall_ns: u64,
    /// ... the time stamp counter read this.
    pub(crate) tsc: u64,
    /// Its frequency.
    pub(crate) tsc_khz: NonZero<u64>,
}

impl Clock {
    /// Unix time when the counter reads `tsc`.
    fn at(&self, tsc: u64) -> Duration {
        let ticks = u128::from(tsc.saturating_sub(self.tsc));
        let ns = ticks * 1_000_000 / u128::from(self.tsc_khz.get());
        Duration::from_nanos(self.wall_ns.saturating_add(ns as u64))
    }

    /// Steps the kernel's clock, unless it is right.
    pub(crate) fn set(&self) -> Result<(), Failure> {
        // One who is interrupted between reading and setting tries again.
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let (before, right, after) = (now()?, self.at(time_stamp()), now()?);
            if (before..=after).contains(&right) {
                break;
            }
            let right = TimeSpec::from_duration(self.at(time_stamp()));
            clock_settime(ClockId::CLOCK_REALTIME, right).doing("set the clock")?;
        }
        Ok(())
    }
}

fn now() -> Result<Duration, Failure> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).doing("read the clock")?;
    Ok(now.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_the_time() {
        let clock = |tsc_khz| Clock {
            wall_ns: 5_000_000_007,
            tsc: 1000,
            tsc_khz: NonZero::new(tsc_khz).unwrap(),
        };
        let at = |khz, tsc| clock(khz).at(tsc).as_nanos();
        assert_eq!(at(1_000_000, 1000), 5_000_000_007);
        assert_eq!(at(2_000_000, 4_000_001_000), 7_000_000_007);
        assert_eq!(at(1, 1001), 5_001_000_007);
        // That of another CPU may be a little behind.
        assert_eq!(at(2_000_000, 999), 5_000_000_007);
        assert!(at(1, u64::MAX) > 5_000_000_007);
    }
}
