// SPDX-License-Identifier: GPL-2.0
//! Several vCPUs.
//!
//! ```no_run
//! # use lguest_guest::{println, smp};
//! # use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
//! static SUM: AtomicU64 = AtomicU64::new(0);
//!
//! for id in 1..smp::MAX {
//!     if smp::start(id, |number| { SUM.fetch_add(number, SeqCst); }, u64::from(id)).is_err() {
//!         break; // lg run --smp gave no more
//!     }
//! }
//! smp::wait_for_others();
//! println!("{}", SUM.load(SeqCst));
//! ```
//!
//! They share all memory, the handlers of [`event`](crate::event), and the tables of whoever started them. Interrupts,
//! and whether they are on, are each one's own ([`irq`](crate::irq)); so is the timer. Guest user mode
//! ([`user`](crate::user)) is for one vCPU at a time.

use crate::paging::{alloc_frames, current_root, gpa_to_ptr};
use core::arch::global_asm;
use core::mem::{offset_of, transmute};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use lguest_call::abi::{
    lguest_shared, LGUEST_FLUSH_ALL, LGUEST_FLUSH_ONE, LGUEST_MAX_VCPUS, LGUEST_VECTOR_NMI,
    LHCALL_RETURN_NMI,
};
use lguest_call::hypercall;
use lguest_call::shared::{LGUEST_SEVERAL, SHARED};

pub use lguest_call::shared::vcpu;

/// As many vCPUs as there can be.
pub const MAX: u32 = LGUEST_MAX_VCPUS;
/// Bytes of a vCPU's stack, and of the one behind it that is for NMIs.
const STACK: u64 = 64 << 10;

/// The function that a vCPU runs; when it returns, the vCPU is off.
pub type Main = fn(u64);

/// The stacks of the vCPUs that have been on: where they begin.
static STACKS: [AtomicU64; MAX as usize] = [const { AtomicU64::new(0) }; MAX as usize];
/// The handler of NMIs.
static NMI: AtomicUsize = AtomicUsize::new(0);

global_asm!(
    r#"
    .pushsection .text.lguest_vcpu, "ax"
    .globl lguest_vcpu_start, lguest_nmi
lguest_vcpu_start:                  /* RDI: the words that `start` left on the stack */
    xor %ebp, %ebp
    call lguest_vcpu_main
    ud2

lguest_nmi:                         /* RAX, RCX and R11 are in the shared page */
    push %rdi
    push %rsi
    push %rdx
    push %r8
    push %r9
    push %r10
    push %rbx
    mov %rsp, %rbx
    and $-16, %rsp
    sub $512, %rsp
    fxsave64 (%rsp)
    mov {RIP}(%rax), %rdi
    call lguest_nmi_main
    fxrstor64 (%rsp)
    mov %rbx, %rsp
    pop %rbx
    pop %r10
    pop %r9
    pop %r8
    pop %rdx
    pop %rsi
    pop %rdi
    mov ${return_nmi}, %eax
    syscall
    ud2
    .popsection
    "#,
    RIP = const offset_of!(lguest_shared, nmi),
    return_nmi = const LHCALL_RETURN_NMI,
    options(att_syntax)
);

extern "C" {
    fn lguest_vcpu_start();
    fn lguest_nmi();
}

#[no_mangle]
extern "C" fn lguest_vcpu_main(words: &[u64; 2]) -> ! {
    // SAFETY: `start` put a `Main` there.
    let main: Main = unsafe { transmute(words[0] as usize) };
    main(words[1]);
    stop()
}

#[no_mangle]
extern "C" fn lguest_nmi_main(rip: u64) {
    let handler = NMI.load(Relaxed);
    if handler != 0 {
        // SAFETY: `set_nmi_handler` alone stores there, and stores a `Main` or 0.
        let handler: Main = unsafe { transmute(handler) };
        handler(rip);
    }
}

/// Has vCPU `id` run `main(argument)`, in the current address space, with virtual interrupts off.
///
/// # Errors
///
/// The Host's errno, negative: there is no such vCPU, or it is not off.
pub fn start(id: u32, main: Main, argument: u64) -> Result<(), i64> {
    const EBUSY: i64 = -16;
    LGUEST_SEVERAL.store(1, SeqCst);
    // Its stack may be in use.
    match hypercall::vcpu_state(id) {
        0 => {}
        1 => return Err(EBUSY),
        error => return Err(error),
    }
    let place = &STACKS[id as usize];
    if place.load(Relaxed) == 0 {
        place.store(gpa_to_ptr::<u8>(alloc_frames(2 * STACK)) as u64, Relaxed);
    }
    let top = place.load(Relaxed) + STACK;
    let words = top - 16;
    // SAFETY: the stack is nobody's, as nothing of the vCPU runs; and so is its shared page.
    unsafe {
        (words as *mut [u64; 2]).write([main as usize as u64, argument]);
        let page = SHARED.cast::<u8>().add(id as usize * 4096);
        (&raw mut (*page.cast::<lguest_shared>()).nmi_rsp).write_volatile(top + STACK);
    }
    let entry = lguest_vcpu_start as usize as u64;
    match hypercall::start_vcpu(id, entry, words, words, current_root()) {
        0 => Ok(()),
        error => Err(error),
    }
}

/// Turns this vCPU off. The last one cannot.
pub fn stop() -> ! {
    let error = hypercall::stop_vcpu();
    panic!("the last vCPU cannot stop: {error}");
}

/// Is vCPU `id` on? Of one that is not, nothing runs any more.
pub fn is_on(id: u32) -> bool {
    hypercall::vcpu_state(id) == 1
}

/// The number of vCPUs that there are.
pub fn count() -> u32 {
    let there = |id: &u32| hypercall::vcpu_state(*id) >= 0;
    (0..MAX).take_while(there).count() as u32
}

/// Waits until all other vCPUs are off.
pub fn wait_for_others() {
    for id in (0..count()).filter(|&id| id != vcpu()) {
        while is_on(id) {
            core::hint::spin_loop();
        }
    }
}

/// All vCPUs that there are, as a set.
pub fn all() -> u64 {
    (1 << count()) - 1
}

/// Raises `vector` on each vCPU of `set`.
pub fn send_ipi(set: u64, vector: u32) {
    assert_eq!(hypercall::send_ipi(set, vector), 0, "SEND_IPI");
}

/// From now on, and on vCPUs that are started from now on, `handler` gets the NMIs: it is called with the RIP that one
/// has interrupted. It must not fault.
pub fn set_nmi_handler(handler: Main) {
    NMI.store(handler as usize, Relaxed);
    if lguest_call::shared_read!(nmi_rsp) == 0 {
        // The first vCPU, which nobody has started.
        let top = gpa_to_ptr::<u8>(alloc_frames(STACK)) as u64 + STACK;
        lguest_call::shared_write!(nmi_rsp, top);
    }
    assert_eq!(hypercall::set_nmi(lguest_nmi as usize as u64), 0, "SET_NMI");
}

/// Sends an NMI to each vCPU of `set`.
pub fn send_nmi(set: u64) {
    send_ipi(set, LGUEST_VECTOR_NMI);
}

/// Flushes the page at `gva` on each vCPU of `set`. None of them uses its old translation afterwards.
pub fn flush_page(set: u64, gva: u64) {
    let result = hypercall::flush_vcpus(set, LGUEST_FLUSH_ONE, gva, 0);
    assert_eq!(result, 0, "FLUSH_VCPUS");
}

/// Flushes everything on each vCPU of `set`.
pub fn flush_all(set: u64) {
    let result = hypercall::flush_vcpus(set, LGUEST_FLUSH_ALL, 0, 0);
    assert_eq!(result, 0, "FLUSH_VCPUS");
}
