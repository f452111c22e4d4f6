// SPDX-License-Identifier: GPL-2.0
//! Page tables and memory: what is the shim's, what is nobody's, and what there is not.

#![no_std]
#![no_main]

use lguest_hostile_xen::error::*;
use lguest_hostile_xen::{
    call, catch, commit, entry, gpa_of, map_program, page, peek, poke, power_off, program,
    set_traps, start_info, Caught, BAD_POINTERS, BASE, PROGRAM, PROGRAM_STACK,
};
use xen_abi::handover::{ALIAS, M2P, SHIM};
use xen_abi::memory::{ext, update, uvmf, MmuExtOp, MmuUpdate, DOMID_SELF};
use xen_abi::number::{CONSOLE_IO, MMUEXT_OP, MMU_UPDATE, UPDATE_VA_MAPPING};
use xen_abi::vcpu::IretFrame;

entry!(main);

const PAGE_FAULT: u64 = 14;
const BREAKPOINT: u64 = 3;
/// Of a page fault: the page is there; a write; user mode; a fetch.
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const I: u64 = 16;
/// An address of the kernel's that is free.
const FREE: u64 = 0xffff_c000_0000_0000;
/// Present, writable, accessed, dirty.
const LEAF: u64 = 0x63;

fn main() -> ! {
    set_traps();
    commit(&[
        ("mmu-update", mmu_update),
        ("update-va-mapping", update_va_mapping),
        ("mmuext", mmuext),
        ("root-outside", root_outside),
        ("root-of-zeros", root_of_zeros),
        ("table-outside", table_outside),
        ("pointer-to-nothing", pointer_to_nothing),
        ("hole", hole),
        ("hole-from-a-program", hole_from_a_program),
        ("read-the-slot", || peek(0xffff_8780_0000_0000)),
        ("own-entries-for-the-hole", own_entries),
        ("overwrite-the-shim", overwrite_the_shim),
    ])
}

fn update(ptr: u64, val: u64) -> i64 {
    let one = MmuUpdate { ptr, val };
    let mut done = 77u32;
    let result = call(
        MMU_UPDATE,
        &[
            (&raw const one) as u64,
            1,
            (&raw mut done) as u64,
            DOMID_SELF,
        ],
    );
    assert_eq!(done, u32::from(result == 0), "how many were done");
    result
}

/// Entries outside of RAM: the shim's area, a device's, none at all; and what is no entry.
fn mmu_update() {
    let end = start_info().nr_pages * 4096;
    for address in [
        end,
        end + 4096,
        (end + (2 << 20)) & !((2 << 20) - 1),
        1 << 38,
        1 << 46,
        1 << 52,
        u64::MAX & !7,
        4,
        end - 4,
    ] {
        for kind in [update::NORMAL, update::PRESERVE_AD, update::NO_TRANSLATE] {
            assert_eq!(update(address | kind, 0x4142), EINVAL, "{address:#x}");
        }
        assert_eq!(update((address & !7) | update::MACHPHYS, 0), 0);
    }
    let page = page();
    assert_eq!(update(page.frame() * 4096 + 8, 0x1234_5060), 0);
    assert_eq!(
        update((page.frame() * 4096 + 8) | update::PRESERVE_AD, 0x4321_5001),
        0
    );
    // SAFETY: a page of ours.
    let entry = unsafe { (page.gva() as *const u64).add(1).read_volatile() };
    assert_eq!(entry, 0x4321_5061);
    let one = MmuUpdate::default();
    for domain in [0, 1, 0x7ff1, 0x7ff2, u64::MAX] {
        let result = call(MMU_UPDATE, &[(&raw const one) as u64, 1, 0, domain]);
        assert_eq!(result, ESRCH, "domain {domain:#x}");
    }
}

fn update_va_mapping() {
    for gva in BAD_POINTERS.into_iter().chain([FREE, 0]) {
        for flags in [0, uvmf::TLB_FLUSH, uvmf::INVLPG, 3, u64::MAX] {
            assert_eq!(
                call(UPDATE_VA_MAPPING, &[gva & !4095, LEAF, flags]),
                EINVAL,
                "{gva:#x}"
            );
        }
    }
    let page = page();
    let own = gpa_of(page.gva());
    // SAFETY: an entry of our tables.
    unsafe { entry(FREE).write_volatile(0) };
    assert_eq!(call(UPDATE_VA_MAPPING, &[FREE, own | LEAF, 0]), 0);
    assert_eq!(catch(poke, FREE), None);
    assert_eq!(call(UPDATE_VA_MAPPING, &[FREE, 0, uvmf::INVLPG]), 0);
    assert_eq!(what(catch(poke, FREE)), (PAGE_FAULT, W));
}

fn extended(cmd: u32, arg1: u64, arg2: u64) -> i64 {
    let one = MmuExtOp {
        cmd,
        arg1,
        arg2,
        ..MmuExtOp::default()
    };
    call(MMUEXT_OP, &[(&raw const one) as u64, 1, 0, DOMID_SELF])
}

fn mmuext() {
    for cmd in [14, 16, 17, 19, 20, 99, u32::MAX] {
        assert_eq!(extended(cmd, 0, 0), ENOSYS, "command {cmd}");
    }
    for cmd in [ext::FLUSH_CACHE, ext::FLUSH_CACHE_GLOBAL] {
        assert_eq!(extended(cmd, 0, 0), EACCES);
    }
    // What makes no difference here, whatever it says.
    for cmd in (ext::PIN_L1_TABLE..=ext::UNPIN_TABLE).chain([ext::NEW_USER_BASEPTR, ext::SET_LDT]) {
        for frame in [0, start_info().nr_pages, 1 << 40, u64::MAX] {
            assert_eq!(extended(cmd, frame, frame), 0, "{cmd} of {frame:#x}");
        }
    }
    // Any address may be flushed, of vCPUs that there are or not; but which those are must be told.
    let everybody = u32::MAX;
    let set = (&raw const everybody) as u64;
    for bad in BAD_POINTERS {
        for (cmd, of, result) in [
            (ext::INVLPG_LOCAL, bad, 0),
            (ext::INVLPG_ALL, bad, 0),
            (ext::INVLPG_MULTI, set, 0),
            (ext::INVLPG_MULTI, bad, EFAULT),
            (ext::TLB_FLUSH_LOCAL, bad, 0),
            (ext::TLB_FLUSH_ALL, bad, 0),
            (ext::TLB_FLUSH_MULTI, set, 0),
            (ext::TLB_FLUSH_MULTI, bad, EFAULT),
        ] {
            assert_eq!(extended(cmd, bad, of), result, "{cmd} of {bad:#x}, {of:#x}");
        }
    }
}

fn root_outside() {
    for frame in [
        start_info().nr_pages,
        start_info().nr_pages + 512,
        1 << 26,
        1 << 40,
        1 << 52,
        u64::MAX,
    ] {
        assert_eq!(extended(ext::NEW_BASEPTR, frame, 0), EINVAL, "{frame:#x}");
    }
    assert_eq!(
        extended(ext::NEW_BASEPTR, gpa_of(start_info().pt_base) / 4096, 0),
        0
    );
}

/// It has the kernel's half no more: the first instruction behind the flush faults, and so does the way to the handler.
fn root_of_zeros() {
    let page = page();
    extended(ext::NEW_BASEPTR, page.frame(), 0);
    extended(ext::TLB_FLUSH_ALL, 0, 0);
}

fn table_outside() {
    let top = start_info().pt_base + ((FREE >> 39) & 511) * 8;
    // SAFETY: an entry of our tables.
    unsafe { (top as *mut u64).write_volatile((1 << 37) | LEAF) };
    peek(FREE);
}

/// The shim reads where the kernel has mapped what is not memory.
fn pointer_to_nothing() {
    // SAFETY: an entry of our tables.
    unsafe { entry(FREE).write_volatile((1 << 37) | LEAF) };
    call(CONSOLE_IO, &[0, 8, FREE]);
}

fn what(caught: Option<Caught>) -> (u64, u64) {
    caught.map_or((0, 0), |caught| (caught.vector, caught.error))
}

extern "C" fn jump(gva: u64) {
    // SAFETY: if there is code, it is no function; the test knows that there is none that may be executed.
    unsafe { core::mem::transmute::<u64, extern "C" fn()>(gva)() };
}

/// The kernel may read what the shim has, and write to some of it; its tables have the last word.
fn hole() {
    for frame in [0, 1, start_info().nr_pages - 1] {
        // SAFETY: the table of machine frames is there.
        let number = unsafe { (M2P as *const u64).add(frame as usize).read_volatile() };
        assert_eq!(number, frame);
    }
    assert_eq!(what(catch(poke, M2P)), (PAGE_FAULT, P | W));
    assert_eq!(what(catch(jump, M2P)), (PAGE_FAULT, P | I));
    assert_eq!(what(catch(jump, ALIAS)), (PAGE_FAULT, P | I));
    for slot in 258..270 {
        let gva = (0xffff << 48) | (slot << 39);
        assert_eq!(what(catch(peek, gva)), (PAGE_FAULT, 0), "slot {slot}");
    }
    assert_eq!(catch(peek, SHIM), None);
}

/// A program finds nothing in the kernel's half.
fn hole_from_a_program() {
    // mov (%rsi), %rax; int3
    map_program(&[0x48, 0x8b, 0x06, 0xcc]);
    for at in [M2P, ALIAS, SHIM, 0xffff_8700_0000_0000] {
        assert_eq!(load_in_a_program(at), (PAGE_FAULT, U), "{at:#x}");
    }
    assert_eq!(load_in_a_program(BASE), (PAGE_FAULT, P | U));
    assert_eq!(load_in_a_program(PROGRAM), (BREAKPOINT, 0));
}

fn load_in_a_program(at: u64) -> (u64, u64) {
    // RSI is what the kernel leaves in it: the address.
    let frame = IretFrame {
        rip: PROGRAM,
        cs: 0x33,
        rflags: 0x202,
        rsp: PROGRAM_STACK,
        ss: 0x2b,
        ..IretFrame::default()
    };
    // mov $at, %rsi in front of the program.
    let mut code = [0x48, 0xbe, 0, 0, 0, 0, 0, 0, 0, 0, 0x48, 0x8b, 0x06, 0xcc];
    code[2..10].copy_from_slice(&at.to_le_bytes());
    // SAFETY: the page of the program, which its entry names.
    unsafe {
        let page = BASE + (entry(PROGRAM).read_volatile() & 0x000f_ffff_ffff_f000);
        (page as *mut u8).copy_from(code.as_ptr(), code.len());
    }
    what(Some(program(&frame)))
}

/// The root's own entries for the hole are not looked at.
fn own_entries() {
    let root = start_info().pt_base as *mut u64;
    for slot in 256..271 {
        // SAFETY: entries of our root.
        unsafe { root.add(slot).write_volatile((1 << 37) | LEAF) };
    }
    extended(ext::TLB_FLUSH_ALL, 0, 0);
    hole();
}

/// The shim's image, mapped by the kernel, and filled with INT3: the end of this Guest.
fn overwrite_the_shim() {
    let end = start_info().nr_pages.next_multiple_of(512) * 4096;
    for gpa in (end..end + (8 << 20)).step_by(4096) {
        // SAFETY: entries of our tables, and memory that is in the Guest.
        unsafe {
            entry(FREE).write_volatile(gpa | LEAF);
            extended(ext::INVLPG_LOCAL, FREE, 0);
            let first = (FREE as *const u64).read_volatile();
            if first == (SHIM as *const u64).read_volatile() && first != 0 {
                for i in 0..64 {
                    entry(FREE + i * 4096).write_volatile((gpa + i * 4096) | LEAF);
                }
                extended(ext::INVLPG_LOCAL, FREE, 0);
                (FREE as *mut u8).write_bytes(0xcc, 16 * 4096);
                extended(ext::INVLPG_LOCAL, FREE, 0);
            }
        }
    }
    power_off();
}
