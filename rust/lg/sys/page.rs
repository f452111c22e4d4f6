// SPDX-License-Identifier: GPL-2.0

//! Host pages, as the kernel's direct map sees them.

use crate::lg_core::addr::Hpa;
use core::{
    ptr::NonNull,
    sync::atomic::AtomicU64, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// The address at which the direct map holds `hpa`.
pub(crate) fn direct_map(hpa: Hpa) -> *mut u8 {
    // SAFETY: `page_offset_base` is set during early boot and never again.
    let base = unsafe { bindings::page_offset_base } as u64;
    base.wrapping_add(hpa.get()) as *mut u8
}

/// The inverse of [`direct_map`].
pub(crate) fn direct_map_to_hpa(addr: *const u8) -> Hpa {
    // SAFETY: As above.
    let base = unsafe { bindings::page_offset_base } as u64;
    Hpa::new((addr as u64).wrapping_sub(base))
}

/// The words of a page's `struct page` that are for whoever owns the page.
pub(crate) struct OwnerWords<'a> {
    pub(crate) private: &'a AtomicU64,
    pub(crate) index: &'a AtomicU64,
}

/// # Safety
///
/// `addr` is the direct map address of a page which the caller owns for `'a`.
pub(crate) unsafe fn owner_words<'a>(addr: *const u8) -> OwnerWords<'a> {
    // SAFETY: `vmemmap_base` is set during early boot and never again.
    let vmemmap = unsafe { bindings::vmemmap_base } as *mut bindings::page;
    let page = vmemmap.wrapping_add((direct_map_to_hpa(addr).get() >> 12) as usize);
    // SAFETY: Every page in the direct map has a `struct page`, and the caller owns this one. It is in no
    // page cache, so the index is his as well.
    unsafe {
        let fields = &raw mut (*page).__bindgen_anon_1.__bindgen_anon_1;
        let index = &raw mut (*fields).__bindgen_anon_2.__folio_index;
        OwnerWords {
            private: &*(&raw mut (*fields).private).cast::<AtomicU64>(),
            index: &*index.cast::<AtomicU64>(),
        }
    }
}

/// The Host physical address of a `struct page`.
///
/// # Safety
///
/// `page` points at an element of the kernel's memory map.
pub(crate) unsafe fn page_to_hpa(page: *const bindings::page) -> Hpa {
    // SAFETY: `vmemmap_base` is set during early boot and never again.
    let vmemmap = unsafe { bindings::vmemmap_base } as *const bindings::page;
    // SAFETY: With a virtual memory map (x86-64 has no other), every `struct page` is an element of
    // the array which starts there, and its index is the page frame number.
    let pfn = unsafe { page.offset_from(vmemmap) } as u64;
    Hpa::new(pfn << 12)
}

/// The Host physical address of a page of the module's own.
///
/// # Safety
///
/// `addr` is in the module's memory.
pub(crate) unsafe fn module_page_to_hpa(addr: *const u8) -> Hpa {
    // SAFETY: A module's memory is mapped like what vmalloc gives, as long as the module is there.
    Hpa::new((unsafe { bindings::vmalloc_to_pfn(addr.cast()) } as u64) << 12)
}

/// A random number below `limit`, which nobody can predict.
pub(crate) fn random_below(limit: u64) -> u64 {
    // SAFETY: Has no preconditions.
    unsafe { bindings::get_random_u64() % limit }
}

/// May the caller be put to sleep?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Process context, IRQs on.
    Allowed,
    /// In a run section, IRQs off: what would have to wait is to be done again outside.
    Forbidden,
}

/// A zeroed page of the Host's, charged to the cgroup of the caller.
///
/// # Invariants
///
/// The pointer is the direct map address of a page that this object alone owns.
pub(crate) struct HostPage(NonNull<u8>);

// SAFETY: The page is owned memory, and has no tie to a thread.
unsafe impl Send for HostPage {}
// SAFETY: `&HostPage` gives nothing but addresses.
unsafe impl Sync for HostPage {}

impl HostPage {
    /// Allocates one, or says `ENOMEM`. Process context, IRQs on: may sleep.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The flags are those of the context in which this may be called.
        let addr = unsafe { bindings::get_zeroed_page_noprof(bindings::GFP_KERNEL_ACCOUNT) };
        // INVARIANT: The page allocator gave it to us alone.
        NonNull::new(addr as *mut u8).map(Self).ok_or(ENOMEM)
    }

    /// Takes over a page that was leaked with `mem::forget`.
    ///
    /// # Safety
    ///
    /// `hpa` is that of a leaked `HostPage`, and nobody else takes it over.
    pub(crate) unsafe fn from_hpa(hpa: Hpa) -> Self {
        // INVARIANT: As the caller promises.
        // SAFETY: The direct map has no page at address 0.
        Self(unsafe { NonNull::new_unchecked(direct_map(hpa)) })
    }

    /// Its address in the direct map.
    pub(crate) fn as_ptr<T>(&self) -> *mut T {
        const { assert!(core::mem::size_of::<T>() <= 4096 && core::mem::align_of::<T>() <= 4096) };
        self.0.as_ptr().cast()
    }

    /// Its Host physical address.
    pub(crate) fn hpa(&self) -> Hpa {
        direct_map_to_hpa(self.0.as_ptr())
    }
}

impl Drop for HostPage {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the page is ours, and it goes with us.
        unsafe { bindings::free_pages(self.0.as_ptr() as usize, 0) };
    }
}
