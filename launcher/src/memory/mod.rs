// SPDX-License-Identifier: GPL-2.0
//! Guest-physical memory: where RAM and devices lie, and how RAM is made.

pub mod cgroup;
pub mod dma;
pub mod grants;

use std::fs;
use std::io;

use nix::libc;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::memory::cgroup::Room;
use crate::report::codes::Code;
use crate::report::system::setup;
use crate::report::{Error, Explain};

/// The RAM of a Guest, addressed by GPA.
pub type Memory = GuestMemoryMmap<()>;

/// Page size, in bytes.
pub const PAGE: u64 = 0x1000;
/// Below this GPA is the Launcher's boot data: see [`crate::boot`].
pub const BOOT_DATA_END: u64 = 0x10_0000;
/// GPA of the window of device 0; device n is [`DEVICE_SIZE`] * n further on.
pub const DEVICES: u64 = 0xd000_0000;
/// Size of a device's window, in bytes.
pub const DEVICE_SIZE: u64 = 0x1000;
/// RAM that does not fit below [`DEVICES`] goes on from this GPA.
const HIGH_RAM: u64 = 4 << 30;

/// The parts of RAM, as GPA and size, for `size` bytes in all.
pub fn layout(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(DEVICES);
    let parts = [(0, low), (HIGH_RAM, size - low)];
    parts.into_iter().filter(|&(_, size)| size != 0).collect()
}

/// Makes `size` bytes of RAM in the usual parts, all 0.
pub fn create(size: u64) -> io::Result<Memory> {
    create_parts(&layout(size))
}

/// Makes RAM in `parts`, as GPA and size, all 0.
///
/// RAM is mapped shared: a fork of the Launcher sees the same pages and copies none. It has no descriptor,
/// so nobody can pull pages from under the Guest, and its size is no file's: the limit on those
/// (`ulimit -f`) is for the command's.
pub fn create_parts(parts: &[(u64, u64)]) -> io::Result<Memory> {
    const FLAGS: i32 = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let region = |&(gpa, size): &(u64, u64)| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = MmapRegion::build(None, size as usize, access, FLAGS);
        let mapping = mapping.map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            error => io::Error::other(error),
        })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(gpa));
        region.ok_or_else(|| io::Error::other("memory beyond the last address"))
    };
    let regions = parts.iter().map(region);
    let regions = regions.collect::<io::Result<_>>()?;
    Memory::from_regions(regions).map_err(io::Error::other)
}

/// How much a Guest of `size` bytes takes beside its RAM, in bytes: lg itself, the page tables of
/// both, and the shadow tables of a usual Guest. They count in a control group as well.
pub fn beside(size: u64) -> u64 {
    (16 << 20) + size / 32
}

/// The reasons why a Guest cannot have so much RAM.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum MemoryError {
    #[error("cannot make {} MiB of memory for the guest", size >> 20)]
    Refused { size: u64, source: io::Error },
    #[error("{} MiB for the guest are more than this host has", size >> 20)]
    Host { size: u64, available: u64 },
    #[error("{} MiB for the guest are more than its control group allows", size >> 20)]
    Group { size: u64, beside: u64, room: Room },
}

impl Explain for MemoryError {
    fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::Memory,
            Self::Host { .. } => Code::HostMemory,
            Self::Group { .. } => Code::GroupMemory,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Refused { source, .. } => source.to_string(),
            Self::Host { available, .. } => format!(
                "{} MiB are free beside other guests and programs, in memory and in swap",
                available >> 20
            ),
            Self::Group { beside, room, .. } => format!(
                "of the {} MiB of {}, {} MiB are left, lg needs {} MiB beside the guest, and who \
                 needs more is killed",
                room.limit >> 20,
                room.group.display(),
                room.available >> 20,
                beside >> 20
            ),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Refused { .. } => "give it less with -m, or free some memory".into(),
            Self::Host { .. } => "give it less with -m, or end another guest".into(),
            Self::Group { beside, room, .. } => {
                // What it takes beside its RAM is less with less RAM.
                let fits = room.available.saturating_sub(*beside) >> 20;
                format!("give it less with -m, such as -m {fits}M, or give the group more")
            }
        }
    }
}

/// Looks whether the Host has `size` bytes of RAM for a Guest, and makes nothing.
///
/// # Errors
///
/// It has less, or a control group of ours allows less.
pub fn check(size: u64) -> Result<(), Error> {
    let available = available().map_err(setup("memory"))?;
    if size > available.all {
        let available = available.all;
        return Err(MemoryError::Host { size, available }.into());
    }
    let beside = beside(size);
    match cgroup::least_room(available.swap) {
        Some(room) if size + beside > room.available => {
            Err(MemoryError::Group { size, beside, room }.into())
        }
        _ => Ok(()),
    }
}

/// Makes RAM in `parts`, as GPA and size.
///
/// # Errors
///
/// The system refuses.
pub fn make(parts: &[(u64, u64)]) -> Result<Memory, Error> {
    create_parts(parts).map_err(|source| {
        let size = parts.iter().map(|(_, size)| size).sum();
        MemoryError::Refused { size, source }.into()
    })
}

/// The rest of the Host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    /// The most RAM that a Guest can have: what the kernel thinks is free or easily made free, and `swap`.
    pub all: u64,
    /// The memory that the kernel can free by swapping others out.
    pub swap: u64,
}

/// Its amount.
pub fn available() -> io::Result<Available> {
    available_by(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

fn available_by(meminfo: &str) -> Option<Available> {
    let bytes = |name| {
        let (_, rest) = meminfo.split_once(name)?;
        let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    };
    let swap = bytes("\nSwapFree:").unwrap_or(0);
    let all = bytes("\nMemAvailable:")?.checked_add(swap)?;
    Some(Available { all, swap })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion};

    use super::*;

    #[test]
    fn small_ram_is_one_part() {
        assert_eq!(layout(512 << 20), [(0, 512 << 20)]);
        assert_eq!(layout(DEVICES), [(0, DEVICES)]);
    }

    #[test]
    fn large_ram_leaves_a_hole_for_devices() {
        assert_eq!(layout(DEVICES + PAGE), [(0, DEVICES), (HIGH_RAM, PAGE)]);
    }

    #[test]
    fn free_memory() {
        let meminfo = "MemTotal:  999 kB\nMemAvailable:     20 kB\nSwapFree:   3 kB\n";
        let kib = |all: u64, swap: u64| {
            let (all, swap) = (all << 10, swap << 10);
            Some(Available { all, swap })
        };
        assert_eq!(available_by(meminfo), kib(23, 3));
        assert_eq!(
            available_by("MemTotal: 1 kB\nMemAvailable: 7 kB\n"),
            kib(7, 0)
        );
        for bad in ["", "\nMemAvailable:", "\nMemAvailable: x kB\n"] {
            assert_eq!(available_by(bad), None, "{bad:?}");
        }
        assert!(available().unwrap().all > 0);
    }

    #[test]
    fn both_parts_are_there_and_apart() {
        let memory = create(DEVICES + 2 * PAGE).unwrap();
        assert_eq!(
            memory.iter().map(|region| region.len()).sum::<u64>(),
            DEVICES + 2 * PAGE
        );
        memory.write_obj(1u64, GuestAddress(DEVICES - 8)).unwrap();
        memory.write_obj(2u64, GuestAddress(HIGH_RAM)).unwrap();
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress(DEVICES - 8)).unwrap(),
            1
        );
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress(HIGH_RAM + 8)).unwrap(),
            0
        );
        memory.write_obj(3u64, GuestAddress(DEVICES)).unwrap_err();
    }
}
