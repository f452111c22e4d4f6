// SPDX-License-Identifier: GPL-2.0
//! The places of a paravirtualized kernel of Xen's, and of the shim that answers it: Xen's domain builder.
//!
//! | GPA | |
//! |---|---|
//! | where they say | the kernel's segments |
//! | behind them | `start_info`, the rings of xenstore and console, the first page tables (root first), the boot stack |
//! | a multiple of 4 MiB | the list of all frames, and the tables that map it |
//! | behind them | initrd |
//! | behind all RAM | the shim's area: see [`xen_abi::handover`] |
//!
//! All up to the list is mapped at the kernel's `virt_base`, in small pages. Machine frames are the same as
//! the kernel's own: the list says that frame n is n.
//!
//! Source: xen/include/public/xen.h, "Start-of-day memory layout", and what Linux expects beyond that
//! (arch/x86/xen/mmu_pv.c): tables in the order root, level 3, level 2 and then all of level 1; the list of
//! frames behind everything that is mapped, with its tables.

use std::ffi::CStr;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

use xen_abi::handover::{self, Handover, ALIAS, M2P, SHIM};
use xen_abi::start_info::{self, StartInfo};

use crate::boot::page_tables::{Access, MapError, PageTables};
use crate::boot::ram::{kernel_end, write, Entry, LoadError};
use crate::devices::pci::BAR_SIZE;
use crate::image::xen::Notes;
use crate::image::{Image, ImageError};
use crate::memory::grants::Grants;
use crate::memory::{Memory, PAGE};
use crate::report::codes::Code;
use crate::report::{Error, Explain};

/// The path where an installed lg finds the shim.
pub const INSTALLED_SHIM: &str = "/usr/lib/lg/xen-shim";

/// Pages of the grant table: version 1, 512 grants each.
const GRANT_FRAMES: u64 = 32;

const LARGE: u64 = 2 << 20;
/// A table of level 2 maps so much.
const GIB: u64 = 1 << 30;
/// The kernel finds at least so much mapped behind its boot stack, up to a multiple of the other.
const PADDING: u64 = 512 << 10;
const PADDING_UNIT: u64 = 4 << 20;
/// Entries of a table, and frames in a page of a list of frames.
const ENTRIES: u64 = 512;

/// Flags of an entry of the kernel's first tables: present, writable, for user mode too, accessed, dirty.
/// Xen's builder has the same, but for the last level.
const TABLE: u64 = 0x67;
const LEAF: u64 = 0x63;

/// There is no shim.
#[derive(Debug, thiserror::Error)]
#[error("{}", Code::NoShim.title())]
struct NoShim(PathBuf);

impl Explain for NoShim {
    fn code(&self) -> Code {
        Code::NoShim
    }

    fn why(&self) -> String {
        format!("{} does not exist", self.0.display())
    }
}

/// The shim.
///
/// # Errors
///
/// It is not installed, or damaged.
pub fn shim() -> Result<Image, Error> {
    let path = Path::new(INSTALLED_SHIM);
    if !path.exists() {
        return Err(NoShim(path.into()).into());
    }
    Image::open_linked_at(SHIM, path)
}

/// The GPAs that those must know who serve the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Pages of RAM: the frames that the kernel may name to us.
    pub ram_pages: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// The xenstore's ring.
    pub store: u64,
    /// The console's ring.
    pub console: u64,
    /// The grant table, [`GRANT_FRAMES`] pages.
    pub grants: u64,
    /// [`handover::Raised`].
    pub raised: u64,
    /// Hypercall NOTIFY for this and a port calls the port's backend.
    pub notify: u64,
}

impl Places {
    /// The grant table, in `memory`.
    pub fn grants(&self, memory: &Memory) -> Grants {
        Grants::new(memory.clone(), self.grants, GRANT_FRAMES, self.ram_pages)
    }

    /// The GPA from which on the devices' registers are: behind all memory, and behind what the kernel calls by.
    pub fn bars(&self) -> u64 {
        (self.notify + PAGE).next_multiple_of(BAR_SIZE)
    }
}

/// Where the kernel, and all that it finds, will be.
#[derive(Debug)]
pub struct Layout {
    notes: Notes,
    ram: u64,
    vcpus: u32,
    start_info: u64,
    store: u64,
    console: u64,
    /// The root of the kernel's first tables, and behind it the others.
    tables: u64,
    /// Tables of level 1.
    level_1: u64,
    stack: u64,
    /// The end of what is mapped, and the list of frames.
    list: u64,
    list_tables: u64,
    initrd: u64,
    area: Area,
}

/// The shim's area.
#[derive(Debug)]
struct Area {
    shim: Image,
    handover: u64,
    shared_info: u64,
    raised: u64,
    grants: u64,
    /// The machine-to-physical table.
    m2p: u64,
    tables: PageTables,
    end: u64,
}

impl Layout {
    /// The place of `image`, which says `notes`, with `shim` and an initrd of so many bytes (0: none), in
    /// `ram` bytes of RAM, for `vcpus` vCPUs.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn of(
        image: &Image,
        notes: &Notes,
        shim: Image,
        initrd_size: usize,
        (ram, vcpus): (u64, u32),
    ) -> Result<Self, Error> {
        let start_info = kernel_end(image);
        let tables = start_info + 3 * PAGE;
        // The more is mapped, the more tables are in it.
        let (mut level_1, mut stack, mut list) = (0, 0, 0);
        while list == 0 || level_1 * LARGE < list {
            level_1 = list.div_ceil(LARGE);
            stack = tables + (3 + level_1) * PAGE;
            list = (stack + PAGE + PADDING).next_multiple_of(PADDING_UNIT);
        }
        if list > GIB {
            let what = "it is larger than the first page tables of Xen's ABI can map";
            return Err(image.refused(ImageError::Malformed(what)).into());
        }
        let list_tables = list + frames_of_list(ram) * PAGE;
        let initrd = list_tables + tables_of(frames_of_list(ram)) * PAGE;
        // The initrd is checked to be smaller than all addresses.
        let needed = initrd + (initrd_size as u64).next_multiple_of(PAGE);
        if needed > ram {
            return Err(LoadError::TooLittleMemory { given: ram, needed }.into());
        }
        Ok(Self {
            notes: notes.clone(),
            ram,
            vcpus,
            start_info,
            store: start_info + PAGE,
            console: start_info + 2 * PAGE,
            tables,
            level_1,
            stack,
            list,
            list_tables,
            initrd,
            area: Area::of(shim, ram)?,
        })
    }

    /// All memory, in bytes, from GPA 0: RAM, and the shim's area.
    pub fn all(&self) -> u64 {
        self.area.end
    }

    /// The GPAs that those must know who serve the kernel.
    pub fn places(&self) -> Places {
        Places {
            ram_pages: self.ram / PAGE,
            vcpus: self.vcpus,
            store: self.store,
            console: self.console,
            grants: self.area.grants,
            raised: self.area.raised,
            notify: self.area.end,
        }
    }

    /// Loads what this is the layout for into `memory`, which is all 0 and has [`Self::all`].
    pub(super) fn load(
        &self,
        memory: &Memory,
        image: &Image,
        initrd: &[u8],
        command_line: &CStr,
    ) -> Entry {
        for segment in &image.segments {
            write(memory, segment.gpa, image.bytes(segment));
        }
        if let Some(page) = self.notes.hypercall_page {
            let segment = image.segments.iter().find(|segment| segment.contains(page));
            let segment = segment.expect("the image is checked to have the page");
            write(
                memory,
                segment.gpa + (page - segment.gva),
                &hypercall_page(),
            );
        }
        write(memory, self.initrd, initrd);
        let start_info = self.start_info(initrd.len() as u64, command_line);
        write(memory, self.start_info, &start_info);
        self.write_tables(memory);
        // The list of frames: frame n is machine frame n.
        write_identity(memory, self.list, self.ram / PAGE);
        let gva = |gpa: u64| self.notes.virt_base + gpa;
        self.area.load(memory, self.ram);
        let handover = Handover {
            magic: handover::MAGIC,
            version: handover::VERSION,
            vcpus: self.vcpus,
            shim: self.ram,
            root: self.area.tables.root(),
            ram_pages: self.ram / PAGE,
            all_pages: self.area.end / PAGE,
            entry: self.notes.entry,
            start_info: gva(self.start_info),
            stack: gva(self.stack + PAGE),
            cr3: self.tables,
            shared_info: self.area.shared_info,
            grants: self.area.grants,
            grant_frames: GRANT_FRAMES,
            raised: self.area.raised,
            notify: self.area.end,
        };
        write(memory, self.area.handover, &handover_bytes(&handover));
        Entry {
            cr3: self.area.tables.root(),
            rip: self.area.shim.entry,
            rsi: self.area.handover,
        }
    }

    fn start_info(&self, initrd_size: u64, command_line: &CStr) -> Vec<u8> {
        let mut magic = [0; 32];
        magic[..start_info::MAGIC.len()].copy_from_slice(start_info::MAGIC);
        let mut cmd_line = [0; start_info::COMMAND_LINE_SIZE];
        let line = command_line.to_bytes_with_nul();
        cmd_line[..line.len()].copy_from_slice(line);
        let (flag, mod_start) = match initrd_size {
            0 => (0, 0),
            _ => (start_info::SIF_MOD_START_PFN, self.initrd / PAGE),
        };
        let first_p2m_pfn = self.list / PAGE;
        let info = StartInfo {
            magic,
            nr_pages: self.ram / PAGE,
            shared_info: self.area.shared_info,
            flags: flag | start_info::SIF_VIRT_P2M_4TOOLS,
            padding: 0,
            store_mfn: self.store / PAGE,
            store_evtchn: handover::STORE_PORT,
            padding_store: 0,
            console_mfn: self.console / PAGE,
            console_evtchn: handover::CONSOLE_PORT,
            padding_console: 0,
            pt_base: self.notes.virt_base + self.tables,
            nr_pt_frames: 3 + self.level_1,
            mfn_list: self.notes.p2m,
            mod_start,
            mod_len: initrd_size,
            cmd_line,
            first_p2m_pfn,
            nr_p2m_frames: self.initrd / PAGE - first_p2m_pfn,
        };
        start_info_bytes(&info)
    }

    /// Writes the kernel's first page tables.
    fn write_tables(&self, memory: &Memory) {
        let slot = |gva: u64| 8 * ((gva >> 39) & (ENTRIES - 1));
        let base = self.notes.virt_base;
        let (kernel, frames) = (self.tables + PAGE, frames_of_list(self.ram));
        let root = |gva, table: u64| {
            write(
                memory,
                self.tables + slot(gva),
                &(table | TABLE).to_le_bytes(),
            );
        };
        root(base, kernel);
        map_gib(memory, kernel, base, 0, self.level_1 * ENTRIES);
        root(self.notes.p2m, self.list_tables);
        map_gib(memory, self.list_tables, self.notes.p2m, self.list, frames);
    }
}

/// The bytes of `$value`, a structure of the type `$of`, whose fields are these numbers.
macro_rules! bytes {
    ($value:expr, $of:ident: $($field:ident)+) => {{
        let mut bytes = vec![0; size_of::<$of>()];
        $(
            let field = $value.$field.to_le_bytes();
            bytes[offset_of!($of, $field)..][..field.len()].copy_from_slice(&field);
        )+
        bytes
    }};
}

fn handover_bytes(handover: &Handover) -> Vec<u8> {
    bytes!(handover, Handover: magic version vcpus shim root ram_pages all_pages entry start_info stack cr3
        shared_info grants grant_frames raised notify)
}

fn start_info_bytes(info: &StartInfo) -> Vec<u8> {
    let mut bytes = bytes!(info, StartInfo: nr_pages shared_info flags store_mfn store_evtchn console_mfn
        console_evtchn pt_base nr_pt_frames mfn_list mod_start mod_len first_p2m_pfn nr_p2m_frames);
    bytes[..info.magic.len()].copy_from_slice(&info.magic);
    let line = offset_of!(StartInfo, cmd_line);
    bytes[line..][..info.cmd_line.len()].copy_from_slice(&info.cmd_line);
    bytes
}

/// Pages of the list of frames for `ram` bytes of RAM.
fn frames_of_list(ram: u64) -> u64 {
    (ram / PAGE).div_ceil(ENTRIES)
}

/// Page tables that [`map_gib`] makes for `frames` frames.
fn tables_of(frames: u64) -> u64 {
    2 + frames.div_ceil(ENTRIES)
}

/// Maps `frames` frames from `gpa` on, at most 1 GiB, at `gva`, a multiple of 1 GiB. The tables are at
/// `tables`: those of levels 3 and 2, and then all of level 1.
fn map_gib(memory: &Memory, tables: u64, gva: u64, gpa: u64, frames: u64) {
    let (level_2, level_1) = (tables + PAGE, tables + 2 * PAGE);
    let entries = |first: u64, count: u64, flags: u64| {
        let entry = |n| (first + n * PAGE) | flags;
        (0..count)
            .flat_map(|n| u64::to_le_bytes(entry(n)))
            .collect::<Vec<_>>()
    };
    let slot = 8 * ((gva >> 30) & (ENTRIES - 1));
    write(memory, tables + slot, &entries(level_2, 1, TABLE));
    write(
        memory,
        level_2,
        &entries(level_1, frames.div_ceil(ENTRIES), TABLE),
    );
    write(memory, level_1, &entries(gpa, frames, LEAF));
}

/// Writes the numbers from 0 to `count`, and then, up to the end of the page, that there is no such frame.
fn write_identity(memory: &Memory, gpa: u64, count: u64) {
    for page in 0..count.div_ceil(ENTRIES) {
        let number = |n| if n < count { n } else { u64::MAX };
        let numbers = page * ENTRIES..(page + 1) * ENTRIES;
        let bytes: Vec<_> = numbers.flat_map(|n| number(n).to_le_bytes()).collect();
        write(memory, gpa + page * PAGE, &bytes);
    }
}

/// The ways into the hypervisor: 128 pieces of code of 32 bytes, one for each hypercall. RCX and R11 stay as
/// they are, which SYSCALL does not leave so. What the one for `iret` has on the stack, `iret` takes from it.
///
/// Source: xen/include/public/arch-x86/xen-x86_64.h.
fn hypercall_page() -> Vec<u8> {
    const CALLS: u32 = 128;
    const SIZE: usize = 32;
    const IRET: u32 = 23;
    let mut page = Vec::new();
    for number in 0..CALLS {
        let load = [&[0xb8][..], &number.to_le_bytes()].concat(); // mov $number, %eax
        page.extend([0x51, 0x41, 0x53]); // push %rcx; push %r11
        if number == IRET {
            page.push(0x50); // push %rax
        }
        page.extend(load);
        page.extend([0x0f, 0x05]); // syscall
        if number != IRET {
            page.extend([0x41, 0x5b, 0x59, 0xc3]); // pop %r11; pop %rcx; ret
        }
        // What nobody runs: int3.
        page.resize((number as usize + 1) * SIZE, 0xcc);
    }
    page
}

impl Area {
    /// The area behind `ram` bytes of RAM.
    fn of(shim: Image, ram: u64) -> Result<Self, Error> {
        let handover = ram + kernel_end(&shim);
        let shared_info = handover + PAGE;
        let raised = shared_info + PAGE;
        let grants = raised + PAGE;
        let m2p = grants + GRANT_FRAMES * PAGE;
        let m2p_size = frames_of_list(ram) * PAGE;
        // The root; for M2P and the shim tables of levels 3 and 2, and of level 1 for each 2 MiB; for the alias
        // a table of level 3, and one of level 2 for each GiB, of which the area may begin another.
        let level_1 = 2 + m2p_size / LARGE + 2 + kernel_end(&shim) / LARGE;
        let room = PAGE * (1 + 2 * 3 + level_1 + 1 + ram / GIB + 2);
        let tables = m2p + m2p_size;
        let end = (tables + room).next_multiple_of(LARGE);
        let too_much = |_: MapError| LoadError::TooMuchMemory {
            given: ram,
            why: "with the shim's area behind it, it is more than lg.ko takes",
        };
        if end > lguest_abi::LGUEST_MAX_GPA {
            return Err(too_much(MapError::Full).into());
        }
        let mut tables = PageTables::new(tables..end);
        let mut map = |access, gva, gpa, size| tables.map_for(access, gva, gpa, size);
        map(Access::Read, M2P, m2p, m2p_size).map_err(too_much)?;
        map(Access::Data, ALIAS, 0, end).map_err(too_much)?;
        for segment in &shim.segments {
            map(Access::All, segment.gva, ram + segment.gpa, segment.size).map_err(too_much)?;
        }
        Ok(Self {
            shim,
            handover,
            shared_info,
            raised,
            grants,
            m2p,
            tables,
            end,
        })
    }

    /// Loads all but the [`Handover`].
    fn load(&self, memory: &Memory, ram: u64) {
        for segment in &self.shim.segments {
            write(memory, ram + segment.gpa, self.shim.bytes(segment));
        }
        write_identity(memory, self.m2p, ram / PAGE);
        write(memory, self.tables.root(), &self.tables.bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{ByteValued, Bytes, GuestAddress};

    use super::*;
    use crate::image::tests::{elf, TEXT};
    use crate::image::xen::tests::{good_notes, older_notes, BASE};
    use crate::image::Abi;
    use crate::memory::create_parts;

    const MIB: u64 = 1 << 20;
    const KERNEL: u64 = 16 * MIB;

    /// A shim of two pages, one of them in the file.
    fn shim_image() -> Image {
        let mut file = elf(&[]);
        // The entry, and the only segment's GVA.
        file[24..32].copy_from_slice(&(SHIM + 0x24).to_le_bytes());
        file[64 + 16..64 + 24].copy_from_slice(&SHIM.to_le_bytes());
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, file).unwrap();
        Image::open_linked_at(SHIM, path.path()).unwrap()
    }

    fn layout(notes: &[u8], initrd: usize, ram: u64) -> Result<(Image, Layout), Error> {
        let image = Image::parse(elf(notes)).unwrap();
        let Abi::Xen(said) = image.abi.clone() else {
            panic!("{:?}", image.abi)
        };
        let layout = Layout::of(&image, &said, shim_image(), initrd, (ram, 3))?;
        Ok((image, layout))
    }

    struct Loaded {
        memory: Memory,
        layout: Layout,
        entry: Entry,
        handover: [u64; 15],
    }

    fn load(notes: &[u8], initrd: &[u8], ram: u64) -> Loaded {
        let (image, layout) = layout(notes, initrd.len(), ram).unwrap();
        let memory = create_parts(&[(0, layout.all())]).unwrap();
        let entry = layout.load(&memory, &image, initrd, c"console=hvc0");
        let handover = memory.read_obj(GuestAddress(entry.rsi)).unwrap();
        Loaded {
            memory,
            layout,
            entry,
            handover,
        }
    }

    impl Loaded {
        fn read<T: ByteValued>(&self, gpa: u64) -> T {
            self.memory.read_obj(GuestAddress(gpa)).unwrap()
        }

        fn start_info(&self) -> impl Fn(usize) -> u64 + '_ {
            let at = self.handover[7] - BASE;
            move |offset| self.read(at + offset as u64)
        }

        /// The GPA for `gva` below `root`, and the flags of the last entry. Large pages have theirs.
        fn walk(&self, root: u64, gva: u64) -> Option<(u64, u64)> {
            const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
            let mut table = root;
            for level in [4u32, 3, 2, 1] {
                let shift = 12 + 9 * (level - 1);
                let entry: u64 = self.read(table + 8 * ((gva >> shift) & 511));
                let (next, flags) = (entry & ADDRESS, entry & !ADDRESS);
                if flags & 1 == 0 {
                    return None;
                }
                if level == 1 || flags & 0x80 != 0 {
                    return Some((next + gva % (1 << shift), flags));
                }
                table = next;
            }
            unreachable!()
        }
    }

    #[test]
    fn the_kernel_finds_what_xen_promises() {
        let guest = load(&good_notes(), b"initrd", 64 * MIB);
        let info = guest.start_info();
        assert_eq!(info(32), 64 * MIB / PAGE, "nr_pages");
        assert_eq!(info(40), guest.handover[10], "shared_info");
        assert_eq!(info(48), 8 | 0x10, "flags");
        let end = KERNEL + 0x2000;
        assert_eq!(
            guest.handover[7],
            BASE + end,
            "start_info is behind the kernel"
        );
        assert_eq!(
            [info(56), info(72)],
            [end / PAGE + 1, end / PAGE + 2],
            "rings"
        );
        assert_eq!([info(64) as u32, info(80) as u32], [1, 2], "ports");
        let tables = end + 3 * PAGE;
        // 16 MiB and some are mapped up to 20 MiB: 10 tables of level 1.
        assert_eq!([info(88), info(96)], [BASE + tables, 13]);
        assert_eq!(guest.handover[9], tables, "CR3");
        assert_eq!(
            guest.handover[8],
            BASE + tables + 14 * PAGE,
            "the end of the boot stack"
        );
        assert_eq!(info(104), 0x80_0000_0000, "mfn_list");
        let list = 20 * MIB;
        // 16384 frames are 32 pages, which 3 tables map.
        assert_eq!([info(1152), info(1160)], [list / PAGE, 32 + 3]);
        let initrd = list + 35 * PAGE;
        assert_eq!([info(112), info(120)], [initrd / PAGE, 6]);
        assert_eq!(guest.read::<[u8; 6]>(initrd), *b"initrd");
        let line = guest.handover[7] - BASE + 128;
        assert_eq!(guest.read::<[u8; 13]>(line), *b"console=hvc0\0");
        assert_eq!(guest.read::<[u8; 14]>(line - 128), *b"xen-3.0-x86_64");
        assert_eq!(guest.read::<[u8; 2]>(KERNEL + 0x2f), [0x90, 0]);
        for frame in [0, 1, 511, 512, 16383] {
            assert_eq!(guest.read::<u64>(list + 8 * frame), frame);
        }
    }

    #[test]
    fn the_kernels_first_tables() {
        let guest = load(&good_notes(), b"", 64 * MIB);
        let walk = |gva| guest.walk(guest.handover[9], gva);
        for gpa in [0, PAGE, KERNEL, 20 * MIB - 1] {
            assert_eq!(walk(BASE + gpa), Some((gpa, 0x63)), "{gpa:#x}");
        }
        assert_eq!(walk(BASE + 20 * MIB), None);
        for frame in [0, 1, 31] {
            let gpa = 20 * MIB + frame * PAGE;
            assert_eq!(walk(0x80_0000_0000 + frame * PAGE), Some((gpa, 0x63)));
        }
        assert_eq!(walk(0x80_0000_0000 + 32 * PAGE), None);
        assert_eq!(walk(0), None);
        assert_eq!(walk(ALIAS), None);
        assert_eq!(guest.start_info()(112), 0, "there is no initrd");
        assert_eq!(guest.start_info()(48), 0x10);
    }

    #[test]
    fn the_monitors_tables() {
        let guest = load(&good_notes(), b"", 64 * MIB);
        let walk = |gva| guest.walk(guest.entry.cr3, gva);
        let (ram, all) = (64 * MIB, guest.layout.all());
        assert_eq!(guest.handover[3], guest.entry.cr3);
        assert_eq!(
            [guest.handover[4], guest.handover[5]],
            [ram / PAGE, all / PAGE]
        );
        // Present, accessed, dirty; writable; large; no code.
        const READ: u64 = (1 << 63) | 0x61;
        const DATA: u64 = (1 << 63) | 0xe3;
        for gpa in [0, ram - 1, ram, all - 1] {
            assert_eq!(walk(ALIAS + gpa), Some((gpa, DATA)));
        }
        assert_eq!(walk(ALIAS + all), None);
        for frame in [0, 511, 512, ram / PAGE - 1] {
            let (gpa, flags) = walk(M2P + 8 * frame).unwrap();
            assert_eq!((guest.read::<u64>(gpa), flags), (frame, READ));
        }
        assert_eq!(walk(M2P + 8 * ram / PAGE), None);
        assert_eq!(walk(SHIM + 0x24), Some((ram + 0x24, 0x63)));
        assert_eq!(guest.entry.rip, SHIM + 0x24);
        assert_eq!(guest.read::<u8>(ram + 0x24), 0x90);
        assert_eq!(walk(SHIM + 2 * PAGE), None);
        assert_eq!(walk(BASE + KERNEL), None);
        assert_eq!(walk(0), None);
    }

    #[test]
    fn the_shim_is_told_all() {
        let guest = load(&good_notes(), b"", 64 * MIB);
        let told = guest.handover;
        assert_eq!(told[0].to_le_bytes(), *b"lg, Xen\0");
        assert_eq!(told[1], (3 << 32) | 1, "version and vCPUs");
        assert_eq!(told[2], 64 * MIB, "the shim");
        assert_eq!(told[6], TEXT + 0x20, "entry");
        let places = guest.layout.places();
        assert_eq!(
            [told[11], told[12], told[13]],
            [places.grants, 32, places.raised]
        );
        assert_eq!(told[14], places.notify);
        assert_eq!(places.notify, guest.layout.all());
        let mut pages = vec![guest.entry.rsi, told[10], places.raised, guest.entry.cr3];
        pages.extend((0..32).map(|page| places.grants + page * PAGE));
        pages.sort();
        assert!(
            pages.windows(2).all(|pair| pair[0] + PAGE <= pair[1]),
            "{pages:x?}"
        );
        for page in [
            told[10],
            places.raised,
            places.grants,
            places.store,
            places.console,
        ] {
            assert!((0..512).all(|word| guest.read::<u64>(page + 8 * word) == 0));
        }
    }

    #[test]
    fn older_kernels_find_a_hypercall_page() {
        let guest = load(&older_notes(), b"", 64 * MIB);
        let stub = |number: u64| guest.read::<[u8; 32]>(KERNEL + 0x1000 + 32 * number);
        let code = b"\x51\x41\x53\xb8\x0d\0\0\0\x0f\x05\x41\x5b\x59\xc3\xcc";
        assert_eq!(stub(13)[..15], *code);
        assert_eq!(
            stub(23)[..12],
            *b"\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05\xcc"
        );
        let newer = load(&good_notes(), b"", 64 * MIB);
        assert_eq!(newer.read::<u64>(KERNEL + 0x1000), 0);
    }

    #[test]
    fn what_does_not_fit() {
        let code = |initrd, ram| {
            layout(&good_notes(), initrd, ram)
                .map(drop)
                .unwrap_err()
                .code()
        };
        assert_eq!(code(0, 20 * MIB), Code::TooLittleMemory);
        assert_eq!(code(10 << 20, 24 * MIB), Code::TooLittleMemory);
        assert_eq!(code(0, 256 << 30), Code::TooMuchMemory);
        let mut image = Image::parse(elf(&good_notes())).unwrap();
        image.segments[0].size = GIB;
        let Abi::Xen(notes) = image.abi.clone() else {
            panic!("{:?}", image.abi)
        };
        let error = Layout::of(&image, &notes, shim_image(), 0, (4 << 30, 1)).unwrap_err();
        assert_eq!(error.code(), Code::DamagedKernel, "{error:?}");
    }

    proptest! {
        #[test]
        fn all_sizes_of_ram_have_room_for_the_tables(ram in 12u64..(200 << 9), initrd in 0usize..(8 << 20)) {
            let ram = ram * LARGE;
            let (_, layout) = layout(&good_notes(), initrd, ram).unwrap();
            prop_assert!(layout.initrd + initrd as u64 <= ram);
            prop_assert!(layout.area.tables.root() + layout.area.tables.bytes().len() as u64 <= layout.all());
            prop_assert!(layout.all() - ram <= 64 * MIB + ram / 400);
        }
    }
}
