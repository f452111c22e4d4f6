// SPDX-License-Identifier: GPL-2.0
//! The Guest's kernel: from the bytes of a file to segments that can be loaded.
//!
//! Takes an ELF executable (`vmlinux`, a bare Guest), the same compressed, or a bzImage, whose
//! payload is a compressed ELF executable. Its notes say whether the kernel can run at CPL3, and where
//! it starts: the note `Lguest` of the contract, or those for Xen, see [`xen`]. Files are not trusted:
//! whatever they hold, the result is an [`Image`] or an [`ImageError`].

pub mod build_id;
mod bzimage;
mod refused;
mod unpack;
pub mod xen;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use lguest_abi::{
    lguest_note, LGUEST_ABI_VERSION, LGUEST_MAX_GPA, LGUEST_MAX_VCPUS, LGUEST_NOTE_ENTRY,
    LGUEST_NOTE_NAME, LGUEST_NOTE_VCPUS,
};
use object::elf::{FileHeader64, ELFCLASS32, ELFMAG, EM_X86_64, ET_EXEC, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::LittleEndian;

use crate::image::bzimage::BzImage;
pub use crate::image::refused::{ImageError, Refused};
use crate::image::unpack::Format;
pub use crate::image::unpack::UnpackError;
use crate::memory::PAGE;
use crate::report::system::cannot_read;
use crate::report::Error;

/// A kernel that can be loaded.
#[derive(Debug)]
pub struct Image {
    /// Its file.
    pub path: PathBuf,
    /// GVA of the first instruction.
    pub entry: u64,
    /// Is it Linux, or a bare Guest?
    pub linux: bool,
    /// With how many vCPUs it can do something.
    pub vcpus: u32,
    /// The way in which it speaks to its hypervisor.
    pub abi: Abi,
    /// It could run by Xen's ABI as well.
    pub also_xen: bool,
    /// What to load. Every segment has a canonical range of GVAs and lies within the largest RAM
    /// there can be.
    pub segments: Vec<Segment>,
    /// What its container says that `uname -r` says in it.
    release: Option<String>,
    elf: Vec<u8>,
}

/// The ways in which a kernel can speak to its hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Abi {
    /// lg's own contract, `include/uapi/linux/lguest.h`.
    Lguest,
    /// That of Xen for paravirtualized machines, which the shim answers.
    Xen(xen::Notes),
}

/// A `PT_LOAD` segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The address at which the Guest expects it to be mapped.
    pub gva: u64,
    /// Its place in RAM.
    pub gpa: u64,
    /// Its size in memory, in bytes, not 0. What the file does not fill is 0.
    pub size: u64,
    file: Range<usize>,
}

impl Image {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no kernel that lg can run.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = fs::read(path).map_err(cannot_read(path))?;
        let path = path.to_owned();
        match Self::parse(file) {
            Ok(image) => Ok(Self { path, ..image }),
            Err(source) => Err(Refused { path, source }.into()),
        }
    }

    /// Reads a program that is linked at `base`, runs beside a kernel, and starts where its ELF header
    /// says. Its segments' GPAs are offsets from where it will be.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no such program.
    pub fn open_linked_at(base: u64, path: &Path) -> Result<Self, Error> {
        let elf = fs::read(path).map_err(cannot_read(path))?;
        let path = path.to_owned();
        let place = |gva: u64, _| gva.wrapping_sub(base);
        match Program::read(&elf, place) {
            Ok(program) => Ok(Self {
                path,
                release: None,
                entry: program.entry,
                linux: false,
                vcpus: 1,
                abi: Abi::Lguest,
                also_xen: false,
                segments: program.segments,
                elf,
            }),
            Err(source) => Err(Refused { path, source }.into()),
        }
    }

    /// A program at `base` that has nothing in it.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn empty_at(base: u64) -> Self {
        let segment = Segment {
            gva: base,
            gpa: 0,
            size: PAGE,
            file: 0..0,
        };
        Self {
            path: PathBuf::new(),
            release: None,
            entry: base,
            linux: false,
            vcpus: 1,
            abi: Abi::Lguest,
            also_xen: false,
            segments: vec![segment],
            elf: Vec::new(),
        }
    }

    /// The ELF file in its file.
    pub fn elf(&self) -> &[u8] {
        &self.elf
    }

    /// The error that it cannot be run after all.
    pub fn refused(&self, source: ImageError) -> Refused {
        let path = self.path.clone();
        Refused { path, source }
    }

    /// Unpacks and checks `file`, the content of a kernel's file.
    pub fn parse(file: Vec<u8>) -> Result<Self, ImageError> {
        let (elf, container) = unpacked(file)?;
        let image = Self::parse_elf(elf)?;
        let release = container.release;
        Ok(Self { release, ..image })
    }

    /// What `uname -r` says in it. A container tells it at once, an ELF file somewhere.
    pub fn release(&self) -> Option<String> {
        self.release.clone().or_else(|| release_in(&self.elf))
    }

    /// The configuration that it was built with, if it has that in it (CONFIG_IKCONFIG).
    pub fn config(&self) -> Option<String> {
        built_in_config(&self.elf)
    }

    /// The bytes of `segment` which come from the file.
    pub fn bytes(&self, segment: &Segment) -> &[u8] {
        &self.elf[segment.file.clone()]
    }

    fn parse_elf(elf: Vec<u8>) -> Result<Self, ImageError> {
        let Program {
            notes, segments, ..
        } = Program::read(&elf, |_, physical| physical)?;
        let linux = notes.linux;
        let vcpus = notes.vcpus();
        let also_xen = notes.lguest.is_some() && notes.xen.entry().is_some();
        let (abi, entry) = notes.abi()?;
        let contains = |gva: u64| {
            segments
                .iter()
                .any(|segment: &Segment| segment.contains(gva))
        };
        if !contains(entry) {
            return Err(ImageError::Malformed("its entry point is in no segment"));
        }
        if let Abi::Xen(notes) = &abi {
            // Whole, in the file or not.
            let whole = |page: u64| page % PAGE == 0 && contains(page) && contains(page + PAGE - 1);
            if !notes.hypercall_page.is_none_or(whole) {
                return Err(ImageError::Malformed("its hypercall page is in no segment"));
            }
        }
        Ok(Self {
            path: PathBuf::new(),
            release: None,
            entry,
            linux,
            vcpus,
            abi,
            also_xen,
            segments,
            elf,
        })
    }
}

/// What is in `file`, a module of a kernel's: unpacked, if it is packed.
pub fn module(file: Vec<u8>) -> Result<Vec<u8>, UnpackError> {
    /// No module has more bytes.
    const LIMIT: usize = 256 << 20;
    match Format::of(&file) {
        Some(format) => unpack::unpack(format, &file, LIMIT),
        None => Ok(file),
    }
}

/// What the headers of an ELF executable say.
struct Program {
    entry: u64,
    notes: Notes,
    segments: Vec<Segment>,
}

impl Program {
    /// Reads the headers of `elf`. `place` makes the GPA of a segment of its virtual and its physical
    /// address.
    fn read(elf: &[u8], place: impl Fn(u64, u64) -> u64) -> Result<Self, ImageError> {
        let malformed = |what| move |_| ImageError::Malformed(what);
        let (header, endian) = elf_header(elf)?;
        let program_headers = header
            .program_headers(endian, elf)
            .map_err(malformed("its program headers are cut off"))?;
        let (mut notes, mut segments) = (Notes::default(), Vec::new());
        for program_header in program_headers {
            let bad_notes = malformed("its notes make no sense");
            if let Some(mut found) = program_header.notes(endian, elf).map_err(bad_notes)? {
                while let Some(note) = found.next().map_err(bad_notes)? {
                    notes.take(note.name(), note.n_type(endian).0, note.desc())?;
                }
            }
            if program_header.p_type(endian) == PT_LOAD && program_header.p_memsz(endian) != 0 {
                let (offset, length) = program_header.file_range(endian);
                let gva = program_header.p_vaddr(endian);
                segments.push(Segment::new(
                    gva,
                    place(gva, program_header.p_paddr(endian)),
                    program_header.p_memsz(endian),
                    offset..offset.saturating_add(length),
                    elf.len(),
                )?);
            }
        }
        Ok(Self {
            entry: header.e_entry(endian),
            notes,
            segments,
        })
    }
}

/// What an ELF file was in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// A bzImage.
    pub bzimage: bool,
    /// The way in which it is compressed, if it is.
    pub packed: Option<&'static str>,
    /// What it says that `uname -r` says in the kernel.
    pub release: Option<String>,
}

/// The ELF file in `file`.
fn unpacked(file: Vec<u8>) -> Result<(Vec<u8>, Container), ImageError> {
    let mut container = Container::default();
    if file.starts_with(&ELFMAG) {
        return Ok((file, container));
    }
    let elf = if let Some(bzimage) = BzImage::find(&file)? {
        container.bzimage = true;
        container.release = bzimage.release();
        container.packed = bzimage.format().map(Format::name);
        bzimage.unpack()?
    } else if let Some(format) = Format::of(&file) {
        container.packed = Some(format.name());
        unpack::unpack(format, &file, unpack::LIMIT)?
    } else {
        return Err(ImageError::NotAKernel);
    };
    if !elf.starts_with(&ELFMAG) {
        return Err(ImageError::Malformed(
            "what it unpacks to is not an ELF file",
        ));
    }
    Ok((elf, container))
}

/// All that can be said of a kernel, whether it can be run or not.
pub struct Look {
    /// What it was in.
    pub container: Container,
    /// The configuration that it was built with, if it has that in it (CONFIG_IKCONFIG).
    pub config: Option<String>,
    /// Whether it can be run.
    pub image: Result<Image, ImageError>,
}

impl Look {
    /// Looks at `file`, the content of a kernel's file.
    ///
    /// # Errors
    ///
    /// It is no kernel, or damaged.
    pub fn at(file: Vec<u8>) -> Result<Self, ImageError> {
        let (elf, mut container) = unpacked(file)?;
        let config = built_in_config(&elf);
        container.release = container.release.or_else(|| release_in(&elf));
        Ok(Self {
            container,
            config,
            image: Image::parse_elf(elf),
        })
    }
}

/// The configuration in a kernel, as kernel/configs.c of Linux puts it there.
fn built_in_config(elf: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"IKCFG_ST";
    const LIMIT: usize = 16 << 20;
    let at = memchr::memmem::find(elf, MARK)?;
    let text = unpack::unpack(Format::Gzip, &elf[at + MARK.len()..], LIMIT).ok()?;
    String::from_utf8(text).ok()
}

/// The release that a kernel greets with.
fn release_in(elf: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut places = memchr::memmem::find_iter(elf, BANNER);
    places.find_map(|at| bzimage::release(&elf[at + BANNER.len()..]))
}

/// What the notes of a kernel say.
#[derive(Default)]
struct Notes {
    linux: bool,
    lguest: Option<lguest_note>,
    vcpus: Option<u32>,
    xen: xen::Found,
}

impl Notes {
    fn take(&mut self, name: &[u8], kind: u32, desc: &[u8]) -> Result<(), ImageError> {
        self.linux |= name == b"Linux";
        if [name, b"\0"].concat() == LGUEST_NOTE_NAME {
            match kind {
                LGUEST_NOTE_ENTRY => self.lguest = Some(parse_note(desc)?),
                LGUEST_NOTE_VCPUS => self.vcpus = Some(u32::from_le_bytes(sized(desc)?)),
                _ => {}
            }
        }
        if name == xen::NAME {
            self.xen.note(kind, desc)?;
        }
        Ok(())
    }

    /// With how many vCPUs it can do something. A bare Guest is taken to know, and a kernel of Xen's finds out.
    fn vcpus(&self) -> u32 {
        match (self.linux, self.vcpus) {
            _ if self.lguest.is_none() => LGUEST_MAX_VCPUS,
            (false, _) => LGUEST_MAX_VCPUS,
            (true, Some(vcpus)) => vcpus.clamp(1, LGUEST_MAX_VCPUS),
            (true, None) => 1,
        }
    }

    /// The ABI that the kernel runs by, and its entry point there: lg's own, if it has a choice.
    fn abi(self) -> Result<(Abi, u64), ImageError> {
        let Some(note) = self.lguest else {
            // Only Linux says how Xen runs it.
            let pvh = self.xen.pvh();
            let linux = self.linux || pvh;
            let notes = self
                .xen
                .finish()?
                .ok_or(ImageError::NoNote { linux, pvh })?;
            let entry = notes.entry;
            return Ok((Abi::Xen(notes), entry));
        };
        if note.abi_version != LGUEST_ABI_VERSION {
            return Err(ImageError::Abi(note.abi_version));
        }
        if note.features != 0 {
            return Err(ImageError::Features(note.features));
        }
        Ok((Abi::Lguest, note.entry))
    }
}

/// The header of an executable that this machine could run.
fn elf_header(elf: &[u8]) -> Result<(&FileHeader64<LittleEndian>, LittleEndian), ImageError> {
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    if elf.get(CLASS) == Some(&ELFCLASS32.0) {
        return Err(ImageError::Not64Bit);
    }
    let header = FileHeader64::<LittleEndian>::parse(elf)
        .map_err(|_| ImageError::Malformed("its ELF header makes no sense"))?;
    let endian = header.endian().map_err(|_| {
        ImageError::ForeignMachine(u16::from_be_bytes([elf[MACHINE], elf[MACHINE + 1]]))
    })?;
    let machine = header.e_machine(endian);
    if machine != EM_X86_64 {
        return Err(ImageError::ForeignMachine(machine.0));
    }
    if header.e_type(endian) != ET_EXEC {
        return Err(ImageError::Malformed(
            "it is not an executable with fixed addresses",
        ));
    }
    Ok((header, endian))
}

impl Segment {
    /// Checks what a program header says; `file` is the range of the file, which has `file_size`
    /// bytes.
    fn new(
        gva: u64,
        gpa: u64,
        size: u64,
        file: Range<u64>,
        file_size: usize,
    ) -> Result<Self, ImageError> {
        let malformed = |what| Err(ImageError::Malformed(what));
        if file.end > file_size as u64 {
            return malformed("a segment is cut off");
        }
        if file.end - file.start > size {
            return malformed("a segment is larger in the file than in memory");
        }
        if gpa.checked_add(size).is_none_or(|end| end > LGUEST_MAX_GPA) {
            return malformed("a segment's physical address is out of range");
        }
        // Whole pages: the last byte of the last one must be canonical too, and in the same half.
        let Some(last) = gva.checked_add(size - 1).map(|last| last | 0xfff) else {
            return malformed("a segment's virtual address is out of range");
        };
        let half = |gva: u64| (gva as i64) >> 47;
        if half(gva) != half(last) || !matches!(half(gva), 0 | -1) {
            return malformed("a segment's virtual address is not canonical");
        }
        if (gva ^ gpa) & 0xfff != 0 {
            return malformed("a segment lies differently in virtual and physical pages");
        }
        // In range: file.end is at most a usize.
        Ok(Self {
            gva,
            gpa,
            size,
            file: file.start as usize..file.end as usize,
        })
    }

    /// Is the byte at `gva` in it?
    pub fn contains(&self, gva: u64) -> bool {
        gva.checked_sub(self.gva)
            .is_some_and(|offset| offset < self.size)
    }
}

/// The descriptor of the note: the three fields of `struct lguest_note`.
fn parse_note(desc: &[u8]) -> Result<lguest_note, ImageError> {
    let desc: [u8; size_of::<lguest_note>()] = sized(desc)?;
    let u32_at = |at: usize| u32::from_le_bytes(desc[at..at + 4].try_into().unwrap());
    Ok(lguest_note {
        abi_version: u32_at(0),
        features: u32_at(4),
        entry: u64::from(u32_at(8)) | (u64::from(u32_at(12)) << 32),
    })
}

/// The descriptor of a note of lg's, if it has that size.
fn sized<const SIZE: usize>(desc: &[u8]) -> Result<[u8; SIZE], ImageError> {
    let malformed = |_| ImageError::Malformed("its note \"Lguest\" has the wrong size");
    desc.try_into().map_err(malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const TEXT: u64 = 0xffff_ffff_8100_0000;

    /// A note section with one note.
    pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [name.len() as u32, desc.len() as u32, kind] {
            bytes.extend(field.to_le_bytes());
        }
        for part in [name, desc] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn lguest_desc(abi: u32, features: u32, entry: u64) -> Vec<u8> {
        [
            &abi.to_le_bytes()[..],
            &features.to_le_bytes(),
            &entry.to_le_bytes(),
        ]
        .concat()
    }

    pub(crate) fn good_notes() -> Vec<u8> {
        let desc = lguest_desc(LGUEST_ABI_VERSION, 0, TEXT + 0x10);
        [
            note(b"Linux\0", 0x101, &[0; 4]),
            note(b"Lguest\0", 1, &desc),
        ]
        .concat()
    }

    /// An ELF executable with one PT_LOAD of 0x30 bytes of 0x90 (0x2000 in memory), and a PT_NOTE.
    pub(crate) fn elf(notes: &[u8]) -> Vec<u8> {
        const TEXT_AT: u64 = 64 + 2 * 56;
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(2u16.to_le_bytes()); // ET_EXEC
        elf.extend(62u16.to_le_bytes()); // EM_X86_64
        elf.extend(1u32.to_le_bytes());
        for field in [0x100_0000u64, 64, 0] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend(0u32.to_le_bytes());
        for field in [64u16, 56, 2, 0, 0, 0] {
            elf.extend(field.to_le_bytes());
        }
        let mut program_header = |kind: u32, fields: [u64; 6]| {
            elf.extend(kind.to_le_bytes());
            elf.extend(5u32.to_le_bytes());
            fields
                .iter()
                .for_each(|field| elf.extend(field.to_le_bytes()));
        };
        program_header(1, [TEXT_AT, TEXT, 0x100_0000, 0x30, 0x2000, 0x20_0000]);
        let length = notes.len() as u64;
        program_header(4, [TEXT_AT + 0x30, 0, 0, length, length, 4]);
        elf.extend([0x90; 0x30]);
        elf.extend(notes);
        elf
    }

    fn error(file: Vec<u8>) -> ImageError {
        Image::parse(file).expect_err("it should be refused")
    }

    #[test]
    fn good_elf() {
        let image = Image::parse(elf(&good_notes())).unwrap();
        assert_eq!(image.entry, TEXT + 0x10);
        assert!(image.linux);
        let [segment] = &image.segments[..] else {
            panic!("{:?}", image.segments)
        };
        assert_eq!(
            (segment.gva, segment.gpa, segment.size),
            (TEXT, 0x100_0000, 0x2000)
        );
        assert_eq!(image.bytes(segment), [0x90; 0x30]);
    }

    #[test]
    fn a_bare_guest_is_not_linux() {
        let desc = lguest_desc(LGUEST_ABI_VERSION, 0, TEXT);
        assert!(
            !Image::parse(elf(&note(b"Lguest\0", 1, &desc)))
                .unwrap()
                .linux
        );
    }

    #[test]
    fn a_kernel_says_how_many_vcpus_it_can_have() {
        let vcpus = |notes: &[Vec<u8>]| Image::parse(elf(&notes.concat())).unwrap().vcpus;
        let says = |vcpus: u32| note(b"Lguest\0", 2, &vcpus.to_le_bytes());
        assert_eq!(vcpus(&[good_notes()]), 1);
        for (says, has) in [(says(0), 1), (says(8), 8), (says(8192), 32)] {
            assert_eq!(vcpus(&[good_notes(), says.clone()]), has);
            assert_eq!(vcpus(&[says, good_notes()]), has);
        }
        let bare = note(b"Lguest\0", 1, &lguest_desc(LGUEST_ABI_VERSION, 0, TEXT));
        assert_eq!(vcpus(&[bare]), 32);
        assert_eq!(vcpus(&[xen::tests::good_notes()]), 32);
        let cut = [good_notes(), note(b"Lguest\0", 2, &[4])].concat();
        assert!(matches!(error(elf(&cut)), ImageError::Malformed(_)));
    }

    #[test]
    fn a_look_tells_more_than_whether_it_runs() {
        let mut file = elf(&note(b"Linux\0", 0x101, &[0; 4]));
        file.extend(b"Linux version %s\0Linux version 6.1.2-x (me)\0IKCFG_ST");
        let mut config = Vec::new();
        let text = b"CONFIG_XEN_PV=n\n";
        let mut gzip = flate2::bufread::GzEncoder::new(&text[..], flate2::Compression::best());
        std::io::Read::read_to_end(&mut gzip, &mut config).unwrap();
        file.extend(config);
        file.extend(b"IKCFG_ED");
        let look = Look::at(file).unwrap();
        assert_eq!(look.container.release.unwrap(), "6.1.2-x");
        assert_eq!(look.config.unwrap(), "CONFIG_XEN_PV=n\n");
        assert!(matches!(look.image, Err(ImageError::NoNote { .. })));
        let look = Look::at(elf(&good_notes())).unwrap();
        assert_eq!((look.container, look.config), (Container::default(), None));
        assert_eq!(look.image.unwrap().entry, TEXT + 0x10);
    }

    #[test]
    fn compressed_elf() {
        let plain = elf(&good_notes());
        for (format, packed) in crate::image::unpack::tests::packed(&plain) {
            let image = Image::parse(packed).unwrap_or_else(|error| panic!("{format:?}: {error}"));
            assert_eq!(image.entry, TEXT + 0x10);
        }
    }

    #[test]
    fn refusals() {
        let with_note = |desc: &[u8]| elf(&note(b"Lguest\0", 1, desc));
        let patched = |at: usize, bytes: &[u8]| {
            let mut elf = elf(&good_notes());
            elf[at..at + bytes.len()].copy_from_slice(bytes);
            elf
        };
        let message = |file| error(file).to_string();
        const LOAD: usize = 64;

        assert!(matches!(error(vec![]), ImageError::NotAKernel));
        assert!(matches!(
            error(b"#!/bin/sh\n".to_vec()),
            ImageError::NotAKernel
        ));
        assert!(matches!(error(patched(4, &[1])), ImageError::Not64Bit));
        assert!(matches!(
            error(patched(18, &[183, 0])),
            ImageError::ForeignMachine(183)
        ));
        assert!(matches!(
            error(patched(5, &[2])),
            ImageError::ForeignMachine(_)
        ));
        assert!(message(patched(16, &[3])).contains("fixed addresses"));
        assert!(matches!(
            error(elf(&[])),
            ImageError::NoNote {
                linux: false,
                pvh: false
            }
        ));
        let linux = note(b"Linux\0", 0x101, &[0; 4]);
        assert!(matches!(
            error(elf(&linux)),
            ImageError::NoNote { linux: true, .. }
        ));
        // The type of the note counts, and all of its name.
        let other = note(b"Lguest\0", 3, &lguest_desc(1, 0, TEXT));
        assert!(matches!(error(elf(&other)), ImageError::NoNote { .. }));
        let longer = note(b"Lguests\0", 1, &lguest_desc(1, 0, TEXT));
        assert!(matches!(error(elf(&longer)), ImageError::NoNote { .. }));
        assert!(message(with_note(&[0; 8])).contains("wrong size"));
        assert!(matches!(
            error(with_note(&lguest_desc(0, 0, TEXT))),
            ImageError::Abi(0)
        ));
        let newer = lguest_desc(LGUEST_ABI_VERSION + 1, 0, TEXT);
        assert!(matches!(error(with_note(&newer)), ImageError::Abi(_)));
        let features = lguest_desc(LGUEST_ABI_VERSION, 4, TEXT);
        assert!(matches!(
            error(with_note(&features)),
            ImageError::Features(4)
        ));
        let stray = lguest_desc(LGUEST_ABI_VERSION, 0, TEXT + 0x2000);
        assert!(message(with_note(&stray)).contains("entry point"));
        assert!(message(patched(LOAD + 8, &[0xff; 8])).contains("cut off"));
        assert!(message(patched(LOAD + 40, &[1, 0])).contains("larger in the file"));
        assert!(message(patched(LOAD + 24, &[0xff; 8])).contains("physical address"));
        assert!(message(patched(LOAD + 24, &[1])).contains("differently"));
        assert!(message(patched(LOAD + 16 + 6, &[0])).contains("not canonical"));
        let last_page = (u64::MAX - 0xfff).to_le_bytes();
        assert!(message(patched(LOAD + 16, &last_page)).contains("virtual address"));
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            changes in prop::collection::vec((0usize..300, any::<u8>()), 1..8),
            length in 0usize..400,
        ) {
            let mut file = elf(&good_notes());
            for (at, byte) in changes {
                let at = at % file.len();
                file[at] = byte;
            }
            file.truncate(length);
            if let Ok(image) = Image::parse(file) {
                for segment in &image.segments {
                    prop_assert!(image.bytes(segment).len() as u64 <= segment.size);
                    prop_assert!(segment.gpa + segment.size <= LGUEST_MAX_GPA);
                }
            }
        }
    }
}
