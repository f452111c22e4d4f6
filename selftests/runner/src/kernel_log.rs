// SPDX-License-Identifier: GPL-2.0
//! The Host's kernel log, searched for complaints.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// The words that a healthy kernel never says.
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

/// What it says when the tests of memory errors have made one: they alone are told of it, by a signal.
const MADE_ERROR: &str = "Sending SIGBUS to memory_errors:";

/// The first complaint in `text`, if any.
pub(crate) fn complaint_in(text: &str) -> Option<&str> {
    text.lines().find(|line| {
        COMPLAINTS.iter().any(|complaint| line.contains(complaint)) && !line.contains(MADE_ERROR)
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

#[cfg(test)]
mod tests {
    use super::complaint_in;

    #[test]
    fn an_error_that_no_test_made_is_a_complaint() {
        let sent = |process: &str| {
            format!("Memory failure: 0x1: Sending SIGBUS to {process} due to hardware memory corruption")
        };
        assert_eq!(complaint_in(&sent("memory_errors:12")), None);
        let [lg, killed] = [
            sent("lg:13"),
            "MCE: Killing lg:13 due to hardware memory corruption fault at 7f0000000000".into(),
        ];
        assert_eq!(complaint_in(&lg), Some(&*lg));
        assert_eq!(complaint_in(&killed), Some(&*killed));
    }
}
