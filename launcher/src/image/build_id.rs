// SPDX-License-Identifier: GPL-2.0
//! The build ID of a kernel: the linker's hash of it, which its copies with and without symbols share.

use object::elf::{FileHeader64, ELF_NOTE_GNU, NT_GNU_BUILD_ID};
use object::read::elf::{FileHeader, ProgramHeader};
use object::LittleEndian;

use crate::image::Image;

impl Image {
    /// Its build ID, if it has one.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        build_id(&self.elf)
    }
}

/// The build ID of an ELF file, whatever the file.
pub fn build_id(elf: &[u8]) -> Option<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(elf).ok()?;
    let endian = header.endian().ok()?;
    for segment in header.program_headers(endian, elf).ok()? {
        let Ok(Some(mut notes)) = segment.notes(endian, elf) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
                return Some(note.desc().to_vec());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::{elf, good_notes, note};

    #[test]
    fn it_is_among_the_notes() {
        assert_eq!(build_id(&elf(&good_notes())), None);
        let with = [good_notes(), note(b"GNU\0", 3, &[1, 2, 3])].concat();
        assert_eq!(build_id(&elf(&with)), Some(vec![1, 2, 3]));
        assert_eq!(
            Image::parse(elf(&with)).unwrap().build_id(),
            Some(vec![1, 2, 3])
        );
        assert_eq!(build_id(b""), None);
        let cut = elf(&with);
        for end in 0..cut.len() {
            build_id(&cut[..end]);
        }
    }
}
