// SPDX-License-Identifier: GPL-2.0
//! What the shim knows of a vCPU. The assembly knows the offsets of the first fields.

use crate::memory;
use core::mem::size_of;
use core::sync::atomic::{AtomicU64, AtomicU8, Ordering::SeqCst};
use lguest_call::abi::{LGUEST_CS_KERNEL, LGUEST_CS_USER32, LGUEST_CS_USER64, LGUEST_SS_USER};
use xen_abi::vcpu::LEGACY_VCPUS;
use xen_core::ports::Words;

/// vCPUs that a domain may have. The assembly has stubs for each.
pub(crate) const VCPUS: usize = LEGACY_VCPUS;
/// Bytes of a vCPU's stack in the shim.
pub(crate) const STACK_SIZE: usize = 32 * 1024;

/// CS of lg's frames for kernel mode, and the selectors of user mode, which the CPU has in both.
pub(crate) const KERNEL_CS: u64 = LGUEST_CS_KERNEL as u64;
pub(crate) const USER_CS: u64 = LGUEST_CS_USER64 as u64;
pub(crate) const USER_CS32: u64 = LGUEST_CS_USER32 as u64;
pub(crate) const USER_SS: u64 = LGUEST_SS_USER as u64;

/// The interrupted state, or the one to resume. After a hypercall RBX, RBP and R12 to R15 are not in here but still in the
/// CPU: a function call keeps them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) r8: u64,
    pub(crate) r9: u64,
    pub(crate) r10: u64,
    pub(crate) r11: u64,
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    // From here on as IRETQ pops it.
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

impl Frame {
    /// A general register, by the CPU's number, of which the low four bits count.
    pub(crate) fn register(&self, number: u8) -> u64 {
        match number & 15 {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            4 => self.rsp,
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            12 => self.r12,
            13 => self.r13,
            14 => self.r14,
            _ => self.r15,
        }
    }
}

/// A handler that the kernel registered; its address is 0 if it has none.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Trap {
    pub(crate) address: u64,
    /// As `xen_abi::vcpu::TrapInfo` has them.
    pub(crate) flags: u8,
}

/// `xen_abi::vcpu::VcpuInfo`, as both sides write it.
#[repr(C)]
pub(crate) struct Info {
    pub(crate) upcall: AtomicU8,
    pub(crate) mask: AtomicU8,
    pad: [u8; 6],
    pub(crate) selector: AtomicU64,
    pub(crate) cr2: AtomicU64,
}

/// Where the [`Info`] of each vCPU is: a GVA in the alias. All of them raise ports of each other's.
pub(crate) static INFOS: [AtomicU64; VCPUS] = [const { AtomicU64::new(0) }; VCPUS];

/// What vCPU `id`, which there is, shares with its kernel.
pub(crate) fn info_of(id: u32) -> &'static Info {
    // SAFETY: the word is an address in the alias of 64 bytes of RAM, aligned to 8 (`set_info` alone writes it, for each
    // vCPU that there is before the kernel's first instruction), and an Info is atomics.
    unsafe { &*(INFOS[id as usize].load(SeqCst) as *const Info) }
}

/// Shares with vCPU `id` the [`Info`] at `gpa`, which is a multiple of 8 and RAM for 64 bytes.
pub(crate) fn set_info(id: u32, gpa: u64) {
    INFOS[id as usize].store(memory::address(gpa), SeqCst);
}

/// The words by which a port of vCPU `id`'s, which there is, is raised.
pub(crate) fn words_of(id: u32) -> Words<'static> {
    let info = info_of(id);
    let domain = memory::shared_info();
    Words {
        pending: &domain.pending,
        mask: &domain.mask,
        selector: &info.selector,
        upcall: &info.upcall,
    }
}

/// A virtual CPU. All bytes 0 is its state before `boot::start` or VCPU_OP's `INITIALISE`.
///
/// Only the vCPU itself has it: who initialises it does so before it is turned on for the first time.
#[repr(C)]
pub(crate) struct Vcpu {
    pub(crate) frame: Frame,
    /// What the frame is of: 0 for the kernel, else the program's code selector.
    pub(crate) user: u64,
    /// The kernel's stack for what comes from user mode; a multiple of 16.
    pub(crate) kernel_sp: u64,
    /// The kernel's handler of system calls.
    pub(crate) syscall: u64,
    /// That of page faults, if it masks events.
    pub(crate) page_fault: u64,
    /// Registers that the assembly needs for a moment.
    pub(crate) saved: [u64; 4],
    /// Its stack pointer in here when it was turned off, or 0 if it never was.
    pub(crate) off_sp: u64,

    pub(crate) id: u32,
    /// The kernel's handlers of events, and of frames that cannot be resumed.
    pub(crate) event: Trap,
    pub(crate) failsafe: Trap,
    /// Those of the fast system calls of 32-bit code.
    pub(crate) sysenter: Trap,
    pub(crate) syscall32: Trap,
    pub(crate) traps: [Trap; 256],
    /// GPA of the root in use.
    pub(crate) cr3: u64,
    /// GPA of the GDT, or 0.
    pub(crate) gdt: u64,
    /// What lg has as TLS segments.
    pub(crate) tls: [u64; 3],
    /// What lg has as CPU and node number.
    pub(crate) cpu_node: u32,
    /// Bases of FS, of GS in kernel mode and of GS in user mode, which it is turned on with.
    pub(crate) bases: [u64; 3],
    /// Debug registers 0 to 3 and 7 as the kernel wrote them.
    pub(crate) debug: [u64; 8],
    /// The I/O privilege level, 3 if programs may have all ports; or a bitmap says which, at a pointer of the kernel's, for so
    /// many ports.
    pub(crate) iopl: u32,
    pub(crate) io_bitmap: u64,
    pub(crate) io_ports: u32,
    /// System time at which the kernel's timer fires; `u64::MAX`: never.
    pub(crate) deadline: u64,
    pub(crate) stack: Stack,
}

/// A stack.
#[repr(C, align(16))]
pub(crate) struct Stack([u8; STACK_SIZE]);

impl Vcpu {
    /// What it shares with the kernel.
    pub(crate) fn info(&self) -> &'static Info {
        info_of(self.id)
    }

    /// Are events masked?
    pub(crate) fn masked(&self) -> bool {
        self.info().mask.load(SeqCst) != 0
    }

    /// Masks events, or not.
    pub(crate) fn mask(&self, masked: bool) {
        self.info().mask.store(masked.into(), SeqCst);
    }
}

/// Where a vCPU's stubs are (GVAs).
#[repr(C)]
pub(crate) struct Entries {
    /// For a program's SYSCALL.
    pub(crate) syscall: u64,
    /// For events from user mode.
    pub(crate) event_user: u64,
    /// For events from kernel mode.
    pub(crate) event_kernel: u64,
    /// For the kernel's SYSCALL.
    pub(crate) hypercall: u64,
    /// For its being turned on.
    pub(crate) begin: u64,
}

extern "C" {
    static shim_entries: [Entries; VCPUS];
    static mut shim_vcpus: [Vcpu; VCPUS];
}

/// The stubs of vCPU `id`, which is below [`VCPUS`].
pub(crate) fn entries(id: u32) -> &'static Entries {
    // SAFETY: the table is constant.
    unsafe { &shim_entries[id as usize] }
}

/// vCPU `id`, which is below [`VCPUS`].
///
/// # Safety
///
/// Nobody has another reference to it: the caller runs on it, and comes from the assembly or does not go back there; or it
/// has never been on, and nobody else initialises it.
pub(crate) unsafe fn vcpu(id: u32) -> &'static mut Vcpu {
    // SAFETY: all bytes 0 is a Vcpu; that it is exclusive is the caller's promise.
    unsafe { &mut *core::ptr::addr_of_mut!(shim_vcpus[id as usize]) }
}

/// The vCPU on whose stack `local` is.
pub(crate) fn whose_stack<T>(local: &T) -> u32 {
    let first = core::ptr::addr_of!(shim_vcpus) as usize;
    let at = core::ptr::from_ref(local) as usize;
    (at.wrapping_sub(first) / size_of::<Vcpu>()).min(VCPUS - 1) as u32
}
