// SPDX-License-Identifier: GPL-2.0

//! Sizes and offsets as a C compiler has them for Xen's public headers.

use core::mem::{offset_of, size_of};
use xen_abi::event_channel::{AllocUnbound, BindIpi, BindPirq, BindVcpu, BindVirq, Port, Status};
use xen_abi::handover::{Handover, Raised};
use xen_abi::memory::{
    E820Entry, Exchange, GrantQuerySize, GrantSetupTable, MachphysMapping, MemoryMap, MmuExtOp,
    MmuUpdate, Reservation,
};
use xen_abi::number::physdev::{SetIobitmap, SetIopl};
use xen_abi::vcpu::{
    CallbackRegister, GuestContext, IretFrame, MulticallEntry, RegisterVcpuInfo, RunstateInfo,
    SchedPoll, SetSingleshotTimer, SharedInfo, TrapInfo, UserRegs, VcpuInfo, VcpuTimeInfo,
};

#[test]
fn the_clock() {
    assert_eq!(size_of::<VcpuTimeInfo>(), 32);
    assert_eq!(offset_of!(VcpuTimeInfo, tsc_timestamp), 8);
    assert_eq!(offset_of!(VcpuTimeInfo, system_time), 16);
    assert_eq!(offset_of!(VcpuTimeInfo, tsc_to_system_mul), 24);
    assert_eq!(offset_of!(VcpuTimeInfo, tsc_shift), 28);
    assert_eq!(offset_of!(VcpuTimeInfo, flags), 29);
}

#[test]
fn what_a_vcpu_shares() {
    assert_eq!(size_of::<VcpuInfo>(), 64);
    assert_eq!(offset_of!(VcpuInfo, evtchn_upcall_mask), 1);
    assert_eq!(offset_of!(VcpuInfo, evtchn_pending_sel), 8);
    assert_eq!(offset_of!(VcpuInfo, cr2), 16);
    assert_eq!(offset_of!(VcpuInfo, time), 32);
}

#[test]
fn what_a_domain_shares() {
    assert_eq!(size_of::<SharedInfo>(), 3136);
    assert_eq!(offset_of!(SharedInfo, evtchn_pending), 2048);
    assert_eq!(offset_of!(SharedInfo, evtchn_mask), 2560);
    assert_eq!(offset_of!(SharedInfo, wc_version), 3072);
    assert_eq!(offset_of!(SharedInfo, wc_sec), 3076);
    assert_eq!(offset_of!(SharedInfo, wc_nsec), 3080);
    assert_eq!(offset_of!(SharedInfo, wc_sec_hi), 3084);
    assert_eq!(offset_of!(SharedInfo, arch), 3088);
}

#[test]
fn traps_and_returns() {
    assert_eq!(size_of::<TrapInfo>(), 16);
    assert_eq!(offset_of!(TrapInfo, cs), 2);
    assert_eq!(offset_of!(TrapInfo, address), 8);
    assert_eq!(size_of::<IretFrame>(), 72);
    assert_eq!(offset_of!(IretFrame, rip), 32);
    assert_eq!(size_of::<CallbackRegister>(), 16);
    assert_eq!(offset_of!(CallbackRegister, address), 8);
}

#[test]
fn what_a_vcpu_begins_with() {
    assert_eq!(size_of::<RunstateInfo>(), 48);
    assert_eq!(offset_of!(RunstateInfo, state_entry_time), 8);
    assert_eq!(size_of::<UserRegs>(), 200);
    assert_eq!(offset_of!(UserRegs, rsi), 104);
    assert_eq!(offset_of!(UserRegs, rip), 128);
    assert_eq!(offset_of!(UserRegs, rflags), 144);
    assert_eq!(offset_of!(UserRegs, ss), 160);
    assert_eq!(size_of::<GuestContext>(), 5168);
    assert_eq!(offset_of!(GuestContext, flags), 512);
    assert_eq!(offset_of!(GuestContext, user_regs), 520);
    assert_eq!(offset_of!(GuestContext, traps), 720);
    assert_eq!(offset_of!(GuestContext, gdt_frames), 4832);
    assert_eq!(offset_of!(GuestContext, gdt_ents), 4960);
    assert_eq!(offset_of!(GuestContext, kernel_sp), 4976);
    assert_eq!(offset_of!(GuestContext, control), 4984);
    assert_eq!(offset_of!(GuestContext, event_callback), 5112);
    assert_eq!(offset_of!(GuestContext, syscall_callback), 5128);
    assert_eq!(offset_of!(GuestContext, fs_base), 5144);
    assert_eq!(offset_of!(GuestContext, gs_base_user), 5160);
}

#[test]
fn io_ports() {
    assert_eq!(size_of::<SetIopl>(), 4);
    assert_eq!(size_of::<SetIobitmap>(), 16);
    assert_eq!(offset_of!(SetIobitmap, nr_ports), 8);
}

#[test]
fn lists() {
    assert_eq!(size_of::<MmuUpdate>(), 16);
    assert_eq!(size_of::<MmuExtOp>(), 24);
    assert_eq!(offset_of!(MmuExtOp, arg1), 8);
    assert_eq!(offset_of!(MmuExtOp, arg2), 16);
    assert_eq!(size_of::<MulticallEntry>(), 64);
    assert_eq!(offset_of!(MulticallEntry, result), 8);
    assert_eq!(offset_of!(MulticallEntry, args), 16);
}

#[test]
fn memory() {
    assert_eq!(size_of::<MemoryMap>(), 16);
    assert_eq!(offset_of!(MemoryMap, buffer), 8);
    assert_eq!(size_of::<E820Entry>(), 20);
    assert_eq!(size_of::<MachphysMapping>(), 24);
    assert_eq!(size_of::<Reservation>(), 32);
    assert_eq!(offset_of!(Reservation, domid), 24);
    assert_eq!(size_of::<Exchange>(), 72);
    assert_eq!(offset_of!(Exchange, nr_exchanged), 64);
}

#[test]
fn grants() {
    assert_eq!(size_of::<GrantSetupTable>(), 24);
    assert_eq!(offset_of!(GrantSetupTable, nr_frames), 4);
    assert_eq!(offset_of!(GrantSetupTable, status), 8);
    assert_eq!(offset_of!(GrantSetupTable, frame_list), 16);
    assert_eq!(size_of::<GrantQuerySize>(), 16);
    assert_eq!(offset_of!(GrantQuerySize, max_nr_frames), 8);
    assert_eq!(offset_of!(GrantQuerySize, status), 12);
}

#[test]
fn vcpus() {
    assert_eq!(size_of::<SetSingleshotTimer>(), 16);
    assert_eq!(size_of::<RegisterVcpuInfo>(), 16);
    assert_eq!(offset_of!(RegisterVcpuInfo, offset), 8);
    assert_eq!(size_of::<SchedPoll>(), 24);
    assert_eq!(offset_of!(SchedPoll, nr_ports), 8);
    assert_eq!(offset_of!(SchedPoll, timeout), 16);
}

#[test]
fn event_channels() {
    assert_eq!(size_of::<AllocUnbound>(), 8);
    assert_eq!(size_of::<BindVirq>(), 12);
    assert_eq!(size_of::<BindIpi>(), 8);
    assert_eq!(size_of::<BindPirq>(), 12);
    assert_eq!(size_of::<Port>(), 4);
    assert_eq!(size_of::<BindVcpu>(), 8);
    assert_eq!(size_of::<Status>(), 24);
    assert_eq!(offset_of!(Status, status), 8);
    assert_eq!(offset_of!(Status, what), 16);
}

#[test]
fn what_is_lgs_own_fits_a_page() {
    assert!(size_of::<Handover>() <= 4096);
    assert!(size_of::<Raised>() <= 4096);
}
