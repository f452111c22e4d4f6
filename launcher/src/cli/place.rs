// SPDX-License-Identifier: GPL-2.0
//! `--gdb`: where gdb is to come, and why it cannot.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::report::codes::Code;
use crate::report::Explain;
use crate::socket_file::SocketError;

/// Parses the value of `--gdb`, the path of a UNIX socket, which is made.
///
/// No TCP port, which a path could be taken for: whoever connects has all of the guest, and so what
/// the guest has of the user. A port of localhost is there for every user, for other guests that have
/// `--net user`, and for what a web browser is told to send.
///
/// # Errors
///
/// The error, for the user.
pub fn parse(text: OsString) -> Result<PathBuf, String> {
    let bytes = text.as_bytes();
    let port = match bytes.iter().rposition(|&byte| byte == b':') {
        Some(colon) if !bytes.contains(&b'/') => &bytes[colon + 1..],
        _ => bytes,
    };
    if bytes.is_empty() {
        return Err("no path is named; an example is /tmp/gdb".into());
    }
    if port.iter().all(u8::is_ascii_digit) {
        return Err("everybody on this machine could connect to a port; \
             name the path of a socket, such as /tmp/gdb, and tell gdb: target remote /tmp/gdb"
            .into());
    }
    Ok(text.into())
}

/// The reasons why gdb cannot come.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum GdbError {
    #[error("cannot wait for gdb at {}", place.display())]
    Wait { place: PathBuf, source: io::Error },
    #[error("cannot wait for gdb")]
    Socket(#[source] SocketError),
}

impl Explain for GdbError {
    fn code(&self) -> Code {
        Code::Gdb
    }

    fn why(&self) -> String {
        match self {
            Self::Wait { source, .. } => source.to_string(),
            Self::Socket(source) => source.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Wait { .. } => "name another socket".into(),
            Self::Socket(source) => source.fix(),
        }
    }
}
