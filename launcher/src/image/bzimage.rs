// SPDX-License-Identifier: GPL-2.0
//! The bzImage container: a setup header, real-mode code that lg never runs, and the compressed
//! kernel.
//!
//! Source: Documentation/arch/x86/boot.rst of Linux. The setup header lies in the file where it
//! lies in `boot_params`.

use std::mem::offset_of;

use lguest_abi::boot_params;

use crate::image::refused::ImageError;
use crate::image::unpack::{self, Format, UnpackError};

const MAGIC: &[u8] = b"HdrS";
/// The first version that has `payload_offset`.
const VERSION_PAYLOAD: u16 = 0x208;
const SECTOR: usize = 512;

/// The parts of a bzImage.
pub(crate) struct BzImage<'a> {
    /// A compressed kernel, and the kernel's size in the last four bytes.
    payload: &'a [u8],
    /// `uname -r` and more about the kernel, in words.
    version: Option<&'a [u8]>,
}

impl<'a> BzImage<'a> {
    /// Looks for a bzImage in `file`. `None` when it is something else.
    pub(crate) fn find(file: &'a [u8]) -> Result<Option<Self>, ImageError> {
        if field(file, offset_of!(boot_params, hdr.header)) != Some(MAGIC) {
            return Ok(None);
        }
        let cut_off = || ImageError::Malformed("its setup header is cut off");
        let u32_at = |at| Some(u32::from_le_bytes(field(file, at)?.try_into().unwrap()));
        // Version is a 16-bit field, and the next one follows.
        let version = u32_at(offset_of!(boot_params, hdr.version)).ok_or_else(cut_off)? as u16;
        if version < VERSION_PAYLOAD {
            return Err(ImageError::OldBzImage(version));
        }
        let offset = u32_at(offset_of!(boot_params, hdr.payload_offset)).ok_or_else(cut_off)?;
        let length = u32_at(offset_of!(boot_params, hdr.payload_length)).ok_or_else(cut_off)?;
        // For old times' sake, 0 means 4.
        let setup_sectors = match file[offset_of!(boot_params, hdr.setup_sects)] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (setup_sectors + 1) * SECTOR + offset as usize;
        let payload = file
            .get(start..start + length as usize)
            .ok_or(ImageError::Malformed("its compressed kernel is cut off"))?;
        // Where the text is, less the sector that a boot loader once was; 0: nowhere.
        let version = u32_at(offset_of!(boot_params, hdr.kernel_version)).ok_or_else(cut_off)?;
        let version = match version as u16 {
            0 => None,
            at => file.get(usize::from(at) + SECTOR..),
        };
        Ok(Some(Self { payload, version }))
    }

    /// What `uname -r` says in the kernel.
    pub(crate) fn release(&self) -> Option<String> {
        release(self.version?)
    }

    /// The way in which the kernel is compressed.
    pub(crate) fn format(&self) -> Option<Format> {
        Format::of(self.payload)
    }

    /// Unpacks the kernel.
    pub(crate) fn unpack(&self) -> Result<Vec<u8>, ImageError> {
        let format = self.format().ok_or(UnpackError::Unknown)?;
        let (packed, size) = self
            .payload
            .split_last_chunk::<4>()
            .ok_or(ImageError::Malformed("its compressed kernel is empty"))?;
        let size = u32::from_le_bytes(*size) as usize;
        // gzip ends with the size by itself, in the other formats the kernel's build adds it.
        let packed = if format == Format::Gzip {
            self.payload
        } else {
            packed
        };
        let elf = unpack::unpack(format, packed, size.min(unpack::LIMIT))?;
        if elf.len() != size {
            return Err(ImageError::Malformed(
                "its kernel does not have the size that it should",
            ));
        }
        Ok(elf)
    }
}

/// The release at the beginning of `text`: the name of a directory of modules, and so without any "/".
pub(crate) fn release(text: &[u8]) -> Option<String> {
    const MAX: usize = 64;
    let end = text
        .iter()
        .take(MAX + 1)
        .position(|byte| !byte.is_ascii_graphic())?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    let good = !release.contains('/') && release.starts_with(|first: char| first.is_ascii_digit());
    good.then(|| release.to_owned())
}

/// The four bytes at `at`.
fn field(file: &[u8], at: usize) -> Option<&[u8]> {
    file.get(at..at + 4)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::image::tests::{elf, good_notes, TEXT};
    use crate::image::Image;

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A bzImage of one setup sector, with its payload 0x20 bytes into the code.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR + 0x20];
        put(&mut file, 0, b"MZ");
        put(&mut file, offset_of!(boot_params, hdr.setup_sects), &[1]);
        put(
            &mut file,
            offset_of!(boot_params, hdr.boot_flag),
            &[0x55, 0xaa],
        );
        put(&mut file, offset_of!(boot_params, hdr.header), MAGIC);
        put(
            &mut file,
            offset_of!(boot_params, hdr.version),
            &[0x0f, 0x02],
        );
        put(
            &mut file,
            offset_of!(boot_params, hdr.payload_offset),
            &[0x20, 0, 0, 0],
        );
        let length = (payload.len() as u32).to_le_bytes();
        put(
            &mut file,
            offset_of!(boot_params, hdr.payload_length),
            &length,
        );
        file.extend(payload);
        file.extend([0xcc; 64]);
        file
    }

    /// The files that the kernel's build makes of `elf`, one in each format.
    fn payloads(elf: &[u8]) -> Vec<(Format, Vec<u8>)> {
        let mut payloads = unpack::tests::packed(elf);
        for (format, payload) in &mut payloads {
            if *format != Format::Gzip {
                payload.extend((elf.len() as u32).to_le_bytes());
            }
        }
        payloads
    }

    #[test]
    fn every_format() {
        for (format, payload) in payloads(&elf(&good_notes())) {
            let image = Image::parse(bzimage(&payload));
            let image = image.unwrap_or_else(|error| panic!("{format:?}: {error}"));
            assert_eq!(image.entry, TEXT + 0x10);
        }
    }

    #[test]
    fn refusals() {
        let message = |file| {
            Image::parse(file)
                .expect_err("it should be refused")
                .to_string()
        };
        let (_, payload) = payloads(&elf(&good_notes())).swap_remove(0);
        let patched = |at, bytes: &[u8]| {
            let mut file = bzimage(&payload);
            put(&mut file, at, bytes);
            file
        };
        assert!(message(patched(offset_of!(boot_params, hdr.version), &[7, 2])).contains("2.07"));
        let length = offset_of!(boot_params, hdr.payload_length);
        assert!(message(patched(length, &[0xff; 4])).contains("cut off"));
        assert!(message(patched(length, &[0; 4])).contains("unknown"));
        let offset = offset_of!(boot_params, hdr.payload_offset);
        assert!(message(patched(offset, &[0xff; 4])).contains("cut off"));
        assert!(message(patched(offset, &[0x1f])).contains("unknown"));
        let mut short = bzimage(&payload);
        short.truncate(offset);
        assert!(message(short).contains("header is cut off"));
        let wrong_size = [&payload[..payload.len() - 4], &[0xff; 4]].concat();
        assert!(message(bzimage(&wrong_size)).contains("gzip"));
    }

    #[test]
    fn the_release() {
        let (_, payload) = payloads(&elf(&good_notes())).swap_remove(0);
        let told = |text: &[u8]| {
            let mut file = bzimage(&payload);
            // Into the code before the payload, which is as good a place.
            put(
                &mut file,
                offset_of!(boot_params, hdr.kernel_version),
                &[0, 2],
            );
            put(&mut file, 2 * SECTOR, text);
            Image::parse(file).unwrap().release()
        };
        assert_eq!(
            told(b"7.3.4-cloud-amd64 (a b) #1\0"),
            Some("7.3.4-cloud-amd64".into())
        );
        for bad in [&b"../7.3 \0"[..], b"\0", b"7/3 \0", b"x7.3 \0", b"7\xff \0"] {
            let release = told(bad);
            assert!(release.is_none_or(|release| release == "7"), "{bad:?}");
        }
        assert_eq!(Image::parse(bzimage(&payload)).unwrap().release(), None);
    }

    static PAYLOADS: LazyLock<Vec<(Format, Vec<u8>)>> =
        LazyLock::new(|| payloads(&elf(&good_notes())));

    proptest! {
        // Decompressors fill large dictionaries.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_files_never_panic(
            which in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            length in any::<prop::sample::Index>(),
        ) {
            let mut file = bzimage(&which.get(&PAYLOADS).1);
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
            file.truncate(length.index(2 * file.len()));
            let _ = Image::parse(file);
        }
    }
}
