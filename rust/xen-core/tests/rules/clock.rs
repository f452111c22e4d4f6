// SPDX-License-Identifier: GPL-2.0

use xen_abi::vcpu::{VcpuTimeInfo, TSC_STABLE};
use xen_core::clock::{until, Clock};

/// What a kernel computes (linux:arch/x86/include/asm/pvclock.h).
fn kernels(info: &VcpuTimeInfo, tsc: u64) -> u64 {
    let delta = u128::from(tsc - info.tsc_timestamp) << info.tsc_shift;
    info.system_time + ((delta * u128::from(info.tsc_to_system_mul)) >> 32) as u64
}

#[test]
fn kernel_and_shim_agree_and_are_right() {
    for khz in [1, 999, 999_999, 1_000_000, 1_000_001, 2_596_121, 5_000_000] {
        let clock = Clock::new(12_345, khz);
        for seconds in [0, 1, 60, 86_400 * 365] {
            let tsc = 12_345 + seconds * khz * 1000;
            let ns = clock.at(tsc);
            assert_eq!(ns, kernels(&clock.info(true), tsc));
            let wanted = seconds * 1_000_000_000;
            // The fraction has 31 bits at least.
            assert!(wanted.abs_diff(ns) <= wanted >> 22, "{khz} kHz: {ns}");
        }
    }
}

#[test]
fn it_begins_at_0_and_never_runs_backwards() {
    let clock = Clock::new(1000, 3_000_000);
    assert_eq!(clock.at(0), 0);
    assert_eq!(clock.at(1000), 0);
    let mut last = 0;
    for tsc in (1000..100_000).step_by(7) {
        assert!(clock.at(tsc) >= last);
        last = clock.at(tsc);
    }
}

#[test]
fn a_kernel_may_trust_it_where_the_host_does() {
    let clock = Clock::new(1, 2_000_000);
    assert_eq!(clock.info(false).flags, 0);
    let info = clock.info(true);
    assert_eq!(info.flags, TSC_STABLE);
    assert_eq!(info.version % 2, 0);
    assert_ne!(info.version, 0);
}

#[test]
fn a_frequency_of_0_is_no_division_by_0() {
    let _ = Clock::new(0, 0).at(u64::MAX);
}

#[test]
fn the_past_is_now() {
    assert_eq!(until(10, 5), 0);
    assert_eq!(until(5, 10), 5);
}
