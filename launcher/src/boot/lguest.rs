// SPDX-License-Identifier: GPL-2.0
//! The places of a Guest by lg's own contract, with its boot data in the first MiB.
//!
//! | GPA | |
//! |---|---|
//! | 0x7000 | `boot_params` |
//! | 0x20000 | command line |
//! | 0x30000 to 1 MiB | page tables |
//! | where they say | the kernel's segments |
//! | as high as Linux allows | initrd |

use std::ffi::CStr;
use std::mem::offset_of;

use lguest_abi::{boot_e820_entry, boot_params, LGUEST_PAGE_OFFSET, LGUEST_SUBARCH};
use vm_memory::{GuestMemory, GuestMemoryRegion};

use crate::boot::page_tables::{MapError, PageTables};
use crate::boot::ram::{kernel_end, write, Entry, LoadError};
use crate::image::{Image, ImageError};
use crate::memory::{self, Memory, BOOT_DATA_END, PAGE};
use crate::report::Error;

const BOOT_PARAMS: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const PAGE_TABLES: u64 = 0x3_0000;
/// So long is a command line that Linux takes, with the NUL at its end.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// An initrd ends below this GPA (`initrd_addr_max` of Linux).
const INITRD_END: u64 = 2 << 30;
const E820_RAM: u32 = 1;

/// The places of a Guest in RAM: checked, and nothing is written yet.
pub struct Layout {
    /// RAM, in bytes.
    ram: u64,
    /// GPA of the initrd.
    initrd: u64,
    tables: PageTables,
}

impl Layout {
    /// The place of `image` and an initrd of so many bytes (0: none) in `ram` bytes of RAM.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn of(image: &Image, initrd_size: usize, ram: u64) -> Result<Self, Error> {
        check_kernel(image, ram)?;
        let initrd = place_of_initrd(image, initrd_size, ram)?;
        let tables = page_tables(image, ram)?;
        Ok(Self {
            ram,
            initrd,
            tables,
        })
    }

    /// RAM, in bytes.
    pub(super) fn ram(&self) -> u64 {
        self.ram
    }

    /// Loads what this is the layout for into `memory`, which is all 0 and has the size it is for.
    /// `command_line` has at most [`COMMAND_LINE_SIZE`] bytes.
    pub fn load(
        &self,
        memory: &Memory,
        image: &Image,
        initrd: &[u8],
        command_line: &CStr,
    ) -> Entry {
        for segment in &image.segments {
            write(memory, segment.gpa, image.bytes(segment));
        }
        write(memory, self.initrd, initrd);
        write(memory, COMMAND_LINE, command_line.to_bytes_with_nul());
        write_boot_params(memory, self.initrd, initrd.len() as u64);
        write(memory, self.tables.root(), &self.tables.bytes());
        Entry {
            cr3: self.tables.root(),
            rip: image.entry,
            rsi: BOOT_PARAMS,
        }
    }
}

/// The largest initrd, in bytes, for which there is a place beside `image`, in whatever RAM.
pub(super) fn initrd_limit(image: &Image) -> u64 {
    INITRD_END.saturating_sub(kernel_end(image))
}

fn check_kernel(image: &Image, ram: u64) -> Result<(), LoadError> {
    let parts = memory::layout(ram);
    for segment in &image.segments {
        // No sum overflows: a segment ends at LGUEST_MAX_GPA at most.
        let fits = |&(start, size): &(u64, u64)| {
            segment.gpa >= start && segment.gpa + segment.size <= start + size
        };
        if !parts.iter().any(fits) {
            return Err(LoadError::TooLittleMemory {
                given: ram,
                needed: kernel_end(image),
            });
        }
    }
    Ok(())
}

/// Returns the GPA of the initrd.
fn place_of_initrd(image: &Image, size: usize, ram: u64) -> Result<u64, LoadError> {
    let size = (size as u64).next_multiple_of(PAGE);
    let (limit, kernel_end) = (initrd_limit(image), kernel_end(image));
    if size > limit {
        return Err(LoadError::InitrdTooLarge { size, limit });
    }
    let low_ram = memory::layout(ram).first().map_or(0, |&(_, size)| size);
    let start = low_ram.min(INITRD_END).saturating_sub(size);
    if start < kernel_end {
        let needed = kernel_end + size;
        return Err(LoadError::TooLittleMemory { given: ram, needed });
    }
    Ok(start)
}

/// Fills in what Linux reads from the `boot_params` when a boot loader has started its 64-bit code.
fn write_boot_params(memory: &Memory, initrd_start: u64, initrd_size: u64) {
    let put8 = |at, value: u8| write(memory, BOOT_PARAMS + at as u64, &[value]);
    let put16 = |at, value: u16| write(memory, BOOT_PARAMS + at as u64, &value.to_le_bytes());
    let put32 = |at, value: u32| write(memory, BOOT_PARAMS + at as u64, &value.to_le_bytes());
    let put64 = |at, value: u64| write(memory, BOOT_PARAMS + at as u64, &value.to_le_bytes());

    put16(offset_of!(boot_params, hdr.boot_flag), 0xaa55);
    put32(
        offset_of!(boot_params, hdr.header),
        u32::from_le_bytes(*b"HdrS"),
    );
    put16(offset_of!(boot_params, hdr.version), 0x20f);
    put8(offset_of!(boot_params, hdr.type_of_loader), 0xff);
    put32(
        offset_of!(boot_params, hdr.hardware_subarch),
        LGUEST_SUBARCH,
    );
    put32(
        offset_of!(boot_params, hdr.cmd_line_ptr),
        COMMAND_LINE as u32,
    );
    put32(
        offset_of!(boot_params, hdr.cmdline_size),
        COMMAND_LINE_SIZE as u32 - 1,
    );
    if initrd_size != 0 {
        put32(
            offset_of!(boot_params, hdr.ramdisk_image),
            initrd_start as u32,
        );
        put32(
            offset_of!(boot_params, hdr.ramdisk_size),
            initrd_size as u32,
        );
    }
    let mut entries = 0;
    for region in memory.iter() {
        let entry = offset_of!(boot_params, e820_table)
            + usize::from(entries) * size_of::<boot_e820_entry>();
        put64(
            entry + offset_of!(boot_e820_entry, addr),
            region.start_addr().0,
        );
        put64(entry + offset_of!(boot_e820_entry, size), region.len());
        put32(entry + offset_of!(boot_e820_entry, type_), E820_RAM);
        entries += 1;
    }
    put8(offset_of!(boot_params, e820_entries), entries);
}

fn page_tables(image: &Image, ram: u64) -> Result<PageTables, Error> {
    let full = |error| match error {
        MapError::Full => Error::from(LoadError::TooMuchMemory {
            given: ram,
            why: "the guest's first page tables lie in the first MiB of RAM, and map no more",
        }),
        MapError::Conflict => {
            let what = "its segments lie over each other, or over where RAM is mapped";
            image.refused(ImageError::Malformed(what)).into()
        }
    };
    let mut tables = PageTables::new(PAGE_TABLES..BOOT_DATA_END);
    for (gpa, size) in memory::layout(ram) {
        tables.map(gpa, gpa, size).map_err(full)?;
    }
    tables.alias_low(LGUEST_PAGE_OFFSET as u64).map_err(full)?;
    for segment in &image.segments {
        tables
            .map(segment.gva, segment.gpa, segment.size)
            .map_err(full)?;
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::boot::page_tables::tests::walk;
    use crate::image::tests::{elf, good_notes, TEXT};
    use crate::report::codes::Code;

    const MIB: u64 = 1 << 20;

    fn image() -> Image {
        Image::parse(elf(&good_notes())).unwrap()
    }

    fn ram(size: u64) -> Memory {
        crate::memory::create(size).unwrap()
    }

    fn load(
        memory: &Memory,
        image: &Image,
        initrd: &[u8],
        command_line: &CStr,
    ) -> Result<Entry, Error> {
        let ram = memory.iter().map(GuestMemoryRegion::len).sum();
        let layout = Layout::of(image, initrd.len(), ram)?;
        Ok(layout.load(memory, image, initrd, command_line))
    }

    fn read<T: vm_memory::ByteValued>(memory: &Memory, gpa: u64) -> T {
        memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    fn field<T: vm_memory::ByteValued>(memory: &Memory, offset: usize) -> T {
        read(memory, BOOT_PARAMS + offset as u64)
    }

    #[test]
    fn everything_is_where_the_guest_looks() {
        let memory = ram(64 * MIB);
        let entry = load(&memory, &image(), b"initrd", c"console=hvc0").unwrap();
        assert_eq!(entry.rip, TEXT + 0x10);
        assert_eq!(read::<[u8; 2]>(&memory, 0x100_002f), [0x90, 0]);
        assert_eq!(field::<u32>(&memory, 0x202), 0x5372_6448);
        assert_eq!(field::<u32>(&memory, 0x23c), 1, "hardware_subarch");
        let line: u32 = field(&memory, 0x228);
        assert_eq!(read::<[u8; 13]>(&memory, line.into()), *b"console=hvc0\0");
        let initrd: u32 = field(&memory, 0x218);
        assert_eq!(
            (u64::from(initrd), field::<u32>(&memory, 0x21c)),
            (64 * MIB - PAGE, 6)
        );
        assert_eq!(read::<[u8; 6]>(&memory, initrd.into()), *b"initrd");
        assert_eq!(field::<u8>(&memory, 0x1e8), 1, "e820_entries");
        assert_eq!(field::<[u64; 2]>(&memory, 0x2d0), [0, 64 * MIB]);
        assert_eq!(field::<u32>(&memory, 0x2e0), 1);
    }

    #[test]
    fn the_tables_are_those_of_the_contract() {
        let size = crate::memory::DEVICES + 64 * MIB;
        let memory = ram(size);
        let entry = load(&memory, &image(), &[], c"").unwrap();
        let translate = |gva| walk(|gpa| read(&memory, gpa), entry.cr3, gva);
        for gpa in [0, 0x7000, 0xcfff_ffff, 4 << 30, (4 << 30) + 64 * MIB - 1] {
            assert_eq!(translate(gpa), Some(gpa));
            assert_eq!(translate(0xffff_8880_0000_0000 + gpa), Some(gpa));
        }
        for gpa in [crate::memory::DEVICES, (4 << 30) - 1, (4 << 30) + 64 * MIB] {
            assert_eq!(translate(gpa), None);
            assert_eq!(translate(0xffff_8880_0000_0000 + gpa), None);
        }
        assert_eq!(translate(TEXT + 0x1fff), Some(0x100_1fff));
        assert_eq!(translate(TEXT + 0x2000), None);
        assert_eq!(field::<u8>(&memory, 0x1e8), 2, "e820_entries");
        assert_eq!(field::<u32>(&memory, 0x21c), 0, "ramdisk_size");
    }

    #[test]
    fn what_does_not_fit() {
        let error = |size, initrd: &[u8]| {
            let Err(error) = Layout::of(&image(), initrd.len(), size) else {
                panic!("it should be refused")
            };
            error
        };
        let small = error(16 * MIB, &[]);
        assert_eq!(small.code(), Code::TooLittleMemory, "{small:?}");
        // The kernel ends at 0x100_2000.
        assert!(small.fix().contains("-m 81M"), "{}", small.fix());
        let initrd = error(18 * MIB, &vec![0; 2 << 20]);
        assert_eq!(initrd.code(), Code::TooLittleMemory, "{initrd:?}");
        assert!(initrd.why().contains("fill 19 MiB"), "{}", initrd.why());
        // The tables of 220 GiB do not fit below 1 MiB.
        let large = error(220 << 30, &[]);
        assert_eq!(large.code(), Code::TooMuchMemory, "{large:?}");
    }

    #[test]
    fn an_initrd_stays_below_2_gib() {
        let memory = ram(3 << 30);
        load(&memory, &image(), b"x", c"").unwrap();
        assert_eq!(field::<u32>(&memory, 0x218), (2 << 30) - PAGE as u32);
    }

    #[test]
    fn a_kernel_over_the_direct_map_is_refused() {
        let mut image = image();
        image.segments[0].gva = 0xffff_8880_0000_0000;
        let error = Layout::of(&image, 0, 64 * MIB).map(drop).unwrap_err();
        assert_eq!(error.code(), Code::DamagedKernel, "{error:?}");
    }
}
