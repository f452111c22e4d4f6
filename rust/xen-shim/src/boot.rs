// SPDX-License-Identifier: GPL-2.0
//! What is done before the kernel's first instruction.

use crate::vcpu::{self, vcpu, Vcpu, VCPUS};
use crate::{call, cpu, domain, memory, trap};
use core::mem::{offset_of, size_of};
use lguest_call::{irq, shared_read};
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
    assert!(
        (1..=VCPUS as u32).contains(&handover.vcpus),
        "the Launcher has {} vCPUs",
        handover.vcpus
    );
    start_clock(handover.shared_info);
    for id in 0..handover.vcpus {
        vcpu::set_info(id, handover.shared_info + info_at(id as usize));
    }
    for i in 0..LEGACY_VCPUS {
        let mask = info_at(i) + offset_of!(VcpuInfo, evtchn_upcall_mask) as u64;
        memory::write_at(handover.shared_info + mask, 1_u8);
    }
    // SAFETY: the assembly has just come here on the boot CPU, for the first time.
    let cpu = unsafe { vcpu(0) };
    cpu.deadline = u64::MAX;
    cpu.kernel_sp = handover.stack & !15;
    cpu.cr3 = handover.cr3;
    cpu.frame.rip = handover.entry;
    cpu.frame.rsp = handover.stack;
    cpu.frame.rsi = handover.start_info;
    cpu::settle(cpu);
}

/// Prepares another vCPU, which has been turned on for the first time, to enter the kernel with its frame.
pub(crate) fn begin(cpu: &mut Vcpu) {
    cpu::settle(cpu);
    call::take_segments(cpu);
    trap::deliver_pending(cpu);
}

/// Where in the domain's page the info of a vCPU is that has not registered another.
const fn info_at(id: usize) -> u64 {
    (id * size_of::<VcpuInfo>()) as u64
}

/// System time 0 is now. The wall clock and the clocks of all vCPUs go to the domain's page at GPA `shared_info`.
fn start_clock(shared_info: u64) {
    let tsc = irq::rdtsc();
    let clock = Clock::new(tsc, shared_read!(tsc_khz));
    domain::start_clock(clock);
    for i in 0..LEGACY_VCPUS {
        let time = info_at(i) + offset_of!(VcpuInfo, time) as u64;
        memory::write_at(shared_info + time, clock.info(cpu::tsc_is_stable()));
    }
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
