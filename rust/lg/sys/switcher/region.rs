// SPDX-License-Identifier: GPL-2.0

//! The pages of one vCPU in the switcher's slot: its descriptor tables among them.

use super::{
    super::{
        host,
        page::{
            HostPage, //
        },
    },
    layout::*, //
};
use crate::lg_core::segment;
use core::mem::offset_of;
use kernel::prelude::*;

const CPUNODE_INDEX: usize = 15;

/// Pages of one vCPU.
pub(super) struct Region {
    pub(super) base: u64,
    pub(super) state: HostPage,
    pub(super) shared: HostPage,
    pub(super) gdt: HostPage,
    pub(super) idt: HostPage,
    pub(super) stacks: HostPage,
}

impl Region {
    pub(super) fn new(base: u64) -> Result<Self> {
        let this = Self {
            base,
            state: HostPage::new()?,
            shared: HostPage::new()?,
            gdt: HostPage::new()?,
            idt: HostPage::new()?,
            stacks: HostPage::new()?,
        };
        this.fill_gdt();
        this.fill_tss();
        this.fill_idt();
        Ok(this)
    }

    /// Empties what a Guest or its switcher writes: registers, roots, the shared page, descriptors, stacks.
    ///
    /// # Safety
    ///
    /// Nobody has a [`Switcher`](super::Switcher) of the region.
    pub(super) unsafe fn reset(&self) {
        for page in [&self.state, &self.shared, &self.gdt, &self.stacks] {
            // SAFETY: The pages are ours, and nobody uses them.
            unsafe { page.as_ptr::<u8>().write_bytes(0, 4096) };
        }
        self.fill_gdt();
        self.fill_tss();
    }

    /// The Guest's GDT has Linux's indices, so that STAR stays the Host's.
    fn fill_gdt(&self) {
        let gdt = self.gdt.as_ptr::<[u64; GDT_ENTRIES]>();
        let tss = segment::tss_descriptor(self.base + GDT + TSS_OFFSET, TSS_LIMIT);
        let mut entries = [0; GDT_ENTRIES];
        entries[2] = segment::KERNEL_CODE;
        entries[3] = segment::KERNEL_DATA;
        entries[4] = segment::USER_CODE32;
        entries[5] = segment::USER_DATA;
        entries[6] = segment::USER_CODE64;
        entries[TSS_INDEX] = tss[0];
        entries[TSS_INDEX + 1] = tss[1];
        entries[CPUNODE_INDEX] = segment::cpunode_descriptor(0);
        // SAFETY: The page is ours, and not in use yet.
        unsafe { gdt.write(entries) };
    }

    /// RSP0 is the end of `State::regs`; the IST entries have Linux's numbers, since the Host's TSS
    /// is loaded for a moment while our IDT is. No I/O bitmap: its offset lies beyond the limit.
    fn fill_tss(&self) {
        let rsp0 =
            self.base + STATE + (offset_of!(State, regs) + core::mem::size_of::<Regs>()) as u64;
        // SAFETY: The TSS lies in our page behind the GDT, and is not in use yet. Its fields are
        // not aligned.
        unsafe {
            let tss = self.gdt.as_ptr::<u8>().add(TSS_OFFSET as usize);
            tss.add(4).cast::<u64>().write_unaligned(rsp0);
            for ist in 1..=4 {
                let top = self.base + STACKS + ist as u64 * 1024;
                tss.add(36 + 8 * (ist - 1))
                    .cast::<u64>()
                    .write_unaligned(top);
            }
            tss.add(102)
                .cast::<u16>()
                .write_unaligned(TSS_LIMIT as u16 + 1);
        }
    }

    fn fill_idt(&self) {
        let idt = self.idt.as_ptr::<[[u64; 2]; 256]>();
        for vector in 0..256u64 {
            // Linux's numbers: IST_INDEX_DF, _NMI, _DB, _MCE, plus one.
            let ist = match vector {
                8 => 1,
                2 => 2,
                1 => 3,
                18 => 4,
                _ => 0,
            };
            // INT3, INTO and INT 0x80 are for everybody; any other INT n is #GP, as under Linux.
            // Nor is INT 0x80 where a device of the Host's may have the vector.
            let open = matches!(vector, 3 | 4) || vector == 0x80 && host::int80_is_system_call();
            let dpl = if open { 3 } else { 0 };
            let gate = segment::interrupt_gate(HOST_CS, self.base + vector * 16, ist, dpl);
            // SAFETY: The page is ours, holds 256 gates, and is not in use yet.
            unsafe { (*idt)[vector as usize] = gate };
        }
    }
}
