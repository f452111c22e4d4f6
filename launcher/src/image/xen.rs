// SPDX-License-Identifier: GPL-2.0
//! What a kernel says to Xen, in ELF notes of the name "Xen".
//!
//! Source: xen/include/public/elfnote.h of Xen; arch/x86/xen/xen-head.S of Linux has the notes.

use crate::image::refused::ImageError;

/// The name of the notes.
pub(crate) const NAME: &[u8] = b"Xen";

const ENTRY: u32 = 1;
const HYPERCALL_PAGE: u32 = 2;
const VIRT_BASE: u32 = 3;
const PADDR_OFFSET: u32 = 4;
const XEN_VERSION: u32 = 5;
const GUEST_OS: u32 = 6;
const LOADER: u32 = 8;
const INIT_P2M: u32 = 15;
const MOD_START_PFN: u32 = 16;
const PHYS32_ENTRY: u32 = 18;

/// What the domain builder needs of a paravirtualized kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notes {
    /// GVA of the first instruction.
    pub entry: u64,
    /// GVA of GPA 0 in the mapping with which the kernel starts: at least 4 GiB below the end of all
    /// addresses, and a multiple of 1 GiB.
    pub virt_base: u64,
    /// GVA of the page that is to be filled with the ways into the hypervisor. Kernels since the end of 2024
    /// have none.
    pub hypercall_page: Option<u64>,
    /// GVA at which the list of all frames is to be mapped: in the lower half, a multiple of 512 GiB.
    pub p2m: u64,
}

/// The notes that were found so far.
#[derive(Debug, Default)]
pub(crate) struct Found {
    entry: Option<u64>,
    hypercall_page: Option<u64>,
    virt_base: Option<u64>,
    paddr_offset: u64,
    p2m: Option<u64>,
    initrd_by_frame: bool,
    os: Vec<u8>,
    version: Vec<u8>,
    loader: Vec<u8>,
    pvh: bool,
}

impl Found {
    /// Takes the note of type `kind` with the content `desc`.
    pub(crate) fn note(&mut self, kind: u32, desc: &[u8]) -> Result<(), ImageError> {
        let text = || desc.split(|&byte| byte == 0).next().unwrap_or_default();
        match kind {
            ENTRY => self.entry = Some(number(desc)?),
            HYPERCALL_PAGE => self.hypercall_page = Some(number(desc)?),
            VIRT_BASE => self.virt_base = Some(number(desc)?),
            PADDR_OFFSET => self.paddr_offset = number(desc)?,
            INIT_P2M => self.p2m = Some(number(desc)?),
            MOD_START_PFN => self.initrd_by_frame = number(desc)? != 0,
            XEN_VERSION => self.version = text().to_owned(),
            GUEST_OS => self.os = text().to_owned(),
            LOADER => self.loader = text().to_owned(),
            PHYS32_ENTRY => self.pvh = true,
            // Features, and what only matters to 32-bit kernels, dumps and moves.
            _ => {}
        }
        Ok(())
    }

    /// The entry point for a paravirtualized machine.
    pub(crate) fn entry(&self) -> Option<u64> {
        self.entry
    }

    /// Is there an entry point for a machine with VT-x or SVM?
    pub(crate) fn pvh(&self) -> bool {
        self.pvh
    }

    /// What all notes say together; nothing if they name no entry point for a paravirtualized machine.
    ///
    /// # Errors
    ///
    /// They are not what Linux says.
    pub(crate) fn finish(self) -> Result<Option<Notes>, ImageError> {
        let Some(entry) = self.entry else {
            return Ok(None);
        };
        let check = |good, what| {
            if good {
                Ok(())
            } else {
                Err(ImageError::Malformed(what))
            }
        };
        check(
            self.os == b"linux",
            "its notes for Xen do not say that it is Linux",
        )?;
        check(
            self.version == b"xen-3.0",
            "its notes for Xen are of another version",
        )?;
        check(
            self.loader == b"generic",
            "its notes for Xen want another loader",
        )?;
        check(
            self.paddr_offset == 0,
            "its notes for Xen shift its addresses",
        )?;
        check(
            self.initrd_by_frame,
            "its notes for Xen want an initrd as Linux 2.6 did",
        )?;
        let virt_base = self.virt_base.unwrap_or(0);
        let high = (-(4i64 << 30) as u64..=-(1i64 << 30) as u64).contains(&virt_base);
        check(
            high && virt_base % (1 << 30) == 0,
            "its notes for Xen want it mapped where no kernel lies",
        )?;
        let low = |gva: u64| gva >> 47 == 0 && gva != 0 && gva % (1 << 39) == 0;
        let p2m = self.p2m.unwrap_or(0);
        check(
            low(p2m),
            "its notes for Xen want the list of frames where no list lies",
        )?;
        Ok(Some(Notes {
            entry,
            virt_base,
            hypercall_page: self.hypercall_page,
            p2m,
        }))
    }
}

/// A number of 4 or 8 bytes.
fn number(desc: &[u8]) -> Result<u64, ImageError> {
    match (<[u8; 4]>::try_from(desc), <[u8; 8]>::try_from(desc)) {
        (Ok(bytes), _) => Ok(u32::from_le_bytes(bytes).into()),
        (_, Ok(bytes)) => Ok(u64::from_le_bytes(bytes)),
        _ => Err(ImageError::Malformed("a note for Xen has the wrong size")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::tests::{elf, note, TEXT};
    use crate::image::{Abi, Image};

    pub(crate) const BASE: u64 = 0xffff_ffff_8000_0000;

    type Content = (u32, Vec<u8>);

    fn contents() -> Vec<Content> {
        let number = |value: u64| value.to_le_bytes().to_vec();
        vec![
            (GUEST_OS, b"linux\0".to_vec()),
            (XEN_VERSION, b"xen-3.0\0".to_vec()),
            (LOADER, b"generic\0".to_vec()),
            (VIRT_BASE, number(BASE)),
            (PADDR_OFFSET, number(0)),
            (ENTRY, number(TEXT + 0x20)),
            (INIT_P2M, number(0x80_0000_0000)),
            (MOD_START_PFN, 1u32.to_le_bytes().to_vec()),
            (PHYS32_ENTRY, 0x100_0000u32.to_le_bytes().to_vec()),
            (10, b"!writable_page_tables\0".to_vec()),
        ]
    }

    fn notes_of(contents: &[Content]) -> Vec<u8> {
        let notes = contents
            .iter()
            .map(|(kind, desc)| note(b"Xen\0", *kind, desc));
        notes.collect::<Vec<_>>().concat()
    }

    /// The notes of a Linux with CONFIG_XEN_PV.
    pub(crate) fn good_notes() -> Vec<u8> {
        [note(b"Linux\0", 0x101, &[0; 4]), notes_of(&contents())].concat()
    }

    /// The same with a hypercall page, as kernels of before 2025 have it.
    pub(crate) fn older_notes() -> Vec<u8> {
        let page = (TEXT + 0x1000).to_le_bytes();
        [good_notes(), note(b"Xen\0", HYPERCALL_PAGE, &page)].concat()
    }

    /// Parses a kernel whose notes are changed by `change`.
    fn changed(change: impl Fn(&mut Vec<Content>)) -> Result<Image, ImageError> {
        let mut contents = contents();
        change(&mut contents);
        Image::parse(elf(&notes_of(&contents)))
    }

    #[test]
    fn a_paravirtualized_kernel() {
        let image = Image::parse(elf(&good_notes())).unwrap();
        assert_eq!((image.entry, image.linux), (TEXT + 0x20, true));
        let Abi::Xen(notes) = &image.abi else {
            panic!("{:?}", image.abi)
        };
        let expected = Notes {
            entry: TEXT + 0x20,
            virt_base: BASE,
            hypercall_page: None,
            p2m: 0x80_0000_0000,
        };
        assert_eq!(*notes, expected);
        let older = Image::parse(elf(&older_notes())).unwrap();
        assert!(
            matches!(older.abi, Abi::Xen(Notes { hypercall_page: Some(page), .. })
            if page == TEXT + 0x1000)
        );
    }

    #[test]
    fn lgs_own_comes_first() {
        let both = [good_notes(), crate::image::tests::good_notes()].concat();
        let image = Image::parse(elf(&both)).unwrap();
        assert_eq!((image.abi, image.entry), (Abi::Lguest, TEXT + 0x10));
        assert!(image.also_xen);
    }

    #[test]
    fn without_an_entry_it_is_not_for_us() {
        let error = changed(|notes| notes.retain(|note| note.0 != ENTRY)).unwrap_err();
        assert!(
            matches!(error, ImageError::NoNote { pvh: true, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("CONFIG_XEN_PV"), "{error}");
    }

    #[test]
    fn refusals() {
        let error = |kind: u32, desc: &[u8]| {
            let change = |notes: &mut Vec<Content>| {
                notes.retain(|note| note.0 != kind);
                notes.push((kind, desc.to_vec()));
            };
            changed(change)
                .expect_err("it should be refused")
                .to_string()
        };
        for kind in [ENTRY, VIRT_BASE, PADDR_OFFSET, INIT_P2M, MOD_START_PFN] {
            assert!(error(kind, &[0; 3]).contains("wrong size"), "{kind}");
        }
        assert!(error(GUEST_OS, b"netbsd\0").contains("Linux"));
        assert!(error(XEN_VERSION, b"xen-2.0\0").contains("version"));
        assert!(error(LOADER, b"bootloader\0").contains("loader"));
        assert!(error(PADDR_OFFSET, &BASE.to_le_bytes()).contains("shift"));
        assert!(error(MOD_START_PFN, &[0; 4]).contains("initrd"));
        for base in [
            0u64,
            1 << 47,
            0xffff_8880_0000_0000,
            BASE + 0x1000,
            u64::MAX,
        ] {
            assert!(
                error(VIRT_BASE, &base.to_le_bytes()).contains("mapped"),
                "{base:#x}"
            );
        }
        for list in [0u64, 0x1000, 1 << 47, BASE] {
            assert!(
                error(INIT_P2M, &list.to_le_bytes()).contains("list"),
                "{list:#x}"
            );
        }
        assert!(error(ENTRY, &(TEXT + 0x2000).to_le_bytes()).contains("entry point"));
        let page = |gva: u64| error(HYPERCALL_PAGE, &gva.to_le_bytes());
        assert!(page(TEXT + 0x2000).contains("hypercall page"));
        assert!(page(TEXT + 0x800).contains("hypercall page"));
    }

    #[test]
    fn nothing_may_be_missing() {
        for kind in [
            GUEST_OS,
            XEN_VERSION,
            LOADER,
            VIRT_BASE,
            INIT_P2M,
            MOD_START_PFN,
        ] {
            let without = changed(|notes| notes.retain(|note| note.0 != kind));
            assert!(without.is_err(), "{kind}");
        }
    }
}
