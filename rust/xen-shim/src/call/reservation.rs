// SPDX-License-Identifier: GPL-2.0
//! MEMORY_OP and GRANT_TABLE_OP: which memory there is, and the table by which the kernel lends pages to the Launcher.
//!
//! Frames are the kernel's for ever: what it gives back stays there, and it gets the same again.

use crate::memory::Result;
use crate::memory::{element, handover, read, write, PAGE};
use xen_abi::handover::M2P;
use xen_abi::memory::{
    grant_op, grant_status, op, E820Entry, Exchange, GrantQuerySize, GrantSetupTable,
    MachphysMapping, MemoryMap, Reservation,
};
use xen_abi::number::error::{EINVAL, ENOSYS};

/// RAM, in a map as the BIOS has it.
const E820_RAM: u32 = 1;
/// Frames of Xen's exchange of memory are at most 2^9 in a piece here: what a software I/O TLB asks for.
const MAX_ORDER: u32 = 9;

/// MEMORY_OP.
pub(super) fn memory(command: u64, argument: u64) -> Result {
    match command {
        op::MEMORY_MAP => {
            let mut map: MemoryMap = read(argument)?;
            if map.nr_entries == 0 {
                return Err(EINVAL);
            }
            let ram = E820Entry {
                addr: 0,
                size: handover().ram_pages * PAGE,
                kind: E820_RAM,
            };
            write(map.buffer, ram)?;
            map.nr_entries = 1;
            write(argument, map)?;
        }
        op::MACHPHYS_MAPPING => {
            let pages = handover().ram_pages;
            let mapping = MachphysMapping {
                v_start: M2P,
                v_end: M2P + pages * 8,
                max_mfn: pages - 1,
            };
            write(argument, mapping)?;
        }
        op::DECREASE_RESERVATION | op::POPULATE_PHYSMAP => {
            let wanted: Reservation = read(argument)?;
            return i64::try_from(wanted.nr_extents).map_err(|_| EINVAL);
        }
        op::EXCHANGE => exchange(argument)?,
        _ => return Err(ENOSYS),
    }
    Ok(0)
}

/// Makes frames contiguous, if they are already.
fn exchange(argument: u64) -> Result<()> {
    let mut wanted: Exchange = read(argument)?;
    let (input, output) = (wanted.input, wanted.output);
    if input.extent_order != 0 || output.extent_order > MAX_ORDER || output.nr_extents != 1 {
        return Err(EINVAL);
    }
    let count = 1 << output.extent_order;
    if input.nr_extents != count {
        return Err(EINVAL);
    }
    let first: u64 = read(input.extent_start)?;
    let mut contiguous = first % count == 0;
    for i in 1..count {
        let frame: u64 = read(element::<u64>(input.extent_start, i)?)?;
        contiguous &= frame == first.wrapping_add(i);
    }
    if !contiguous {
        return Err(xen_abi::number::error::ENOMEM);
    }
    write(output.extent_start, first)?;
    wanted.nr_exchanged = count;
    write(argument, wanted)
}

/// GRANT_TABLE_OP, on `count` structures.
pub(super) fn grants(command: u64, argument: u64, count: u64) -> Result {
    if count != 1 {
        return Err(EINVAL);
    }
    let frames = handover().grant_frames as u32;
    match command {
        grant_op::SETUP_TABLE => {
            let mut table: GrantSetupTable = read(argument)?;
            table.status = grant_status::GENERAL_ERROR;
            if table.nr_frames <= frames {
                for i in 0..u64::from(table.nr_frames) {
                    let frame = handover().grants / PAGE + i;
                    write(element::<u64>(table.frame_list, i)?, frame)?;
                }
                table.status = grant_status::OKAY;
            }
            write(argument, table)?;
        }
        grant_op::QUERY_SIZE => {
            let mut size: GrantQuerySize = read(argument)?;
            size.nr_frames = frames;
            size.max_nr_frames = frames;
            size.status = grant_status::OKAY;
            write(argument, size)?;
        }
        _ => return Err(ENOSYS),
    }
    Ok(0)
}
