// SPDX-License-Identifier: GPL-2.0

//! The ring of records that a Launcher maps to see what its vCPU does.
//!
//! The kernel writes its pages and never reads them, and a mapping of them cannot write. A page is freed when
//! the ring is gone and nobody has it mapped: each mapping holds a reference, as for any page of a file's.

use super::page::{
    direct_map,
    page_to_hpa, //
};
use crate::abi::{
    lguest_trace_head,
    lguest_trace_record,
    LGUEST_TRACE_MAX_PAGES,
    LGUEST_TRACE_OFFSET, //
};
use core::{
    mem::{
        offset_of,
        size_of, //
    },
    sync::atomic::{
        compiler_fence,
        Ordering, //
    }, //
};
use kernel::{
    alloc::flags::__GFP_ZERO,
    mm::virt::VmaNew,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// Pages from one vCPU's offset to the next one's.
const OFFSET_PAGES: usize = (LGUEST_TRACE_OFFSET / PAGE_SIZE as u64) as usize;
const SLOTS_PER_PAGE: usize = PAGE_SIZE / size_of::<lguest_trace_record>();
const _: () = assert!(PAGE_SIZE % size_of::<lguest_trace_record>() == 0);

/// A ring, charged to the cgroup of who made it: the page of its head, and then those of its slots.
pub(crate) struct Ring(KVVec<Page>);

/// Where the direct map has byte `offset` of `page`.
fn byte<T>(page: &Page, offset: usize) -> *mut T {
    // SAFETY: The page exists, so its `struct page` is in the kernel's map.
    let hpa = unsafe { page_to_hpa(page.as_ptr()) };
    direct_map(hpa).wrapping_add(offset).cast()
}

impl Ring {
    /// A ring of `pages` pages of slots. `EINVAL` for none or too many. May sleep.
    pub(crate) fn new(pages: u32) -> Result<Self> {
        if pages == 0 || pages > LGUEST_TRACE_MAX_PAGES {
            return Err(EINVAL);
        }
        let count = 1 + pages as usize;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            let page = Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
            pages.push(page, GFP_KERNEL_ACCOUNT)?;
        }
        let mut this = Self(pages);
        this.set(offset_of!(lguest_trace_head, slots), this.len());
        Ok(this)
    }

    /// The number of slots.
    pub(crate) fn len(&self) -> u64 {
        ((self.0.len() - 1) * SLOTS_PER_PAGE) as u64
    }

    /// Puts `record` into slot `index` modulo their number.
    pub(crate) fn put(&mut self, index: u64, record: &lguest_trace_record) {
        let index = (index % self.len()) as usize;
        let Some(page) = self.0.get(1 + index / SLOTS_PER_PAGE) else {
            return;
        };
        let offset = index % SLOTS_PER_PAGE * size_of::<lguest_trace_record>();
        // SAFETY: The slot is in a page of ours. Who maps it reads it at any time, hence volatile; nobody
        // else writes it.
        unsafe { byte::<lguest_trace_record>(page, offset).write_volatile(*record) };
    }

    /// Says how many records were written and how many there was no slot for: after the last of them was.
    pub(crate) fn set_counts(&mut self, written: u64, lost: u64) {
        // x86-64 makes stores visible in their order; so must the compiler.
        compiler_fence(Ordering::Release);
        self.set(offset_of!(lguest_trace_head, lost), lost);
        self.set(offset_of!(lguest_trace_head, written), written);
    }

    fn set(&mut self, offset: usize, value: u64) {
        const { assert!(size_of::<lguest_trace_head>() <= PAGE_SIZE) };
        let Some(head) = self.0.first() else {
            return;
        };
        // SAFETY: As in `put`; the offset is that of a field.
        unsafe { byte::<u64>(head, offset).write_volatile(value) };
    }

    /// The vCPU whose ring a mapping is to show, if it is that of one.
    pub(crate) fn vcpu(vma: &VmaNew) -> u64 {
        // SAFETY: It is being set up, so nobody else changes it.
        let offset = unsafe { (*vma.as_ptr()).vm_pgoff };
        offset as u64 / OFFSET_PAGES as u64
    }

    /// Maps all of it into an address space. `EINVAL` for a part, or to write it.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        let size = self.0.len() * PAGE_SIZE;
        // SAFETY: It is being set up, so nobody else changes it.
        let offset = unsafe { (*vma.as_ptr()).vm_pgoff } % OFFSET_PAGES;
        if vma.end() - vma.start() != size || offset != 0 {
            return Err(EINVAL);
        }
        vma.try_clear_maywrite()?;
        vma.try_clear_mayexec()?;
        vma.set_dontexpand();
        vma.set_dontcopy();
        let mapped = vma.set_mixedmap();
        for (page, address) in self.0.iter().zip((vma.start()..).step_by(PAGE_SIZE)) {
            mapped.vm_insert_page(address, page)?;
        }
        Ok(())
    }
}
