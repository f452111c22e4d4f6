/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The switcher: the few hundred instructions that are in both worlds.
 *
 * This is a position independent blob.  It is assembled into .rodata (so that neither objtool nor
 * the kernel's alternatives rewrite a byte of it, and the kernel maps it read-only wherever it does).
 * These very pages lg's own page tables map executable, at the start of each vCPU's region in the
 * switcher's slot of the address space:
 *
 *	+0x0000	text		this blob, the same physical pages for every vCPU		RX
 *	+0x3000	state		struct State: the registers, both worlds' descriptors		RW
 *	+0x4000	shared		the page the Guest sees as struct lguest_shared			RW
 *	+0x5000	gdt, tss								RW
 *	+0x6000	idt									R
 *	+0x7000	ist stacks	#DF, NMI, #DB, #MC, 1 KiB each				RW
 *
 * Since the text is mapped once per vCPU, RIP-relative addressing reaches that vCPU's own state: no
 * per-CPU register and no swapgs.  Everything here is supervisor-only, and mapped under the Host's
 * page tables and under the Guest's.
 *
 * The one rule: at CPL0 nothing outside this region is touched while the Guest's CR3 is loaded.
 * The Host's own translations are global and survive a CR3 load, so a Guest address could reach
 * Host memory.
 *
 * Numbers in braces are filled in by rustc from the Rust definitions (sys/switcher/layout.rs).  In here
 * `SH_` is a field of the shared page, `ST_` one of the state page.
 */
	.section .rodata.lg_switcher, "a", @progbits
	.balign 4096
	.globl lg_switcher_start
lg_switcher_start:

	.set state,	lg_switcher_start + {STATE}
	.set shared,	lg_switcher_start + {SHARED}
	.set gdt,	lg_switcher_start + {GDT}

	.set regs,	state + {ST_REGS}
	.set st_mode,	state + {ST_MODE}

/*
 * There is no near return in here, and no indirect jump or call: where they go first, by prediction,
 * may be of the Guest's making.  scripts/check-switcher looks.
 */

/*
 * Where the CPU leaks what its buffers hold to CPL3 (MDS and its like), empty them.  Last thing on
 * each way to Guest user mode, and from the Host to the Guest, but for the look whether an NMI waits.
 * Changes the flags.
 */
	.macro	clear_buffers
	cmpl	$0, state + {ST_CLEAR_BUFFERS}(%rip)
	je	.Lcleared\@
	verw	state + {ST_VERW}(%rip)
.Lcleared\@:
	.endm

/* Back to who called, by RCX, with the Host's CS. */
	.macro	far_return
	popq	%rcx
	pushq	${HOST_CS}
	pushq	%rcx
	lretq
	int3
	.endm

/*
 * To the Host from where SYSCALL has left the Guest: RSP is still the Guest's, RCX and R11 hold its RIP and
 * RFLAGS.  Builds the frame that the CPU would have pushed for an exception.
 */
	.macro	syscall_exit cs, vector
	movq	%rsp, regs + {R_RSP}(%rip)
	leaq	regs + {R_RSP}(%rip), %rsp
	pushq	%r11				/* rflags */
	pushq	$\cs
	pushq	%rcx				/* rip */
	pushq	$0				/* error code */
	pushq	$\vector
	jmp	save_and_leave
	.endm

/*
 * Exception and interrupt stubs, 16 bytes apart: the IDT's gate N points at stub N.
 *
 * Entered by: the CPU, IF=0, on the stack of the TSS: for CPL3 that is the end of state.regs, so
 * that the CPU itself writes the frame where it has to go (the IST vectors excepted).  NMIs may
 * come at any point. Pushes: an error code of 0 where the CPU pushes none, then the vector.
 */
	.set vector, 0
	.rept 256
	.balign 16, 0xcc
	endbr64
	.if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
	.elseif (vector == 29) || (vector == 30)
	.else
	pushq	$0
	.endif
	pushq	$vector
	.if vector == 14
	jmp	page_fault
	.elseif (vector == 1) || (vector == 2) || (vector == 8) || (vector == 18)
	jmp	ist_trap
	.else
	jmp	trap
	.endif
	.set vector, vector + 1
	.endr

/*
 * Replay of an interrupt which the CPU took while the Guest ran, 16 bytes apart from +0x1000.
 *
 * Called by: Rust as `extern "C" fn()`, in the Host's world, IF=0. The frame the Host's handler
 * sees must say IF=1: with IF=0 its exit path leaves the timer unarmed.  STI holds interrupts off
 * for one more instruction, so none slips in between.  A machine check (18) keeps IF=0: it can come
 * with IF=0, and ends by an IRET after which an interrupt would be taken before CLI.  An NMI (2) is
 * never raised by INT (see unblock_nmis).
 */
	.balign 4096, 0xcc
	.set vector, 0
	.rept 256
	.balign 16, 0xcc
	endbr64
	.if vector == 2
	jmp	unblock_nmis
	.else
	.if vector != 18
	sti
	.endif
	int	$vector
	cli
	far_return
	.endif
	.set vector, vector + 1
	.endr
	.balign 4096, 0xcc

/*
 * An IRET to the next instruction.  The Host's entry code for NMIs counts on the CPU to block others
 * until it has put its frame where the next one does not overwrite it.  INT does not block them; so
 * lg has the local APIC raise another NMI, and then does here what ends the blocking of the first.
 *
 * Called by: the stub of vector 2 above.
 */
unblock_nmis:
	movl	%ss, %eax
	pushq	%rax
	leaq	8(%rsp), %rax
	pushq	%rax
	pushfq
	movl	%cs, %eax
	pushq	%rax
	leaq	1f(%rip), %rax
	pushq	%rax
	iretq
1:
	far_return

/*
 * lg_switcher_enter - from the Host's world into the Guest's.
 *
 * Called by: Rust as `extern "C" fn()` at the vCPU's alias of this text, IF=0, preemption off, the
 * Host's CR3 (which maps this region), the run section's MSRs loaded, state filled in.  Returns
 * through `leave` when the Guest is out, with state.regs holding the Guest's registers, regs.vector
 * the reason, and everything of the Host as it was.
 *
 * Our IDT comes first and goes last: an NMI between any two of these instructions then finds a
 * handler that is mapped.
 */
	.globl lg_switcher_enter
lg_switcher_enter:
	endbr64
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushfq
	movq	%rsp, state + {ST_HOST_RSP}(%rip)
	rdfsbase %rax
	movq	%rax, state + {ST_HOST_FS_BASE}(%rip)
	rdgsbase %rax
	movq	%rax, state + {ST_HOST_GS_BASE}(%rip)
	sldt	state + {ST_HOST_LDT}(%rip)
	movq	state + {ST_NMI_COUNT_PTR}(%rip), %rax
	movl	state + {ST_NMI_COUNT}(%rip), %edx

	lidt	state + {ST_IDTR}(%rip)
	/*
	 * The Host's handlers can no longer run.  If one for NMIs has since the section began, it may have
	 * let perf write its records to memory again, at addresses which are about to be the Guest's.
	 */
	cmpl	%edx, (%rax)
	jne	not_now
	lgdt	state + {ST_GDTR}(%rip)
	andb	$~2, gdt + {TSS_TYPE}(%rip)	/* LTR refuses a busy TSS */
	movl	${TSS_SELECTOR}, %eax
	ltr	%ax
	/* A call gate in the Launcher's LDT, which would be read from Guest memory, could lead to CPL0. */
	xorl	%eax, %eax
	lldt	%ax
	/* Where the Host's kernel runs with IBRS and its programs do not, nor does the Guest. */
	cmpl	$0, state + {ST_IBRS}(%rip)
	je	1f
	movl	${MSR_SPEC_CTRL}, %ecx
	movl	state + {ST_SPEC_CTRL}(%rip), %eax
	andl	$~1, %eax
	movl	state + {ST_SPEC_CTRL}+4(%rip), %edx
	wrmsr
1:
	movq	state + {ST_CR3}(%rip), %rax
	movq	%rax, %cr3
	/* The Host's stack is gone.  From here RSP walks state.regs. */
	leaq	regs(%rip), %rsp

	movw	state + {ST_DS}(%rip), %ds
	movw	state + {ST_ES}(%rip), %es
	movw	state + {ST_FS}(%rip), %fs
	movw	state + {ST_GS}(%rip), %gs
	movq	state + {ST_FS_BASE}(%rip), %rax
	wrfsbase %rax
	movq	state + {ST_GS_BASE}(%rip), %rax
	wrgsbase %rax
	/*
	 * A translation of the Host may hide the Guest's own at this address (see page_fault).
	 * Only here, with the Guest's CR3 loaded and no Host code left to run, is it certain to be
	 * gone when the Guest tries again.
	 */
	movq	state + {ST_INVLPG}(%rip), %rax
	testq	%rax, %rax
	jz	1f
	invlpg	(%rax)
1:
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rax
	popq	%rcx
	popq	%rdx
	popq	%rsi
	popq	%rdi
	addq	$16, %rsp			/* vector and error code */

/*
 * The ways into the Guest.  All else is the Guest's already: CR3, GS base, mode, general registers.
 * `guest_iret`: RSP points at regs.rip.  `guest_sysret`: RSP is the Guest's; RCX, R11: RIP, RFLAGS.
 *
 * An NMI or a machine check which hit the switcher has been noted, and the Guest does not get the CPU
 * before the Host has heard of it.  One that comes behind the comparison goes back to it: ist_trap.
 *
 * `guest_iret` empties the CPU's buffers for either mode.  A system call need not: who takes
 * `guest_sysret` to user mode has done it.
 */
guest_iret:
	clear_buffers
	cmpq	$0, state + {ST_NMI}(%rip)	/* and ST_MCE */
	jne	1f
guest_iret_last:
	iretq
1:
	pushq	$0				/* error code */
	pushq	${EXIT_INTERRUPTED}		/* vector */
	jmp	save_and_leave

guest_sysret:
	cmpq	$0, state + {ST_NMI}(%rip)
	jne	1f
guest_sysret_last:
	sysretq
1:
	syscall_exit {GUEST_CS_USER64}, {EXIT_INTERRUPTED}

not_now:
	movq	${EXIT_INTERRUPTED}, regs + {R_VECTOR}(%rip)
	jmp	leave

/*
 * lg_switcher_syscall - SYSCALL in the Guest: LSTAR points here.
 *
 * Entered by: the CPU, CPL0, IF=0, RCX and R11 hold the Guest's RIP and RFLAGS.  RSP is still the
 * Guest's and must not be used; GS base and CR3 are the Guest's.
 */
	.globl lg_switcher_syscall
lg_switcher_syscall:
	endbr64
	cmpl	$0, st_mode(%rip)
	je	hypercall

	/*
	 * A system call: from Guest user mode straight into Guest kernel mode.  The Host never
	 * hears of it.
	 */
system_call:
	incq	state + {ST_DIRECT_SYSCALLS}(%rip)
	movq	%rcx, shared + {SH_RIP}(%rip)
	movq	%r11, shared + {SH_RFLAGS}(%rip)
	movl	$0, st_mode(%rip)
	movq	$0, shared + {SH_IRQ_ENABLED}(%rip)
	movq	state + {ST_KERNEL_CR3}(%rip), %rcx
	movq	%rcx, %cr3
	rdgsbase %rcx
	movq	%rcx, shared + {SH_USER_GS_BASE}(%rip)
	movq	state + {ST_KERNEL_GS_BASE}(%rip), %rcx
	wrgsbase %rcx
	movq	state + {ST_SYSCALL_ENTRY}(%rip), %rcx	/* canonical: checked */
	movl	${AT_EVENT_ENTRY}, %r11d
	jmp	guest_sysret

hypercall:
	testq	%rax, %rax
	jz	eret
syscall_to_host:
	syscall_exit {GUEST_CS_USER64}, {EXIT_SYSCALL}

/*
 * Hypercall ERET: resume what the shared page says.  Every field is read once, into a register,
 * before it is judged.  The rule is that of lg_core::eret, and rust/lg-core/tests/eret holds both to
 * it.  Whatever is not the plain case (an interrupt waits, 32-bit code, a frame
 * that makes no sense) is the Host's business: it gets the hypercall like any other.
 */
eret:
	movq	%rcx, regs + {R_RIP}(%rip)
	movq	%r11, regs + {R_RFLAGS}(%rip)
	movq	%rsp, regs + {R_RSP}(%rip)
	cmpl	$0, state + {ST_IRQ_WAITING}(%rip)
	jne	eret_slow
	movq	shared + {SH_CS}(%rip), %rcx
	cmpq	${GUEST_CS_KERNEL}, %rcx
	je	eret_kernel
	cmpq	${GUEST_CS_USER64}, %rcx
	jne	eret_slow

	/*
	 * To 64-bit user mode.  RIP must be below 2^47: IRETQ and SYSRETQ fault at CPL0 over a
	 * non-canonical one.
	 */
	movq	shared + {SH_RIP}(%rip), %rcx
	movq	%rcx, %r11
	shrq	$47, %r11
	jnz	eret_slow
	movq	shared + {SH_RFLAGS}(%rip), %r11
	movl	$1, st_mode(%rip)
	movq	${IF}, shared + {SH_IRQ_ENABLED}(%rip)
	incq	state + {ST_DIRECT_ERETS}(%rip)
	rdgsbase %rax
	movq	%rax, state + {ST_KERNEL_GS_BASE}(%rip)
	movq	shared + {SH_USER_GS_BASE}(%rip), %rax
	shlq	$16, %rax			/* WRGSBASE faults over a non-canonical base */
	sarq	$16, %rax
	wrgsbase %rax
	movq	state + {ST_USER_CR3}(%rip), %rax
	movq	%rax, %cr3
	andl	${USER_RFLAGS}, %r11d
	orl	${AT_EVENT_ENTRY}, %r11d
	/*
	 * SYSRET leaves RIP in RCX and RFLAGS in R11, and does not do TF and RF as IRET does: only
	 * when that is wanted.
	 */
	testl	${IRET_FLAGS}, %r11d
	jnz	eret_iret
	cmpq	%rcx, shared + {SH_RCX}(%rip)
	jne	eret_iret
	cmpq	%r11, shared + {SH_R11}(%rip)
	jne	eret_iret
	movq	shared + {SH_RSP}(%rip), %rsp
	movq	shared + {SH_RAX}(%rip), %rax
	clear_buffers
	jmp	guest_sysret

	/* To Guest kernel mode.  Any canonical RIP. */
eret_kernel:
	movq	shared + {SH_RIP}(%rip), %rcx
	movq	%rcx, %r11
	shlq	$16, %r11
	sarq	$16, %r11
	cmpq	%rcx, %r11
	jne	eret_slow
	incq	state + {ST_DIRECT_ERETS}(%rip)
	movq	shared + {SH_RFLAGS}(%rip), %r11
	movl	%r11d, %eax
	andl	${IF}, %eax
	movq	%rax, shared + {SH_IRQ_ENABLED}(%rip)
	andl	${KERNEL_RFLAGS}, %r11d
	orl	${AT_EVENT_ENTRY}, %r11d

	/* RCX: rip, R11: rflags.  The frame goes where it would be on the way out to the Host. */
eret_iret:
	leaq	regs + {R_SS}+8(%rip), %rsp
	pushq	${GUEST_SS}
	pushq	shared + {SH_RSP}(%rip)
	pushq	%r11
	pushq	${GUEST_CS_USER64}
	pushq	%rcx
	movq	shared + {SH_RCX}(%rip), %rcx
	movq	shared + {SH_R11}(%rip), %r11
	movq	shared + {SH_RAX}(%rip), %rax
	jmp	guest_iret

eret_slow:
	xorl	%eax, %eax
	leaq	regs + {R_RIP}(%rip), %rsp
	pushq	$0
	pushq	${EXIT_SYSCALL}
	jmp	save_and_leave

/*
 * lg_switcher_syscall_monitored - LSTAR of a Guest with a monitor.
 *
 * Entered by: the CPU, as above.  A SYSCALL of Guest kernel mode from outside of the monitor's code goes
 * to the monitor, in the same mode and on the same root: to the CPU, it is a jump.  The rule is
 * lg_core::monitor::is_hypercall.
 */
	.globl lg_switcher_syscall_monitored
lg_switcher_syscall_monitored:
	endbr64
	cmpl	$0, st_mode(%rip)
	jne	system_call
	movq	%r11, regs + {R_RFLAGS}(%rip)
	movq	%rcx, %r11
	shrq	${SLOT_SHIFT}, %r11
	cmpq	${MONITOR_CODE}, %r11
	movq	regs + {R_RFLAGS}(%rip), %r11
	je	hypercall
	movq	%rcx, shared + {SH_RIP}(%rip)
	movl	shared + {SH_IRQ_ENABLED}(%rip), %ecx
	andl	${IF}, %ecx
	andl	${NOT_IF}, %r11d
	orl	%ecx, %r11d
	movq	%r11, shared + {SH_RFLAGS}(%rip)
	movq	$0, shared + {SH_IRQ_ENABLED}(%rip)
	movq	state + {ST_MONITOR_ENTRY}(%rip), %rcx	/* canonical: checked */
	movl	${AT_EVENT_ENTRY}, %r11d
	jmp	guest_sysret

/*
 * lg_switcher_syscall_stepped - LSTAR while the Launcher steps the Guest, or records every SYSCALL.
 *
 * Entered by: the CPU, as above.  SYSCALL has cleared TF and saved it where the Guest would see it,
 * so nothing is switched directly: the Host gets every SYSCALL, from either mode.
 */
	.globl lg_switcher_syscall_stepped
lg_switcher_syscall_stepped:
	endbr64
	jmp	syscall_to_host

/*
 * lg_switcher_syscall32 - SYSCALL from 32-bit code on AMD: CSTAR points here.
 *
 * Entered by: the CPU, as above.  Linux Guests use int 0x80; the Host answers this with #UD, as
 * Intel's CPUs do.
 */
	.globl lg_switcher_syscall32
lg_switcher_syscall32:
	endbr64
	syscall_exit {GUEST_CS_USER32}, {EXIT_SYSCALL32}

/*
 * A page fault of Guest user mode that the Host has noted is the Guest's own: straight to its kernel,
 * as Rust's event::inject does it.  The rule, and what a note is, is in lg_core::foresight, and
 * rust/lg-core/tests/eret holds both to it.  From 64-bit code only, and neither while an interrupt waits
 * nor before the kernel has copied the event that it was given last.
 *
 * Stack: as `trap`.
 */
page_fault:
	testb	$3, {F_CS}(%rsp)
	jz	switcher_fault
	pushq	%rax
	pushq	%rcx
	movq	%cr2, %rax
	movq	%rax, %rcx
	shrq	${BLOCK_SHIFT}, %rcx
	cmpq	%rcx, state + {ST_NOTE_BLOCK}(%rip)
	jne	unforeseen
	cmpl	$0, st_mode(%rip)
	je	unforeseen
	cmpl	$0, state + {ST_IRQ_WAITING}(%rip)
	jne	unforeseen
	cmpq	${GUEST_CS_USER64}, {F_CS}+16(%rsp)
	jne	unforeseen
	testl	${EVENT_VALID}, shared + {SH_EVENT}(%rip)
	jnz	unforeseen
	/* The bit of the page: those for writes to read-only ones are behind those for absent ones. */
	movl	%eax, %ecx
	shrl	${PAGE_SHIFT}, %ecx
	andl	$({BLOCK_PAGES} - 1), %ecx
	cmpq	${PF_ABSENT}, {F_ERROR}+16(%rsp)
	je	1f
	cmpq	${PF_ABSENT} | {PF_WRITE}, {F_ERROR}+16(%rsp)
	je	1f
	cmpq	${PF_READ_ONLY}, {F_ERROR}+16(%rsp)
	jne	unforeseen
	addl	${READ_ONLY_SHIFT}, %ecx
1:
	btrl	%ecx, state + {ST_NOTE_PAGES}(%rip)
	jnc	unforeseen

	incq	state + {ST_DIRECT_FAULTS}(%rip)
	movq	%rax, shared + {SH_CR2}(%rip)
	movq	${EVENT_PAGE_FAULT}, shared + {SH_EVENT}(%rip)
	popq	%rcx
	popq	shared + {SH_RAX}(%rip)
	addq	$8, %rsp			/* vector */
	popq	shared + {SH_ERROR_CODE}(%rip)
	popq	shared + {SH_RIP}(%rip)
	popq	shared + {SH_CS}(%rip)
	popq	%rax
	andl	${USER_RFLAGS}, %eax
	orl	${AT_EVENT_ENTRY}, %eax
	movq	%rax, shared + {SH_RFLAGS}(%rip)
	popq	shared + {SH_RSP}(%rip)
	movq	${GUEST_SS}, shared + {SH_SS}(%rip)
	movl	$0, st_mode(%rip)
	movq	$0, shared + {SH_IRQ_ENABLED}(%rip)
	movq	state + {ST_KERNEL_CR3}(%rip), %rax
	movq	%rax, %cr3
	rdgsbase %rax
	movq	%rax, shared + {SH_USER_GS_BASE}(%rip)
	movq	state + {ST_KERNEL_GS_BASE}(%rip), %rax
	wrgsbase %rax
	addq	$8, %rsp			/* ss: to the end of state.regs */
	pushq	${GUEST_SS}
	pushq	shared + {SH_KERNEL_RSP}(%rip)
	pushq	${AT_EVENT_ENTRY}
	pushq	${GUEST_CS_USER64}
	pushq	state + {ST_EVENT_ENTRY}(%rip)	/* canonical: checked */
	movq	state + {ST_SHARED_GVA}(%rip), %rax
	jmp	guest_iret

/*
 * A page fault with P=1 in the upper half may be no fault of the Guest: a *global* translation of
 * the Host's, which survived our CR3 load, sits at an address where the Guest has something of its
 * own.  It is resolved right here, for Host code would only touch its memory again and bring the
 * translation back.  If the same address faults twice running, the fault is real.
 *
 * RAX: its address.  Stack: RCX and RAX, the rest as `trap`.
 */
unforeseen:
	popq	%rcx
	testb	$1, {F_ERROR}+8(%rsp)
	jz	1f
	testq	%rax, %rax
	jns	1f
	cmpq	%rax, state + {ST_SPURIOUS}(%rip)
	je	1f
	movq	%rax, state + {ST_SPURIOUS}(%rip)
	invlpg	(%rax)
	incq	state + {ST_SPURIOUS_COUNT}(%rip)
	popq	%rax
	addq	$16, %rsp
	jmp	guest_iret
1:
	popq	%rax
	jmp	save_and_leave

/*
 * Vectors with a stack of their own.  From CPL3: move the frame to state.regs and leave as every
 * other.  From CPL0 they hit the switcher itself: NMI and #MC are noted for the Host and we go on,
 * but not into the Guest; #DB can only be a single-step trap which SYSCALL carried over the border,
 * and is dropped.
 *
 * Stack: vector, error code, rip, cs, rflags, rsp, ss on the IST stack.
 */
ist_trap:
	testb	$3, {F_CS}(%rsp)
	jz	1f
	popq	regs + {R_VECTOR}(%rip)
	popq	regs + {R_ERROR}(%rip)
	popq	regs + {R_RIP}(%rip)
	popq	regs + {R_CS}(%rip)
	popq	regs + {R_RFLAGS}(%rip)
	popq	regs + {R_RSP}(%rip)
	popq	regs + {R_SS}(%rip)
	leaq	regs + {R_VECTOR}(%rip), %rsp
	jmp	save_and_leave
1:
	cmpq	$8, (%rsp)
	je	switcher_fault
	cmpq	$1, (%rsp)
	je	6f
	cmpq	$2, (%rsp)
	jne	2f
	movl	$1, state + {ST_NMI}(%rip)
	jmp	3f
2:
	movl	$1, state + {ST_MCE}(%rip)
3:
	/* Where the comparison is done but the Guest is not entered, it is done again. */
	pushq	%rax
	pushq	%rdx
	movq	{F_RIP}+16(%rsp), %rax
	leaq	guest_iret(%rip), %rdx
	subq	%rdx, %rax
	cmpq	$(guest_iret_last - guest_iret), %rax
	jbe	4f
	leaq	guest_sysret(%rip), %rdx
	movq	{F_RIP}+16(%rsp), %rax
	subq	%rdx, %rax
	cmpq	$(guest_sysret_last - guest_sysret), %rax
	ja	5f
4:
	movq	%rdx, {F_RIP}+16(%rsp)
5:
	popq	%rdx
	popq	%rax
	jmp	7f
6:
	movl	$1, state + {ST_DB_DROPPED}(%rip)
7:
	addq	$16, %rsp
	iretq

/*
 * Any other vector.  Stack: vector, error code, rip, cs, rflags, rsp, ss; for CPL3 these are the
 * fields of state.regs.
 */
trap:
	testb	$3, {F_CS}(%rsp)
	jz	switcher_fault

/*
 * RSP points at regs.vector, the fields above it are written.  Save the rest.
 */
save_and_leave:
	pushq	%rdi
	pushq	%rsi
	pushq	%rdx
	pushq	%rcx
	pushq	%rax
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	rdfsbase %rax
	movq	%rax, state + {ST_FS_BASE}(%rip)
	rdgsbase %rax
	movq	%rax, state + {ST_GS_BASE}(%rip)
	movw	%ds, state + {ST_DS}(%rip)
	movw	%es, state + {ST_ES}(%rip)
	movw	%fs, state + {ST_FS}(%rip)
	movw	%gs, state + {ST_GS}(%rip)
	movq	%cr2, %rax
	movq	%rax, state + {ST_CR2}(%rip)

/*
 * From the Guest's world back into the Host's.  RSP: anywhere in the region.
 *
 * The Guest's registers go first: what the Host executes by a wrong prediction shall find nothing of
 * the Guest's choosing in them.
 */
leave:
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	xorl	%r8d, %r8d
	xorl	%r9d, %r9d
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
	xorl	%r12d, %r12d
	xorl	%r13d, %r13d
	xorl	%r14d, %r14d
	xorl	%r15d, %r15d
	movq	state + {ST_HOST_CR3}(%rip), %rax
	movq	%rax, %cr3
	/*
	 * LTR writes the busy bit, so it must find the Host's TSS descriptor in the writable alias
	 * of the Host's GDT, and not busy.  Then back to the read-only alias the kernel runs with.
	 */
	lgdt	state + {ST_HOST_GDTR_RW}(%rip)
	movq	state + {ST_HOST_TSS_TYPE}(%rip), %rax
	andb	$~2, (%rax)
	movl	${TSS_SELECTOR}, %eax
	ltr	%ax
	lgdt	state + {ST_HOST_GDTR}(%rip)
	lldt	state + {ST_HOST_LDT}(%rip)
	/* The CPU came here with a null SS; on AMD that would spoil a later SYSRET. */
	movl	${HOST_DS}, %eax
	movl	%eax, %ss
	movw	state + {ST_HOST_DS}(%rip), %ds
	movw	state + {ST_HOST_ES}(%rip), %es
	movw	state + {ST_HOST_FS}(%rip), %fs
	movw	state + {ST_HOST_GS}(%rip), %gs
	movq	state + {ST_HOST_FS_BASE}(%rip), %rax
	wrfsbase %rax
	movq	state + {ST_HOST_GS_BASE}(%rip), %rax
	wrgsbase %rax
	/*
	 * The Guest ran at the Host's addresses, and may have left predictions for them.  All of this comes
	 * before the Host's IDT, so that no handler of the Host's runs without it; except that the returns
	 * of its kernel are untrained by Switcher::enter, right behind the far return below.
	 */
	cmpl	$0, state + {ST_IBRS}(%rip)
	je	1f
	movl	${MSR_SPEC_CTRL}, %ecx
	movl	state + {ST_SPEC_CTRL}(%rip), %eax
	movl	state + {ST_SPEC_CTRL}+4(%rip), %edx
	wrmsr
1:
	cmpl	$0, state + {ST_IBPB}(%rip)
	je	1f
	movl	${MSR_PRED_CMD}, %ecx
	movl	$1, %eax
	xorl	%edx, %edx
	wrmsr
1:
	/* Returns: 64 calls (Linux's 32 are too few on some), half of them at a time for want of stack. */
	cmpl	$0, state + {ST_FILL_RSB}(%rip)
	je	1f
	leaq	regs(%rip), %rsp
	.rept 2
	.rept 32
	call	2f
	int3
2:
	.endr
	addq	$(32 * 8), %rsp
	.endr
1:
	/* Branch history: taken branches, more than are remembered (the longest: Alder Lake, 194). */
	cmpl	$0, state + {ST_CLEAR_HISTORY}(%rip)
	je	1f
	.rept 200
	jmp	2f
	int3
2:
	.endr
1:
	lfence				/* no branch above is still a guess */
	lidt	state + {ST_HOST_IDTR}(%rip)
	movq	state + {ST_HOST_RSP}(%rip), %rsp
	popfq				/* AC and DF may be the Guest's */
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	far_return

/*
 * An exception at CPL0 in this file: a bug of lg's.  The VM dies, the Host lives; what we know goes
 * into the state page.
 *
 * Stack: vector, error code, rip, ...
 */
switcher_fault:
	popq	regs + {R_VECTOR}(%rip)
	popq	regs + {R_ERROR}(%rip)
	popq	state + {ST_FAULT_RIP}(%rip)
	/* DS to GS.  If it was one of them in `leave` that faulted, it must not do so for ever. */
	movq	$0, state + {ST_HOST_DS}(%rip)
	orq	${EXIT_SWITCHER_FAULT}, regs + {R_VECTOR}(%rip)
	movq	%cr2, %rax
	movq	%rax, state + {ST_CR2}(%rip)
	jmp	leave

	/* The rest of the page is mapped, too. */
	.balign 4096, 0xcc
	.globl lg_switcher_end
lg_switcher_end:
	.previous
