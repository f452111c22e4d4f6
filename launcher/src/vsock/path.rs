// SPDX-License-Identifier: GPL-2.0
//! `--vsock`, and the UNIX sockets that it names.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

/// The CID of a guest, if none is named: the first that is not reserved.
const FIRST_CID: u32 = 3;
/// The name of a UNIX socket has 107 bytes at most, and `_4294967295` may follow the path.
const PATH_MAX: usize = 107 - 11;

/// What `--vsock` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The UNIX socket on which our side is heard.
    pub path: PathBuf,
    /// The guest's CID.
    pub cid: u32,
}

impl Spec {
    /// Parses `PATH[,cid=N]`.
    ///
    /// # Errors
    ///
    /// What is wrong, for the user.
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
    pub fn check(&self) -> Result<(), VsockError> {
        check(&self.path)
    }
}

/// Why there can be no vsock.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum VsockError {
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    #[error("{} is left from a run that was killed", .0.display())]
    Stale(PathBuf),
    #[error("{} exists, and is no socket", .0.display())]
    Foreign(PathBuf),
    #[error("{}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

impl VsockError {
    /// What the user can do.
    pub fn fix(&self) -> String {
        match self {
            Self::InUse(_) => "name another path: every guest has its own".into(),
            Self::Stale(path) => format!("remove it: rm {}", path.display()),
            Self::Foreign(_) => "name a path where there is no file".into(),
            Self::Listen { .. } => "name a path in a directory where you may make files".into(),
        }
    }
}

/// The file of a listening socket, which is removed with this.
///
/// By another process: in the sandbox nobody may remove files. It waits for the end of its input,
/// and so removes the file even when we are killed.
#[derive(Debug)]
pub struct SocketFile {
    remover: Child,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let remover = Command::new("sh")
            .args(["-c", "read -r _; rm -f -- \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The terminal's signals are for us.
            .process_group(0)
            .spawn();
        remover.map(|remover| Self { remover })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Closes its input; should the wait fail, the file is gone a little later.
        let _ = self.remover.wait();
    }
}

/// `Ok` if there is no file at `path`; else what kind of file it is.
fn check(path: &Path) -> Result<(), VsockError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let path = path.to_owned();
    Err(match UnixStream::connect(&path) {
        _ if !metadata.file_type().is_socket() => VsockError::Foreign(path),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => VsockError::Stale(path),
        _ => VsockError::InUse(path),
    })
}

/// Listens on `path`, where there is no file yet. Only the user can connect.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), VsockError> {
    check(path)?;
    let failed = |source| VsockError::Listen {
        path: path.to_owned(),
        source,
    };
    // Nobody can connect between bind and listen, and by then the mode is right.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let bind = || -> nix::Result<_> {
        let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(socket)
    };
    let socket = bind().map_err(|error| failed(error.into()))?;
    let file = SocketFile::new(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    let backlog = socket::Backlog::new(128).expect("a small number");
    socket::listen(&socket, backlog).map_err(|error| failed(error.into()))?;
    Ok((socket.into(), file))
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

    #[test]
    fn the_socket_is_private_and_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let (listener, file) = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(listen(&path), Err(VsockError::InUse(_))));
        drop(listener);
        // A child that another test is just starting has it too, until it runs its program.
        let stale = (0..100).any(|_| {
            let stale = matches!(listen(&path), Err(VsockError::Stale(_)));
            if !stale {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            stale
        });
        assert!(stale);
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(VsockError::Foreign(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = directory.path().join("no/such");
        assert!(matches!(listen(&nowhere), Err(VsockError::Listen { .. })));
    }
}
