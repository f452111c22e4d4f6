// SPDX-License-Identifier: GPL-2.0
//! `--vsock`, and the UNIX sockets that it names.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

use crate::socket_file::{self, SocketError};

/// The CID of a Guest, if none is named: the first that is not reserved.
const FIRST_CID: u32 = 3;
/// The name of a UNIX socket has 107 bytes at most, and `_4294967295` may follow the path.
const PATH_MAX: usize = 107 - 11;

/// The argument of `--vsock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The UNIX socket on which our side is heard.
    pub path: PathBuf,
    /// The Guest's CID.
    pub cid: u32,
}

impl Spec {
    /// The directory in which all of its sockets are.
    pub fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        }
    }

    /// Parses `PATH[,cid=N]`.
    ///
    /// # Errors
    ///
    /// The error, for the user.
    pub fn parse(text: OsString) -> Result<Self, String> {
        let bytes = text.into_vec();
        let option = b",cid=";
        let at = bytes
            .windows(option.len())
            .rposition(|window| window == option);
        let (path, cid) = match at {
            None => (&bytes[..], FIRST_CID),
            Some(at) => {
                let number = std::str::from_utf8(&bytes[at + option.len()..]).ok();
                let cid = number.and_then(|number| number.parse().ok());
                let cid = cid.filter(|cid| (FIRST_CID..u32::MAX).contains(cid));
                (&bytes[..at], cid.ok_or("a CID is a number from 3 on")?)
            }
        };
        if path.is_empty() {
            return Err("no path is named; an example is /tmp/guest.sock,cid=3".into());
        }
        if path.len() > PATH_MAX {
            return Err(format!("the path is longer than {PATH_MAX} bytes"));
        }
        Ok(Self {
            path: OsStr::from_bytes(path).into(),
            cid,
        })
    }

    /// Looks whether the socket can be made, and makes nothing.
    ///
    /// # Errors
    ///
    /// There is a file already.
    pub fn check(&self) -> Result<(), SocketError> {
        socket_file::check(&self.path)
    }
}

/// The sockets that the Guest connects to.
pub(super) struct Sockets(OsString);

impl Sockets {
    pub(super) fn new(path: &Path) -> Self {
        let mut prefix = path.as_os_str().to_owned();
        prefix.push("_");
        Self(prefix)
    }

    /// Connects to whoever listens for the Guest's `port`. Does not wait: a listener that is too
    /// busy is none.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.0.clone();
        path.push(port.to_string());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path.as_os_str())?)?;
        Ok(socket.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs() {
        let parse = |text: &str| Spec::parse(text.into());
        let spec = |path: &str, cid| Spec {
            path: path.into(),
            cid,
        };
        assert_eq!(parse("/tmp/a"), Ok(spec("/tmp/a", 3)));
        assert_eq!(parse("/tmp/a,cid=77"), Ok(spec("/tmp/a", 77)));
        assert_eq!(parse("a,b"), Ok(spec("a,b", 3)));
        for bad in [
            "",
            ",cid=3",
            "a,cid=2",
            "a,cid=",
            "a,cid=x",
            "a,cid=4294967295",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"x".repeat(97)).is_err());
    }
}
