// SPDX-License-Identifier: GPL-2.0
//! What is done before the kernel's first instruction.

use crate::vcpu::{entries, vcpu};
use crate::{cpu, domain, memory};
use core::sync::atomic::Ordering::SeqCst;
use lguest_call::{hypercall, irq, shared_read, shared_write};
use xen_abi::handover::{MAGIC, VERSION};
use xen_abi::vcpu::{SharedInfo, VcpuInfo, LEGACY_VCPUS};
use xen_core::clock::Clock;

/// Prepares the boot CPU to enter the kernel, as Xen's domain builder would: `rip`, `rsp`, `rsi` and nothing else.
pub(crate) fn start(handover: u64) {
    memory::set_handover(handover);
    let handover = memory::handover();
    assert!(
        handover.magic == MAGIC && handover.version == VERSION,
        "the Launcher is of another version"
    );
    // SAFETY: the assembly has just come here on the boot CPU, for the first time.
    let cpu = unsafe { vcpu(0) };
    let entries = entries(0);
    let set = hypercall::set_entries(entries.syscall, entries.event_user, entries.event_kernel);
    assert_eq!(set, 0, "SET_ENTRIES");
    let set = hypercall::set_monitor(entries.hypercall, handover.root);
    assert_eq!(set, 0, "SET_MONITOR");
    start_clock(handover.shared_info);
    cpu.set_info(handover.shared_info);
    for i in 1..LEGACY_VCPUS {
        let mask = i * core::mem::size_of::<VcpuInfo>() + 1;
        memory::write_at(handover.shared_info + mask as u64, 1_u8);
    }
    cpu.info().mask.store(1, SeqCst);
    cpu.deadline = u64::MAX;
    cpu.kernel_sp = handover.stack & !15;
    shared_write!(kernel_rsp, cpu.kernel_sp);
    // Faults of programs go to the kernel as they come, and Linux looks whether there is anything to do.
    shared_write!(takes_spurious, 1);
    cpu.cr3 = handover.cr3;
    assert_eq!(hypercall::write_cr3(handover.cr3), 0, "WRITE_CR3");
    cpu.frame.rip = handover.entry;
    cpu.frame.rsp = handover.stack;
    cpu.frame.rsi = handover.start_info;
}

/// System time 0 is now. The wall clock and the clock of the first vCPU go to the domain's page at GPA `shared_info`.
fn start_clock(shared_info: u64) {
    use core::mem::offset_of;
    let tsc = irq::rdtsc();
    let clock = Clock::new(tsc, shared_read!(tsc_khz));
    domain::start_clock(clock);
    let time = offset_of!(VcpuInfo, time) as u64;
    memory::write_at(shared_info + time, clock.info(cpu::tsc_is_stable()));
    let since = Clock::new(shared_read!(wall_tsc), shared_read!(tsc_khz)).at(tsc);
    let wall = shared_read!(wall_ns) + since;
    let (seconds, ns) = (wall / 1_000_000_000, wall % 1_000_000_000);
    for (offset, value) in [
        (offset_of!(SharedInfo, wc_sec), seconds),
        (offset_of!(SharedInfo, wc_nsec), ns),
        (offset_of!(SharedInfo, wc_sec_hi), seconds >> 32),
        (offset_of!(SharedInfo, wc_version), 2),
    ] {
        memory::write_at(shared_info + offset as u64, value as u32);
    }
}
