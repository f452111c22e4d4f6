/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The contract of lg: everything the Guest, the Launcher and the Host may know of each other is in
 * this file.
 *
 * Three programs read it.  The Guest (a patched Linux, or a bare program) reads part 1, the
 * Launcher reads part 1 to load a Guest and part 2 to drive /dev/lguest, the Host module reads
 * both.  Rust gets it through bindgen, so that there is only one copy of every number.
 *
 * Version rules: LGUEST_ABI_VERSION changes when something here changes meaning; additions come
 * with a feature bit or a new hypercall, which is -ENOSYS where it is unknown (part 1), or with a
 * new ioctl, which is -ENOTTY (part 2); a number, once given, is never given again.
 *
 * Words: "guest kernel mode" and "guest user mode" are virtual; the CPU runs both at CPL3.  A GVA
 * is a Guest virtual address, a GPA a Guest physical one, an HVA an address in the Launcher.
 */
#ifndef _UAPI_LINUX_LGUEST_H
#define _UAPI_LINUX_LGUEST_H

#include <linux/types.h>
#include <linux/ioctl.h>

#define LGUEST_ABI_VERSION	1

/* --------------------------------------------------------------------------------
 * Part 1: Guest and Host
 */

/*
 * The ELF note by which a kernel says "I can run here".  Name "Lguest" (n_namesz 7), type
 * LGUEST_NOTE_ENTRY, descriptor struct lguest_note.  The Launcher refuses an image without it
 * before it boots.
 */
#define LGUEST_NOTE_NAME	"Lguest"
#define LGUEST_NOTE_ENTRY	1

struct lguest_note {
	__u32 abi_version;	/* LGUEST_ABI_VERSION the kernel was built with */
	__u32 features;		/* features it cannot do without; none are defined yet, so 0 */
	__u64 entry;		/* GVA of the first instruction */
};

/*
 * Another note of that name, whose descriptor is a __u32: with how many vCPUs the kernel can do
 * something.  The Launcher gives a Linux no more, and one that does not say gets one.
 */
#define LGUEST_NOTE_VCPUS	2

/*
 * State at the entry point: Guest kernel mode, virtual interrupts off, CR3 at tables which the
 * Launcher prepared: every PT_LOAD segment at its p_vaddr, all of RAM at GVA == GPA and at
 * LGUEST_PAGE_OFFSET + GPA, 4-level, supervisor.  They, the boot_params and the command line lie
 * below 1 MiB.  RSI holds the GPA of the boot_params (whose hdr.hardware_subarch is
 * LGUEST_SUBARCH), the other registers are 0: no stack, FS and GS bases 0.
 */
#define LGUEST_PAGE_OFFSET	0xffff888000000000ULL
#define LGUEST_SUBARCH		1	/* X86_SUBARCH_LGUEST of asm/bootparam.h */

/*
 * A hypercall is SYSCALL in Guest kernel mode: number in RAX, arguments in RDI, RSI, RDX, R10, R8;
 * result in RAX (0, or a negative errno); RCX and R11 are lost, every other register is kept.  A
 * number or an argument that makes no sense either returns -EINVAL/-ENOSYS or kills the Guest with
 * a reason, as each says.
 */

/*
 * Return from an event or a system call; the plain case costs no exit.  Resumes what lguest_shared
 * holds: RIP, CS, RFLAGS, RSP, RAX, RCX, R11, and for user mode user_gs_base; the other registers
 * go through as they are.  CS is one of LGUEST_CS_*, and says which mode.  RFLAGS.IF becomes the
 * virtual interrupt flag in the same step; Guest user mode always runs with it set.  Does not
 * return; a bad frame raises #GP at the SYSCALL.
 */
#define LHCALL_ERET		0
/*
 * Register the entry points: RDI for SYSCALL from user mode, RSI for events from user mode, RDX for
 * events from kernel mode.  A non-canonical GVA, or one outside the upper half, is -EINVAL.
 */
#define LHCALL_SET_ENTRIES	1
/*
 * Load CR3 with RDI.  Bits 11:0 (a PCID) are ignored.  Without bit 63 the cached user half of this
 * root is dropped.  A root outside RAM kills the Guest.
 */
#define LHCALL_WRITE_CR3	2
/*
 * Drop cached translations: RDI is one of LGUEST_FLUSH_*, RSI a GVA for LGUEST_FLUSH_ONE, and
 * RSI and RDX the first GVA and the one behind the last for LGUEST_FLUSH_RANGE, all in one half.
 */
#define LHCALL_FLUSH_TLB	3
#define LGUEST_FLUSH_USER	0	/* the user half of the current root */
#define LGUEST_FLUSH_ALL	1	/* every root, user half and kernel half */
#define LGUEST_FLUSH_ONE	2	/* the page of RSI; kernel half: in all roots */
#define LGUEST_FLUSH_RANGE	3	/* the same for each page in a range */
/* Arm the one-shot timer: LGUEST_VECTOR_TIMER in RDI nanoseconds; ~0 disarms it. */
#define LHCALL_SET_TIMER	4
/* Turn virtual interrupts on and wait for one. */
#define LHCALL_HALT		5
/* Virtual interrupts were turned on while irq_pending was set: deliver now. */
#define LHCALL_IRQ_WINDOW	6
/* The end: RDI is one of LGUEST_SHUTDOWN_*, RSI its argument.  Does not return. */
#define LHCALL_SHUTDOWN		7
#define LGUEST_SHUTDOWN_POWEROFF 0	/* RSI: exit status for the Launcher's caller */
#define LGUEST_SHUTDOWN_RESTART	1
#define LGUEST_SHUTDOWN_PANIC	2	/* RSI: GPA of a NUL-terminated message, or 0 */
/*
 * Write RSI (at most LGUEST_CONSOLE_MAX) bytes of text at GPA RDI to the Launcher's console.  For
 * early messages.
 */
#define LHCALL_CONSOLE		8
#define LGUEST_CONSOLE_MAX	4096
/*
 * Kick a virtqueue: RDI is the GPA of the QueueNotify register that a store would have gone to, RSI
 * the queue's index.
 */
#define LHCALL_NOTIFY		9
/*
 * Set GDT entry LGUEST_TLS_FIRST + RDI (0 to 2) to the descriptor RSI: a DPL3 data segment, or 0.
 */
#define LHCALL_SET_TLS		10
#define LGUEST_TLS_FIRST	12
/*
 * Set the limit that LSL reads from selector 0x7b (GDT entry 15, where Linux keeps CPU and node
 * number) to RDI.
 */
#define LHCALL_SET_CPUNODE	11
/*
 * The Guest's kernel is about to free, or to reuse, the page table at GPA RDI: forget every cached
 * translation of this root.  That saves memory, and a page that is a root again needs no flush.
 */
#define LHCALL_DROP_ROOT	12
/*
 * Put a monitor below the Guest's kernel: code in Guest kernel mode that takes the SYSCALLs of a
 * kernel which speaks another ABI than this one.  RDI is the GVA of its entry point, RSI the GPA
 * of its root.  From then on, and for good:
 *
 * Guest kernel mode finds the monitor's memory in the top-level slots LGUEST_MONITOR_FIRST to
 * LGUEST_MONITOR_CODE of every root.  Their addresses are translated by the tables of RSI,
 * whatever CR3 is, and what other roots have there is not looked at.  The shared pages stay where
 * they are.  For Guest user mode nothing changes: it has no upper half.
 *
 * A SYSCALL in Guest kernel mode is a hypercall only if the instruction behind it is in slot
 * LGUEST_MONITOR_CODE.  Any other arrives at the monitor's entry point, as one from user mode does
 * at its own: .rip and .rflags saved (with the virtual IF), RCX and R11 lost, RSP, GS base and all
 * else as they are, virtual interrupts off.
 *
 * Whatever was cached is dropped.  -EINVAL: the entry point is not in these slots, or the root not
 * a page of RAM.  -EBUSY: there is a monitor already, or another vCPU that is not off.
 *
 * A vCPU that has this monitor already, RSI is its root, gets another entry point: for itself, and
 * those that it starts.  Nothing is dropped, and it does not matter who else is on.
 */
#define LHCALL_SET_MONITOR	13
#define LGUEST_MONITOR_FIRST	256	/* from 0xffff800000000000 */
#define LGUEST_MONITOR_CODE	270	/* the last: from LGUEST_SHARED_VA, 512 GiB */

/*
 * Several vCPUs.  vCPU 0 begins at the entry point, every other one is off until one that runs
 * starts it.  A set of vCPUs is a word with bit N for vCPU N.  A number or a set with a vCPU that
 * the Guest does not have is -EINVAL, and nothing is done.
 *
 * START_VCPU: turn vCPU RDI on.  It begins at GVA RSI in Guest kernel mode, virtual interrupts off
 * and none pending, with RSP from RDX, RDI from R10, CR3 from R8, the other registers 0, FS and GS
 * bases 0, RFLAGS 2 | IF, FPU and XCR0 as vCPU 0 finds them, no TLS entries, and its number as the
 * limit of SET_CPUNODE.  Its entry points, that for NMIs among them, and its monitor are those of
 * the caller.  -EBUSY: it is not off.  -EINVAL: RSI is not canonical, or R8 not a page of RAM.
 */
#define LHCALL_START_VCPU	14
/*
 * Turn this vCPU off, until it is started again.  Does not return; but -EBUSY if all others are
 * off.
 */
#define LHCALL_STOP_VCPU	15
/* Is vCPU RDI on (1) or off (0)?  Of one that is off nothing runs any more. */
#define LHCALL_VCPU_STATE	16
/*
 * Make the virtual interrupt RSI, 0x20 to 0xff, pending on each vCPU of the set RDI, this one
 * perhaps among them; or with RSI LGUEST_VECTOR_NMI an NMI.  One that is off does not get it.
 */
#define LHCALL_SEND_IPI		17
/*
 * FLUSH_TLB with RDI, RSI and RDX, on each vCPU of the set R10: for LGUEST_FLUSH_USER, and in the
 * user half, that is of the root which the vCPU is on.  When it returns no vCPU uses an old
 * translation any more.  One that is not running costs nothing.  (FLUSH_TLB promises that for the
 * caller alone; any other vCPU keeps to it from its next hypercall on, whatever that is.)
 */
#define LHCALL_FLUSH_VCPUS	18
/*
 * Wait, for a lock, until this vCPU is kicked or an NMI comes, or if RDI is not 0 until a virtual
 * interrupt is pending, be they on or off; perhaps for nothing.  A kick that comes before WAIT ends
 * that at once.
 */
#define LHCALL_WAIT		19
/* Kick each vCPU of the set RDI. */
#define LHCALL_KICK		20
/*
 * Turn all vCPUs but this one off, whatever they are at.  When it returns, nothing of them runs
 * any more.  For a panic.
 */
#define LHCALL_STOP_OTHERS	21
/*
 * Register the entry point for NMIs, GVA RDI; 0: they are lost.  One arrives whether virtual
 * interrupts are on or off, but not before RETURN_NMI has ended the one before: in Guest kernel
 * mode, virtual interrupts off.  All registers are as they were, but: RAX holds the GVA of the
 * shared page, RSP is .nmi_rsp, GS base is the kernel's, RFLAGS is 2 | IF.  What was interrupted
 * is in .nmi.  The fields from .irq_enabled to .kernel_rsp are as they were: whoever risks an
 * exception there saves them.  -EINVAL: it is not in the upper half, nor 0.
 */
#define LHCALL_SET_NMI		22
/*
 * Go on with what .nmi says, as ERET does with its own frame.  Does not return; a bad frame, or no
 * NMI that it would be the end of, raises #GP at the SYSCALL.
 */
#define LHCALL_RETURN_NMI	23

#define LHCALL_COUNT		24

/*
 * Virtual interrupt vectors.  Edge-like: a vector is pending once until it is delivered.  Delivery
 * is highest vector first.  There is no EOI and no masking; a Guest that wants a line quiet ignores
 * it.
 */
#define LGUEST_VECTOR_LINE0	0x30	/* the Launcher's line N is vector LINE0 + N */
#define LGUEST_LINES		64
#define LGUEST_VECTOR_TIMER	0xec
#define LGUEST_VECTOR_NMI	2	/* for SEND_IPI: no virtual interrupt, see SET_NMI */

/*
 * Registers of lg's own in the page of a virtio-mmio device, 32 bits each, where the specification
 * has none: the GPA of an aligned 32-bit word of RAM, where the Launcher ORs the reasons of an
 * interrupt (VIRTIO_MMIO_INT_*) before it raises the line, instead of into InterruptStatus.  The
 * driver takes them by an exchange with 0, and acknowledges nothing.  The store to HIGH takes
 * effect, also on reasons that wait already.  Loads say where reasons go: to InterruptStatus if
 * that is 0, as after a reset, after a store of 0 and where no word can be.
 */
#define LGUEST_MMIO_REASONS_LOW		0x0e0
#define LGUEST_MMIO_REASONS_HIGH	0x0e4

/*
 * The shared page of vCPU N, at LGUEST_SHARED_VA + N * 4096 in Guest kernel mode of every root.
 * Both sides treat what the other wrote as hostile: read once, checked, then used.
 *
 * Events (exceptions, interrupts, int 0x80) arrive at one of the registered entry points, in Guest
 * kernel mode with virtual interrupts off.  All registers are as they were, but: RAX holds the GVA
 * of this page (the interrupted RAX is in .rax), RSP is .kernel_rsp when user mode was interrupted,
 * else the interrupted RSP rounded down to 16, GS base is the kernel's, and RFLAGS is 2 | IF.  The
 * stub pushes its own frame from .ss to .error_code, then clears .event.  An exception while .event
 * is still set is a double fault and kills the Guest.
 *
 * A SYSCALL from user mode arrives with .rip, .rflags saved, RCX and R11 lost, RSP still the
 * user's, GS base the kernel's, virtual interrupts off.
 *
 * The fast system calls of 32-bit code arrive as #GP, with a bit in .error_code that no CPU sets.
 * Nothing is done but that: .rip is at the SYSENTER, which on some CPUs is #UD instead, or behind
 * the SYSCALL, which is #UD on others and where RCX and R11 are lost.
 *
 * XCR0 starts with x87, SSE and those of AVX and AVX-512 that the Host has.  The Guest's kernel may
 * turn them off and on by XSETBV; it gets no other, whatever its CPU has.
 */
#define LGUEST_SHARED_VA	0xffff870000000000ULL
/* The selectors in there, with Linux's numbers.  The CPU runs all modes with those of user mode. */
#define LGUEST_CS_KERNEL	0x10
#define LGUEST_SS_KERNEL	0x18
#define LGUEST_CS_USER64	0x33
#define LGUEST_CS_USER32	0x23
#define LGUEST_SS_USER		0x2b
#define LGUEST_EVENT_VALID	0x100
#define LGUEST_ERROR_SYSENTER	0x10000	/* SYSENTER, also of 64-bit code */
#define LGUEST_ERROR_SYSCALL32	0x20000	/* SYSCALL of 32-bit code */
/* In .host_features: */
#define LGUEST_HOST_CLEARS_BUFFERS 1	/* empties the CPU's buffers before Guest user mode runs */
#define LGUEST_HOST_TSC_STABLE	2	/* its TSC is the same on all CPUs, and never stops */

/* What an NMI has interrupted. */
struct lguest_nmi {
	__u64 rip;
	__u64 cs;		/* LGUEST_CS_* */
	__u64 rflags;		/* IF is the virtual one */
	__u64 rsp;
	__u64 rax;
	__u64 rcx;
	__u64 r11;
};

struct lguest_shared {
	__u64 irq_enabled;	/* Guest, switcher: virtual RFLAGS.IF; only bit 9 counts */
	__u64 irq_pending;	/* Host: an interrupt waits for irq_enabled; then call IRQ_WINDOW */
	__u64 cr2;		/* Host: address of the last page fault; the Guest may write it */
	__u64 event;		/* Host: vector | LGUEST_EVENT_VALID; Guest: 0, frame copied */
	/*
	 * The interrupted state (Host writes), or the state to resume with LHCALL_ERET (Guest
	 * writes).
	 */
	__u64 error_code;	/* 0 for events without one */
	__u64 rip;
	__u64 cs;		/* LGUEST_CS_* */
	__u64 rflags;		/* IF is the virtual one */
	__u64 rsp;
	__u64 ss;		/* LGUEST_SS_* */
	__u64 rax;
	__u64 rcx;
	__u64 r11;
	__u64 user_gs_base;	/* of user mode: saved on the way in, loaded on the way out */
	__u64 kernel_rsp;	/* Guest: RSP for events from user mode */
	/*
	 * Written once by the Host before the first instruction; what the Guest does to them harms
	 * only itself.
	 */
	__u32 abi_version;
	__u32 vcpu;
	__u64 tsc_khz;		/* frequency of RDTSC */
	__u64 wall_ns;		/* Unix time in ns when ... */
	__u64 wall_tsc;		/* ... RDTSC read this */
	__u64 host_features;	/* LGUEST_HOST_* */
	/*
	 * Guest: not 0 if its kernel takes a page fault of user mode for a page which is there by
	 * now, and for an access that is allowed by now, and tries again; Linux does.  Such faults
	 * come when the Host has guessed wrong, which it does not do twice running for a page.  The
	 * Host reads it when it gives the Guest a page fault of user mode.
	 */
	__u64 takes_spurious;

	/* Of several vCPUs: */
	__u64 preempted;	/* Host: not 0 while the Host has taken its CPU from this vCPU */
	__u64 steal_ns;		/* Host: for how long it has been ready to run and had no CPU */
	__u64 nmi_rsp;		/* Guest: RSP for NMIs */
	struct lguest_nmi nmi;	/* Host, and for RETURN_NMI Guest */
};

/* --------------------------------------------------------------------------------
 * Part 2: Launcher and Host.  Opening /dev/lguest makes a VM; closing it ends it.
 */

#define LGUEST_IOC		0xba
#define LGUEST_MAX_VCPUS	32

struct lguest_info {
	__u32 abi_version;
	__u32 max_vcpus;
	__u32 paging_levels;	/* of the Host: 4 or 5 */
	__u32 tsc_khz;
};

/*
 * RAM: size bytes at GPA gpa are the Launcher's memory at hva.  Page aligned, no overlaps, before
 * the first vCPU.
 */
struct lguest_memory {
	__u64 gpa;
	__u64 size;
	__u64 hva;
};
#define LGUEST_MAX_MEMORY	8	/* regions */
#define LGUEST_MAX_GPA		(1ULL << 38)

/*
 * A vCPU, one after the other from 0 on: that in the state of the entry point above, the others
 * off.
 */
struct lguest_vcpu {
	__u32 id;		/* the number of those that there are */
	__u32 pad;		/* 0 */
	__u64 cr3;		/* GPA of the Launcher's tables */
	__u64 rip;		/* vCPU 0: GVA of the entry point; else 0 */
	__u64 rsi;		/* vCPU 0: GPA of the boot_params; else 0 */
};

/*
 * Hypercall NOTIFY for this register and queue signals the eventfd instead of leaving LGUEST_RUN.
 */
struct lguest_notifyfd {
	__u64 gpa;
	__u32 queue;
	__s32 fd;
};
#define LGUEST_MAX_NOTIFYFDS	64

struct lguest_regs {
	__u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
	__u64 rip, rflags, rsp;
	__u64 fs_base, gs_base;
	__u64 cr2, cr3;
	__u64 user_mode;	/* 0: Guest kernel mode */
};

/* Why LGUEST_RUN came back with 0. */
#define LGUEST_EXIT_MMIO	1	/* a load or a store to a GPA that is not RAM */
#define LGUEST_EXIT_NOTIFY	2	/* NOTIFY without an eventfd */
#define LGUEST_EXIT_CONSOLE	3
#define LGUEST_EXIT_SHUTDOWN	4
#define LGUEST_EXIT_DEATH	5	/* the Guest did what it may not; it will never run again */
#define LGUEST_EXIT_DEBUG	6	/* what LGUEST_SET_DEBUG asked for */
#define LGUEST_EXIT_TRACE	7	/* the trace's ring is full; call again to empty it */

#define LGUEST_REASON_MAX	128

struct lguest_run {
	__u32 vcpu;		/* in: which one */
	__u32 set_regs;		/* in: not 0 to load regs (from r15 to rsp) first; out: 0 */
	__u32 exit;		/* out: LGUEST_EXIT_* */
	__u32 insn_len;		/* out, MMIO: how many bytes of insn could be read */
	union {
		struct {
			__u64 gpa;
			__u64 gva;
			__u8 insn[16];
			__u32 write;
			__u32 pad;
		} mmio;
		struct {
			__u64 gpa;
			__u64 queue;
		} notify;
		struct {
			__u64 gpa;
			__u64 len;
		} console;
		struct {
			__u64 kind;	/* LGUEST_SHUTDOWN_* */
			__u64 arg;
		} shutdown;
		struct {
			char reason[LGUEST_REASON_MAX];	/* NUL-terminated */
		} death;
		struct {
			__u32 vector;	/* 1: a step is done; 3: a breakpoint was hit */
			__u32 pad;
		} debug;
	};
	struct lguest_regs regs;	/* out: always */
};

/*
 * What the Launcher wants to see of the Guest, kernel and programs alike.  0 turns all of it off.
 *
 * A step is one instruction, or the way to the first instruction of the Guest's handler: of an
 * exception, an int 0x80 or a SYSCALL.  What another exit interrupts ends with the next LGUEST_RUN.
 * Virtual interrupts wait meanwhile.  The RFLAGS.TF behind it is the Host's, and shows neither in
 * regs nor in lguest_shared; but a PUSHF that is stepped stores it, and a POPF that is stepped does
 * not set it.  A Guest that steps by itself gets its #DB too.
 *
 * At a breakpoint RIP is behind the INT3.  Those which are not the Launcher's are the Guest's own:
 * hand them on.
 */
struct lguest_debug {
	__u32 vcpu;
	__u32 flags;		/* LGUEST_DEBUG_* */
	__u64 reserved[2];	/* 0 */
};
#define LGUEST_DEBUG_STEP	1	/* leave LGUEST_RUN after each step */
#define LGUEST_DEBUG_BREAKPOINTS 2	/* leave it at a #BP instead of giving that to the Guest */
#define LGUEST_DEBUG_INJECT_BP	4	/* once: the next LGUEST_RUN begins with a #BP */

/* Counts since the VM was made, unless they say "now". */
struct lguest_stats {
	__u64 entries;		/* world switches Host -> Guest */
	__u64 interrupts;	/* exits by an interrupt of the Host's devices */
	__u64 nmis;
	__u64 page_faults;	/* exits by #PF, of which: */
	__u64 pf_filled;	/*   shadow filled */
	__u64 pf_injected;	/*   given to the Guest */
	__u64 pf_spurious;	/*   shadow was right, the TLB was not */
	__u64 pf_mmio;		/*   not RAM */
	__u64 prefilled;	/* put in beside one that faulted, or again after a flush */
	__u64 exceptions;	/* other exceptions given to the Guest */
	__u64 emulated;		/* privileged instructions done for it */
	__u64 irqs;		/* virtual interrupts delivered */
	__u64 halts;
	__u64 direct_syscalls;	/* system calls that never left the switcher */
	__u64 direct_erets;
	__u64 direct_faults;	/* page faults likewise: no exits, and none of pf_injected */
	__u64 sections;		/* run sections: MSRs and FPU changed hands, twice */
	__u64 msr_writes;
	__u64 cr3_loads;
	__u64 tlb_flushes;	/* a CPU forgot what it knew of the Guest: with PCIDs, one tag */
	__u64 shadow_pages;	/* now */
	__u64 shadow_recycled;	/* roots thrown away for want of memory */
	__u64 known_pages;	/* now */
	__u64 hypercalls[32];	/* by number */
};

struct lguest_vcpu_stats {
	__u32 vcpu;		/* in */
	__u32 pad;		/* 0 */
	struct lguest_stats stats; /* out */
};

/*
 * The record: what a vCPU does, in a ring that the Launcher maps.  mmap(2) of the file at offset N
 * * LGUEST_TRACE_OFFSET for vCPU N, without PROT_WRITE, of one page more than the slots have,
 * shows it: a struct lguest_trace_head, and from byte 4096 on the slots.  It holds the file, and
 * so the VM.  A new ring, or none (.pages 0), leaves mappings of the old one as they are.
 *
 * Record N is in slot N % slots.  Without LGUEST_TRACE_OVERWRITE, LGUEST_RUN comes back with
 * LGUEST_EXIT_TRACE while there still is room, and the next one takes all that was written by then
 * as read.  With it the oldest ones go, and who reads while the vCPU runs looks at .written before
 * and after he copies a slot.
 */
struct lguest_trace {
	__u32 vcpu;
	__u32 flags;		/* LGUEST_TRACE_* */
	__u32 pages;		/* of slots, 4 KiB each; 0: no record */
	__u32 pad;		/* 0 */
};
#define LGUEST_TRACE_OVERWRITE	1
/* Every SYSCALL is an exit, and has a record: those that the switcher would do alone, and ERET. */
#define LGUEST_TRACE_CALLS	2
#define LGUEST_TRACE_MAX_PAGES	16384
#define LGUEST_TRACE_OFFSET	(1ULL << 32)

struct lguest_trace_head {
	__u64 written;		/* records so far */
	__u64 slots;
	__u64 lost;		/* records for which there was no slot */
};

/* Why the Guest left. */
#define LGUEST_TRACE_LAUNCHER	0	/* not in: between two LGUEST_RUN, or before the first */
#define LGUEST_TRACE_HYPERCALL	1
#define LGUEST_TRACE_SYSCALL	2	/* of user mode, or to a monitor; stepped, or TRACE_CALLS */
#define LGUEST_TRACE_SYSCALL32	3
#define LGUEST_TRACE_INTERRUPTED 4	/* something of the Host's hit the switcher on the way */
#define LGUEST_TRACE_INTERRUPT	5	/* of the Host's devices, which does not say which */
#define LGUEST_TRACE_NMI	6
#define LGUEST_TRACE_MACHINE_CHECK 7
#define LGUEST_TRACE_PAGE_FAULT	8
#define LGUEST_TRACE_INT80	9	/* an int 0x80 that the Host does not let through */
#define LGUEST_TRACE_PROTECTION	10	/* any other #GP */
#define LGUEST_TRACE_EXCEPTION	11
#define LGUEST_TRACE_IMPOSSIBLE	12	/* a vector that there can't be; it ends the Guest */
#define LGUEST_TRACE_SWITCHER	13	/* an exception in the switcher; so does it */

/* What came of it. */
#define LGUEST_TRACE_FILLED	0x1	/* pf_filled */
#define LGUEST_TRACE_SPURIOUS	0x2	/* pf_spurious */
#define LGUEST_TRACE_INJECTED	0x4	/* pf_injected */
#define LGUEST_TRACE_MMIO	0x8	/* pf_mmio */
#define LGUEST_TRACE_GAVE_EXCEPTION 0x10 /* exceptions: .given */
#define LGUEST_TRACE_GAVE_INTERRUPT 0x20 /* irqs: .given */
#define LGUEST_TRACE_EMULATED	0x40	/* emulated */
#define LGUEST_TRACE_HALTED	0x80	/* halts */
#define LGUEST_TRACE_RETURNED	0x8000	/* LGUEST_RUN came back: .exit, or 0 if it failed */

/*
 * One entry of the Guest, the exit that ended it, and what the Host has done about that up to the
 * next entry.  Times are what RDTSC reads; from one record's .done to the next one's .entered it
 * is being written.
 */
struct lguest_trace_record {
	__u64 number;		/* 0 for the first of a ring; one more each time */
	__u64 entered;		/* the Guest is about to run */
	__u64 left;		/* it has left */
	__u64 done;		/* all is done */
	__u64 rip;		/* at the exit; behind the SYSCALL of a hypercall */
	__u64 rsp;
	__u64 root;		/* CR3 */
	__u64 address;		/* of a page fault */
	__u64 rax;		/* of a hypercall or system call: its number, */
	__u64 arguments[3];	/*   RDI, RSI, RDX, */
	__u64 result;		/*   RAX when all was done, of a hypercall */
	__u32 error;		/* an exception's error code; a page fault's access */
	__u32 direct_syscalls;	/* in this entry, by the switcher alone */
	__u32 direct_erets;
	__u32 spurious;		/* pf_spurious, likewise */
	__u16 reason;		/* LGUEST_TRACE_LAUNCHER ... */
	__u16 did;		/* LGUEST_TRACE_FILLED ... */
	__u8 vector;		/* the exception's */
	__u8 user_mode;		/* 0: it left Guest kernel mode */
	__u8 given;		/* vector of the event that the Guest was given */
	__u8 exit;		/* LGUEST_EXIT_* */
};

/*
 * One of the last exits of a vCPU, which are kept without a record too, 32 of them at most.  In
 * .record are .rip, .user_mode, .reason, .vector, .error, .address, and of a hypercall .rax; the
 * rest is 0.
 */
struct lguest_exit {
	__u32 vcpu;		/* in */
	__u32 back;		/* in: 0, the last; 1, the one before; ... */
	struct lguest_trace_record record; /* out */
};

/*
 * The way to gva in the tables that the CPU walks for the Guest, as the last LGUEST_RUN left them:
 * from the top (.paging_levels of struct lguest_info) to the first entry that is not present or
 * maps a page; behind it, and for the switcher's slot, all is 0.  Addresses in the entries are the
 * Host's business, and 0.
 */
struct lguest_walk {
	__u32 vcpu;
	__u32 user_mode;	/* in: 0, the root of Guest kernel mode; 1, that of user mode */
	__u64 gva;		/* in */
	__u64 entries[5];	/* out */
};

#define LGUEST_GET_INFO		_IOR(LGUEST_IOC, 0, struct lguest_info)
#define LGUEST_ADD_MEMORY	_IOW(LGUEST_IOC, 1, struct lguest_memory)
/* -EINTR: a signal is pending; call again. */
#define LGUEST_CREATE_VCPU	_IOW(LGUEST_IOC, 2, struct lguest_vcpu)
/*
 * Run until there is something for the Launcher.  -EINTR: a signal is pending; call again.
 * -EBUSY: the vCPU is running in another thread.  Halting blocks here, and so does being off.
 * -ENXIO: there is no such vCPU, or the Guest has died or shut down, on whichever vCPU.
 */
#define LGUEST_RUN		_IOWR(LGUEST_IOC, 3, struct lguest_run)
/* Raise line (argument by value, 0 to LGUEST_LINES - 1) of vCPU 0, from any thread. */
#define LGUEST_IRQ_LINE		_IO(LGUEST_IOC, 4)
#define LGUEST_SET_NOTIFYFD	_IOW(LGUEST_IOC, 5, struct lguest_notifyfd)
/* Of all vCPUs together.  -EBUSY: one is running. */
#define LGUEST_GET_STATS	_IOR(LGUEST_IOC, 6, struct lguest_stats)
/*
 * From the next LGUEST_RUN on.  -EBUSY: the vCPU is running in another thread.
 */
#define LGUEST_SET_DEBUG	_IOW(LGUEST_IOC, 7, struct lguest_debug)
/*
 * A new ring, or none, from now on.  -EBUSY: the vCPU is running in another thread; so
 * says mmap(2).
 */
#define LGUEST_SET_TRACE	_IOW(LGUEST_IOC, 8, struct lguest_trace)
/* -EBUSY: the vCPU is running in another thread. */
#define LGUEST_GET_WALK		_IOWR(LGUEST_IOC, 9, struct lguest_walk)
/* Of one vCPU; what is all vCPUs' is 0.  -EBUSY: it is running in another thread. */
#define LGUEST_GET_VCPU_STATS	_IOWR(LGUEST_IOC, 10, struct lguest_vcpu_stats)
/* -EBUSY: the vCPU is running in another thread.  -ENOENT: that one is not kept. */
#define LGUEST_GET_EXIT		_IOWR(LGUEST_IOC, 11, struct lguest_exit)

#endif /* _UAPI_LINUX_LGUEST_H */
