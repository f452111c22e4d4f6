// SPDX-License-Identifier: GPL-2.0
//! Hypercalls: SYSCALL in Guest kernel mode. `LHCALL_*` in the header says what each does.

use crate::abi::{
    LHCALL_CONSOLE, LHCALL_DROP_ROOT, LHCALL_FLUSH_TLB, LHCALL_FLUSH_VCPUS, LHCALL_HALT,
    LHCALL_IRQ_WINDOW, LHCALL_KICK, LHCALL_NOTIFY, LHCALL_SEND_IPI, LHCALL_SET_CPUNODE,
    LHCALL_SET_ENTRIES, LHCALL_SET_MONITOR, LHCALL_SET_NMI, LHCALL_SET_TIMER, LHCALL_SET_TLS,
    LHCALL_SHUTDOWN, LHCALL_START_VCPU, LHCALL_STOP_OTHERS, LHCALL_STOP_VCPU, LHCALL_VCPU_STATE,
    LHCALL_WAIT, LHCALL_WRITE_CR3,
};
use core::arch::asm;

/// Calls the Host: `args` go to RDI, RSI, RDX, R10 and R8. The result is 0 or a negative errno.
pub fn hypercall(number: u64, args: [u64; 5]) -> i64 {
    let result;
    // SAFETY: the Host keeps every register but RAX, RCX and R11, and writes no memory of ours that Rust knows of.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn call2(number: u32, first: u64, second: u64) -> i64 {
    hypercall(u64::from(number), [first, second, 0, 0, 0])
}

/// Registers the entry points (GVAs) for system calls, for events from user mode and for events from kernel mode.
pub fn set_entries(syscall: u64, user_event: u64, kernel_event: u64) -> i64 {
    hypercall(
        u64::from(LHCALL_SET_ENTRIES),
        [syscall, user_event, kernel_event, 0, 0],
    )
}

/// Loads CR3 with `cr3`: a GPA, and bit 63 to keep the cached user half.
pub fn write_cr3(cr3: u64) -> i64 {
    call2(LHCALL_WRITE_CR3, cr3, 0)
}

/// Drops cached translations: `kind` is one of `LGUEST_FLUSH_*`, `gva` matters for `LGUEST_FLUSH_ONE` alone.
pub fn flush_tlb(kind: u32, gva: u64) -> i64 {
    call2(LHCALL_FLUSH_TLB, u64::from(kind), gva)
}

/// Tells the Host that the page table at GPA `root` goes away.
pub fn drop_root(root: u64) -> i64 {
    call2(LHCALL_DROP_ROOT, root, 0)
}

/// Arms the timer: vector `LGUEST_VECTOR_TIMER` in `ns` nanoseconds; `u64::MAX` disarms it.
pub fn set_timer(ns: u64) -> i64 {
    call2(LHCALL_SET_TIMER, ns, 0)
}

/// Turns virtual interrupts on and waits for one.
pub fn halt() -> i64 {
    call2(LHCALL_HALT, 0, 0)
}

/// Has the interrupts delivered that waited for `irq_enabled`.
pub fn irq_window() -> i64 {
    call2(LHCALL_IRQ_WINDOW, 0, 0)
}

/// Ends the Guest: `kind` is one of `LGUEST_SHUTDOWN_*`.
pub fn shutdown(kind: u32, argument: u64) -> ! {
    call2(LHCALL_SHUTDOWN, u64::from(kind), argument);
    unreachable!("the Host came back from SHUTDOWN");
}

/// Prints `len` bytes at GPA `gpa` on the Launcher's console.
pub fn console(gpa: u64, len: u64) -> i64 {
    call2(LHCALL_CONSOLE, gpa, len)
}

/// Sets GDT entry `LGUEST_TLS_FIRST + index`.
pub fn set_tls(index: u64, descriptor: u64) -> i64 {
    call2(LHCALL_SET_TLS, index, descriptor)
}

/// Sets the limit that LSL reads from selector 0x7b.
pub fn set_cpunode(limit: u64) -> i64 {
    call2(LHCALL_SET_CPUNODE, limit, 0)
}

/// Puts a monitor below the kernel: `entry` is the GVA of its entry point, `root` the GPA of its root.
pub fn set_monitor(entry: u64, root: u64) -> i64 {
    call2(LHCALL_SET_MONITOR, entry, root)
}

/// Kicks a queue: `gpa` is its QueueNotify register.
pub fn notify(gpa: u64, queue: u64) -> i64 {
    call2(LHCALL_NOTIFY, gpa, queue)
}

/// Turns vCPU `id` on, at `rip`, with this stack pointer, `argument` in RDI, and the root at GPA `root`.
pub fn start_vcpu(id: u32, rip: u64, rsp: u64, argument: u64, root: u64) -> i64 {
    hypercall(
        u64::from(LHCALL_START_VCPU),
        [u64::from(id), rip, rsp, argument, root],
    )
}

/// Turns this vCPU off. Comes back only if it is the last one that is on.
pub fn stop_vcpu() -> i64 {
    call2(LHCALL_STOP_VCPU, 0, 0)
}

/// 1 if vCPU `id` is on, 0 if it is off.
pub fn vcpu_state(id: u32) -> i64 {
    call2(LHCALL_VCPU_STATE, u64::from(id), 0)
}

/// Raises `vector` on each vCPU of `set`.
pub fn send_ipi(set: u64, vector: u32) -> i64 {
    call2(LHCALL_SEND_IPI, set, u64::from(vector))
}

/// [`flush_tlb`] on each vCPU of `set`; for `LGUEST_FLUSH_RANGE` up to `end`. None of them uses an old translation
/// afterwards.
pub fn flush_vcpus(set: u64, kind: u32, gva: u64, end: u64) -> i64 {
    hypercall(
        u64::from(LHCALL_FLUSH_VCPUS),
        [u64::from(kind), gva, end, set, 0],
    )
}

/// Waits for [`kick`] or an NMI, and with `interrupts` for one of those as well; or for nothing.
pub fn wait(interrupts: bool) -> i64 {
    call2(LHCALL_WAIT, interrupts.into(), 0)
}

/// Ends the [`wait`] of each vCPU of `set`, or its next one.
pub fn kick(set: u64) -> i64 {
    call2(LHCALL_KICK, set, 0)
}

/// Turns all other vCPUs off, whatever they are at.
pub fn stop_others() -> i64 {
    call2(LHCALL_STOP_OTHERS, 0, 0)
}

/// Registers the entry point for NMIs, a GVA; 0: they are lost.
pub fn set_nmi(entry: u64) -> i64 {
    call2(LHCALL_SET_NMI, entry, 0)
}
