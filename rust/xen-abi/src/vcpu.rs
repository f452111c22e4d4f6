// SPDX-License-Identifier: GPL-2.0
//! What a vCPU and its hypervisor share, traps, and returns from them (xen.h, arch-x86/xen.h, callback.h, vcpu.h and
//! sched.h of Xen's public headers).

/// What a vCPU's kernel and hypervisor tell each other all the time.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VcpuInfo {
    /// Not 0: events are pending.
    pub evtchn_upcall_pending: u8,
    /// Not 0: no event is delivered. This is the kernel's interrupt flag, inverted.
    pub evtchn_upcall_mask: u8,
    /// Padding.
    pub pad: [u8; 6],
    /// A bit for each word of `SharedInfo::evtchn_pending`.
    pub evtchn_pending_sel: u64,
    /// The address of the last page fault.
    pub cr2: u64,
    /// Padding.
    pub pad2: u64,
    /// The clock.
    pub time: VcpuTimeInfo,
}

/// The clock: `system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32` nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while it is being written.
    pub version: u32,
    /// Padding.
    pub pad0: u32,
    /// TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds since the domain began.
    pub system_time: u64,
    /// Fraction of 2^32.
    pub tsc_to_system_mul: u32,
    /// To the left; negative: to the right.
    pub tsc_shift: i8,
    /// [`TSC_STABLE`].
    pub flags: u8,
    /// Padding.
    pub pad1: [u8; 2],
}

/// In `VcpuTimeInfo::flags`: the clocks of all vCPUs agree.
pub const TSC_STABLE: u8 = 1;

/// vCPUs that a [`SharedInfo`] has room for.
pub const LEGACY_VCPUS: usize = 32;

/// The page of the domain.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SharedInfo {
    /// Those of vCPUs that have not registered another.
    pub vcpu_info: [VcpuInfo; LEGACY_VCPUS],
    /// A bit for each port: an event is there.
    pub evtchn_pending: [u64; 64],
    /// A bit for each port: nobody wants to know.
    pub evtchn_mask: [u64; 64],
    /// Odd while the wall clock is being written.
    pub wc_version: u32,
    /// Unix time at system time 0: seconds, low half.
    pub wc_sec: u32,
    /// Nanoseconds.
    pub wc_nsec: u32,
    /// Seconds, high half.
    pub wc_sec_hi: u32,
    /// What the kernel tells of itself, which nobody reads.
    pub arch: [u64; 6],
}

/// An entry of the list for hypercall SET_TRAP_TABLE, which ends with an `address` of 0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapInfo {
    /// Vector.
    pub vector: u8,
    /// The DPL in the low two bits, and [`TRAP_MASKS_EVENTS`].
    pub flags: u8,
    /// Code selector.
    pub cs: u16,
    /// Padding.
    pub pad: u32,
    /// The handler.
    pub address: u64,
}

/// In `TrapInfo::flags`: the handler begins with events masked.
pub const TRAP_MASKS_EVENTS: u8 = 4;

/// What hypercall IRET finds at the stack pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct IretFrame {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    /// Linux always has 0 here.
    pub flags: u64,
    pub rip: u64,
    /// The selector is in the low 16 bits.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Selectors that Xen's ABI has for flat segments beside Linux's own.
pub mod selector {
    #![allow(missing_docs)]
    pub const FLAT_CS64: u16 = 0xe033;
    pub const FLAT_CS32: u16 = 0xe023;
    pub const FLAT_DS: u16 = 0xe02b;
}

/// Argument of CALLBACK_OP's `REGISTER`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CallbackRegister {
    /// One of [`callback`].
    pub kind: u16,
    /// Bit 0: the callback begins with events masked.
    pub flags: u16,
    /// Padding.
    pub pad: u32,
    /// Its first instruction.
    pub address: u64,
}

/// Callbacks, and the command that registers them.
pub mod callback {
    #![allow(missing_docs)]
    pub const REGISTER: u64 = 0;
    pub const EVENT: u16 = 0;
    pub const FAILSAFE: u16 = 1;
    pub const SYSCALL: u16 = 2;
    pub const SYSENTER: u16 = 5;
    pub const SYSCALL32: u16 = 7;
}

/// Argument of VCPU_OP's `INITIALISE`: the state in which a vCPU begins (`struct vcpu_guest_context`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GuestContext {
    /// What FXSAVE stores, if `flags` says so.
    pub fpu: [u64; 64],
    /// [`IN_KERNEL`], [`FAILSAFE_MASKS_EVENTS`], and others.
    pub flags: u64,
    /// Registers.
    pub user_regs: UserRegs,
    /// Handlers of exceptions and of int 0x80, by vector; Xen looks at all of them.
    pub traps: [TrapInfo; 256],
    /// Of the LDT: GVA, and entries.
    pub ldt_base: u64,
    /// See `ldt_base`.
    pub ldt_ents: u64,
    /// Frames of the GDT.
    pub gdt_frames: [u64; 16],
    /// Entries of the GDT.
    pub gdt_ents: u64,
    /// Selector of the stack for what comes from user mode.
    pub kernel_ss: u64,
    /// The stack for what comes from user mode.
    pub kernel_sp: u64,
    /// CR0 to CR7; of CR3 the frame is shifted as in the register.
    pub control: [u64; 8],
    /// DR0 to DR7.
    pub debug: [u64; 8],
    /// As by CALLBACK_OP.
    pub event_callback: u64,
    /// As by CALLBACK_OP.
    pub failsafe_callback: u64,
    /// As by CALLBACK_OP.
    pub syscall_callback: u64,
    /// As by VM_ASSIST.
    pub vm_assist: u64,
    /// FS base.
    pub fs_base: u64,
    /// GS base in kernel mode.
    pub gs_base_kernel: u64,
    /// GS base in user mode.
    pub gs_base_user: u64,
}

/// In `GuestContext::flags`: the vCPU begins in kernel mode.
pub const IN_KERNEL: u64 = 1 << 2;
/// In `GuestContext::flags`: the failsafe callback begins with events masked.
pub const FAILSAFE_MASKS_EVENTS: u64 = 1 << 3;

/// Registers (`struct cpu_user_regs`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub pad0: u16,
    pub saved_upcall_mask: u8,
    pub pad1: [u8; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub es: u64,
    pub ds: u64,
    pub fs: u64,
    pub gs: u64,
}

/// Commands of hypercall VCPU_OP.
pub mod vcpu_op {
    #![allow(missing_docs)]
    pub const INITIALISE: u64 = 0;
    pub const UP: u64 = 1;
    pub const DOWN: u64 = 2;
    pub const IS_UP: u64 = 3;
    pub const REGISTER_RUNSTATE_MEMORY_AREA: u64 = 5;
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    pub const SET_SINGLESHOT_TIMER: u64 = 8;
    pub const STOP_SINGLESHOT_TIMER: u64 = 9;
    pub const REGISTER_VCPU_INFO: u64 = 10;
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: u64 = 13;
}

/// Argument of `SET_SINGLESHOT_TIMER`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// System time at which it fires.
    pub timeout_abs_ns: u64,
    /// Flags, which Linux leaves 0.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}

/// Of what a vCPU's time has gone, in the area of `REGISTER_RUNSTATE_MEMORY_AREA`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RunstateInfo {
    /// 0: it runs.
    pub state: u32,
    /// Padding.
    pub pad: u32,
    /// System time since which that is so; changes whenever something here does.
    pub state_entry_time: u64,
    /// Nanoseconds of running, of waiting for a CPU, of sleeping, of being off.
    pub time: [u64; 4],
}

/// Argument of `REGISTER_VCPU_INFO`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct RegisterVcpuInfo {
    /// The frame in which it lies from now on.
    pub mfn: u64,
    /// Where in that.
    pub offset: u32,
    /// Padding.
    pub pad: u32,
}

/// Commands of hypercall SCHED_OP.
pub mod sched {
    #![allow(missing_docs)]
    pub const YIELD: u64 = 0;
    pub const BLOCK: u64 = 1;
    pub const SHUTDOWN: u64 = 2;
    pub const POLL: u64 = 3;
}

/// Reasons for a `SHUTDOWN`.
pub mod shutdown {
    #![allow(missing_docs)]
    pub const POWEROFF: u32 = 0;
    pub const REBOOT: u32 = 1;
    pub const CRASH: u32 = 3;
}

/// Argument of `POLL`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SchedPoll {
    /// GVA of the ports (`u32`).
    pub ports: u64,
    /// How many.
    pub nr_ports: u32,
    /// Padding.
    pub pad: u32,
    /// System time until which to wait; 0: for ever.
    pub timeout: u64,
}

/// An entry of the list for hypercall MULTICALL.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct MulticallEntry {
    pub op: u64,
    pub result: i64,
    pub args: [u64; 6],
}
