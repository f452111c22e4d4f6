// SPDX-License-Identifier: GPL-2.0
//! System time: nanoseconds since the domain began, which kernel and shim compute alike from the TSC.

use xen_abi::vcpu::{VcpuTimeInfo, TSC_STABLE};

/// How TSC becomes system time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// The TSC at system time 0.
    begin: u64,
    mul: u32,
    shift: i8,
}

impl Clock {
    /// A clock that is at 0 when the TSC is `begin`; the TSC counts `khz` thousands a second (0 counts as 1).
    pub const fn new(begin: u64, khz: u64) -> Self {
        let khz = if khz == 0 { 1 } else { khz };
        // The smallest shift with which the fraction fits: only a TSC of 1 GHz or less needs any.
        let mut shift = 0;
        let mut fraction = (1_000_000 << 32) / khz;
        while fraction > u32::MAX as u64 {
            fraction >>= 1;
            shift += 1;
        }
        Self {
            begin,
            mul: fraction as u32,
            shift,
        }
    }

    /// System time when the TSC is `tsc`; before the beginning it is 0.
    pub const fn at(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.begin) as u128;
        (((ticks << self.shift) * self.mul as u128) >> 32) as u64
    }

    /// What the kernel is told. It is written once: the TSC is the Host's. `stable` says whether the Host trusts it; where it
    /// does not, Linux sees to it that the clock does not go back, and programs read it by system calls.
    pub const fn info(&self, stable: bool) -> VcpuTimeInfo {
        VcpuTimeInfo {
            version: 2,
            pad0: 0,
            tsc_timestamp: self.begin,
            system_time: 0,
            tsc_to_system_mul: self.mul,
            tsc_shift: self.shift,
            flags: if stable { TSC_STABLE } else { 0 },
            pad1: [0; 2],
        }
    }
}

/// Nanoseconds from `now` to `then`, both system time; a time that has passed is 0.
pub const fn until(now: u64, then: u64) -> u64 {
    then.saturating_sub(now)
}
