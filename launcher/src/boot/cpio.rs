// SPDX-License-Identifier: GPL-2.0
//! The archive that is put behind the initrd to tell the Guest's init what to run.
//!
//! Linux unpacks an initrd of several archives one over the other. Format: "newc", as in
//! Documentation/driver-api/early-userspace/buffer-format.rst.

/// The alignment of an archive within an initrd, and of its parts.
pub const ALIGN: usize = 4;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// Writes a cpio archive.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Its parent must be there already.
    pub fn directory(mut self, path: &str) -> Self {
        self.entry(path, DIRECTORY, &[]);
        self
    }

    /// Adds a file. Its directory must be there already; `content` is at most 4 GiB.
    pub fn file(mut self, path: &str, content: &[u8]) -> Self {
        self.entry(path, FILE, content);
        self
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let name_size = path.len() as u32 + 1;
        let fields = [self.entries, mode, 0, 0, links, 0, content.len() as u32];
        let numbers = [0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields.into_iter().chain(numbers) {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Runs cpio on `archive`.
    pub(crate) fn cpio(arguments: &[&str], archive: &[u8]) -> Vec<u8> {
        let mut child = Command::new("cpio")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is needed");
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn cpio_reads_it() {
        let archive = Archive::default()
            .directory("lg")
            .file("lg/cmd", b"sh\0-c\0exit 7\0")
            .file("lg/empty", b"")
            .finish();
        let list = String::from_utf8(cpio(&["-t", "--quiet"], &archive)).unwrap();
        assert_eq!(list, "lg\nlg/cmd\nlg/empty\n");
        let content = cpio(&["-i", "--quiet", "--to-stdout", "lg/cmd"], &archive);
        assert_eq!(content, b"sh\0-c\0exit 7\0");
        let list = String::from_utf8(cpio(&["-tv", "--quiet"], &archive)).unwrap();
        assert!(list.starts_with("drwxr-xr-x"), "{list}");
        assert!(list.contains("\n-rw-r--r--"), "{list}");
    }
}
