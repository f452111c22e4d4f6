// SPDX-License-Identifier: GPL-2.0

//! The Host's word that it takes pages of an address space: an MMU notifier (`include/linux/mmu_notifier.h`).
//!
//! The `kernel` crate has nothing for that. Before the Host unmaps, moves, or write-protects pages it calls
//! `invalidate_range_start`, and `invalidate_range_end` after it; between the two, whoever hears of it has none of them.

use core::{
    marker::PhantomPinned,
    ops::Range, //
};
use kernel::{
    bindings,
    mm::Mm,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};

/// Hears of it. In process context, with locks of the memory management held, IRQs on; must not sleep, nor touch user
/// memory.
pub(crate) trait Taking: Sync {
    /// What is at these addresses is about to go. When this returns, nobody uses it any more, nor gets it, until
    /// [`end`](Self::end) is called as often as this was. There may be several at a time.
    fn begin(&self, hvas: &Range<u64>);
    fn end(&self);
}

/// The subscription, and the object that hears of it.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<T: Taking> {
    #[pin]
    inner: Opaque<bindings::mmu_notifier>,
    mm: ARef<Mm>,
    #[pin]
    owner: T,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: The kernel locks the subscription, and the owner is `Sync`; it is dropped once, by anyone.
unsafe impl<T: Taking + Send> Send for Notifier<T> {}
// SAFETY: As above.
unsafe impl<T: Taking> Sync for Notifier<T> {}

impl<T: Taking> Notifier<T> {
    const OPS: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
        release: Some(Self::release),
        invalidate_range_start: Some(Self::start),
        invalidate_range_end: Some(Self::end),
        // The Host does not know what a Guest uses: to it, pages get old from when they were learnt.
        clear_flush_young: None,
        clear_young: None,
        test_young: None,
        // The processor's TLB is another matter: see `lg_core::presence`.
        arch_invalidate_secondary_tlbs: None,
        // For subscriptions that outlive their owner.
        alloc_notifier: None,
        free_notifier: None,
    };

    /// Subscribes for the caller's address space, which `mm` is. `ENOMEM`, or `EINTR` on a signal. May sleep.
    pub(crate) fn new<E>(mm: ARef<Mm>, owner: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        let raw = mm.as_raw();
        try_pin_init!(Self {
            mm,
            owner <- owner,
            _pin: PhantomPinned,
            // Last: from here on it is called.
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::mmu_notifier| {
                // SAFETY: `slot` is the memory in which it will stay, since it is pinned; what it is called with is
                // there. The address space is the caller's, and so in use.
                unsafe {
                    slot.write(bindings::mmu_notifier {
                        ops: &Self::OPS,
                        ..Default::default()
                    });
                    kernel::error::to_result(bindings::mmu_notifier_register(slot, raw))
                }
            }),
        }? Error)
    }

    /// The object that hears of it.
    pub(crate) fn owner(&self) -> &T {
        &self.owner
    }

    /// # Safety
    ///
    /// `inner` is that of a live `Notifier<T>`.
    unsafe fn of<'a>(inner: *mut bindings::mmu_notifier) -> &'a T {
        // SAFETY: As the caller promises.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(inner), Self, inner) };
        &this.owner
    }

    /// # Safety
    ///
    /// The kernel calls it, as a notifier's `invalidate_range_start`.
    unsafe extern "C" fn start(
        inner: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> kernel::ffi::c_int {
        // SAFETY: Only `new` gives the kernel this function, and `drop` waits for us; the range is there for us.
        let (owner, hvas) =
            unsafe { (Self::of(inner), (*range).start as u64..(*range).end as u64) };
        owner.begin(&hvas);
        // One that may fail must not have an end, says the kernel.
        0
    }

    /// # Safety
    ///
    /// The kernel calls it, as a notifier's `invalidate_range_end`.
    unsafe extern "C" fn end(
        inner: *mut bindings::mmu_notifier,
        _range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: As above.
        unsafe { Self::of(inner) }.end();
    }

    /// The address space is over, or the subscription.
    ///
    /// # Safety
    ///
    /// The kernel calls it, as a notifier's `release`.
    unsafe extern "C" fn release(
        inner: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
    ) {
        // SAFETY: As above.
        let owner = unsafe { Self::of(inner) };
        owner.begin(&(0..u64::MAX));
        owner.end();
    }
}

#[pinned_drop]
impl<T: Taking> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `new` has subscribed, for this address space. When this returns, nobody is in a function of ours.
        unsafe { bindings::mmu_notifier_unregister(self.inner.get(), self.mm.as_raw()) };
    }
}
