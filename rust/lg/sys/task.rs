// SPDX-License-Identifier: GPL-2.0

//! The thread that runs a vCPU, as the scheduler sees it.

use core::sync::atomic::{
    AtomicPtr,
    Ordering, //
};
use kernel::{
    bindings,
    mm::Mm,
    sync::{
        aref::ARef,
        rcu, //
    }, //
};

fn current() -> *mut bindings::task_struct {
    // SAFETY: Has no preconditions.
    unsafe { bindings::get_current() }
}

fn thread_flags() -> usize {
    // SAFETY: The current task exists as long as we run. Others set bits in there at any time,
    // hence volatile.
    unsafe { (&raw const (*current()).thread_info.flags).read_volatile() }
}

const fn tif(bits: &[u32]) -> usize {
    let mut mask = 0;
    let mut i = 0;
    while i < bits.len() {
        mask |= 1 << bits[i];
        i += 1;
    }
    mask
}

/// Work that is only done on the way to user mode: signals, task work, and what others have left in
/// this CPU until then. KVM leaves its own Guest's SYSCALL MSRs, which the Guest must not run with.
const WORK_USER: usize = tif(&[
    bindings::TIF_SIGPENDING,
    bindings::TIF_NOTIFY_SIGNAL,
    bindings::TIF_NOTIFY_RESUME,
    bindings::TIF_USER_RETURN_NOTIFY,
]);
/// Work that [`schedule`](bindings::schedule) does, a deferred re-arming of the timer among it.
const WORK_SCHED: usize = tif(&[
    bindings::TIF_NEED_RESCHED,
    bindings::TIF_NEED_RESCHED_LAZY,
    bindings::TIF_HRTIMER_REARM,
]);

/// Says whether the thread has to go back to user mode first.
pub(crate) fn must_return_to_user() -> bool {
    thread_flags() & WORK_USER != 0
}

/// Does something have to be done before the Guest may run? Meaningful with IRQs off.
pub(crate) fn has_work() -> bool {
    thread_flags() & (WORK_USER | WORK_SCHED) != 0
}

/// Lets others run if the scheduler asks for it. Process context, IRQs on.
pub(crate) fn reschedule_if_asked() {
    if thread_flags() & WORK_SCHED != 0 {
        // SAFETY: The caller is in process context and holds no spinlock.
        unsafe { bindings::schedule() };
    }
}

/// Sleeps for so long, or until there is a signal. Process context, IRQs on.
pub(crate) fn sleep_ms(ms: u32) {
    // SAFETY: The caller may sleep.
    unsafe { bindings::msleep_interruptible(ms) };
}

/// Marks the time until it is dropped as Guest time, for `top` and cgroups (as KVM does,
/// `PF_VCPU`).
pub(crate) struct GuestTime(());

impl GuestTime {
    pub(crate) fn begin() -> Self {
        // SAFETY: Only the task itself writes its flags.
        unsafe { (*current()).flags |= bindings::PF_VCPU };
        Self(())
    }
}

impl Drop for GuestTime {
    fn drop(&mut self) {
        // SAFETY: Only the task itself writes its flags.
        unsafe { (*current()).flags &= !bindings::PF_VCPU };
    }
}

/// For how many nanoseconds this thread has been ready to run and had no CPU, so far; 0 where the Host does not count.
pub(crate) fn run_delay() -> u64 {
    #[cfg(CONFIG_SCHED_INFO)]
    // SAFETY: Reads a field of the current task; the scheduler writes it when the task is not running.
    return unsafe { (&raw const (*current()).sched_info.run_delay).read_volatile() };
    #[cfg(not(CONFIG_SCHED_INFO))]
    0
}

/// The thread that runs the vCPU right now, so that others can wake it or make it leave the Guest.
///
/// # Invariants
///
/// Null, or a task which is inside [`Runner::while_running`] of this object.
pub(crate) struct Runner {
    task: AtomicPtr<bindings::task_struct>,
}

impl Runner {
    pub(crate) const fn new() -> Self {
        Self {
            task: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// Runs `f` with the calling thread as the runner.
    pub(crate) fn while_running<R>(&self, f: impl FnOnce() -> R) -> R {
        // INVARIANT: We are inside `while_running`, until the store below.
        self.task.store(current(), Ordering::SeqCst);
        let result = f();
        self.task.store(core::ptr::null_mut(), Ordering::SeqCst);
        // Whoever read the pointer before did so in an RCU read-side section (`kick`), or with IRQs
        // off on another CPU: the task itself is freed by RCU, long after it leaves here.
        result
    }

    /// Makes the runner look at its work: wakes it from [`Runner::sleep_until`], or forces it out
    /// of the Guest.
    ///
    /// Any context, hard interrupts included.
    pub(crate) fn kick(&self) {
        let _rcu = rcu::read_lock();
        let task = self.task.load(Ordering::SeqCst);
        if !task.is_null() {
            // SAFETY: By the type invariant it was inside `while_running` a moment ago, and task
            // structures are freed only after an RCU grace period, which cannot end before this
            // read-side section.
            unsafe {
                bindings::wake_up_process(task);
                bindings::kick_process(task);
            }
        }
    }

    /// Sleeps until `ready` says so or a signal comes. Process context; only the runner calls it.
    pub(crate) fn sleep_until(&self, ready: impl Fn() -> bool) {
        let task = current();
        loop {
            // The state first, then the condition: a waker does it the other way round, so one of
            // us sees the other. SAFETY: It is our own state, and `AtomicU32` has the layout of the
            // C `unsigned int`.
            let state =
                unsafe { &*(&raw mut (*task).__state).cast::<core::sync::atomic::AtomicU32>() };
            state.store(bindings::TASK_INTERRUPTIBLE, Ordering::SeqCst);
            if ready() || must_return_to_user() {
                state.store(bindings::TASK_RUNNING, Ordering::SeqCst);
                return;
            }
            // SAFETY: Process context, no spinlock held.
            unsafe { bindings::schedule() };
        }
    }
}

/// The address space of the caller, if it has one.
pub(crate) fn current_mm() -> Option<ARef<Mm>> {
    let task = kernel::current!();
    let mm: &Mm = task.mm()?;
    Some(ARef::from(mm))
}

/// Is this the caller's address space?
pub(crate) fn is_current_mm(mm: &Mm) -> bool {
    // SAFETY: Reads a field of the current task which only it changes.
    mm.as_raw() == unsafe { (*current()).mm }
}
