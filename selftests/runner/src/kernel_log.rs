// SPDX-License-Identifier: GPL-2.0
//! The Host's kernel log, searched for complaints.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// What a healthy kernel never says.
const COMPLAINTS: [&str; 22] = [
    "WARNING: ",
    "BUG: ",
    "Oops",
    "kernel BUG at",
    "Kernel panic",
    "UBSAN:",
    "KASAN:",
    "KFENCE:",
    "refcount_t:",
    "possible recursive locking",
    "possible circular locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "detected stall",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "scheduling while atomic",
    "sleeping function called",
    "unable to handle",
    "Bad page",
    "corruption",
];

/// How it tells a process of a memory error, which a test has made.
const MEMORY_ERROR: &str = "hardware memory corruption";

/// The first complaint in `text`, if any.
pub(crate) fn complaint_in(text: &str) -> Option<&str> {
    text.lines().find(|line| {
        COMPLAINTS.iter().any(|complaint| line.contains(complaint)) && !line.contains(MEMORY_ERROR)
    })
}

/// /dev/kmsg from where we have read to.
pub(crate) struct KernelLog(File);

impl KernelLog {
    /// Starts at the end of the log.
    pub(crate) fn open() -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// The complaints since the last call, a line each.
    pub(crate) fn complaints(&mut self) -> io::Result<String> {
        let mut lines = String::new();
        let mut record = [0; 8192];
        loop {
            // One read is one record: "priority,sequence,time,flags;text\n" and perhaps more lines.
            match self.0.read(&mut record) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    let text = text.split_once(';').map_or(&*text, |(_, text)| text);
                    if let Some(complaint) = complaint_in(text) {
                        lines += &format!("the Host's log: {complaint}\n");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // Records were overwritten before we came.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    lines += "the Host's log overflowed\n";
                }
                Err(error) => return Err(error),
            }
        }
    }
}
