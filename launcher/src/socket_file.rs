// SPDX-License-Identifier: GPL-2.0
//! UNIX sockets on which others come to us: private, never in the place of a file, and gone with us.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

/// The reasons why there can be no socket.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum SocketError {
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    #[error("{} is left from a run that was killed", .0.display())]
    Stale(PathBuf),
    #[error("{} exists, and is no socket", .0.display())]
    Foreign(PathBuf),
    #[error("{}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

impl SocketError {
    /// The fix.
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

/// Looks whether there is a file at `path`, and makes nothing.
///
/// # Errors
///
/// There is one, of the kind that the error says.
pub fn check(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let path = path.to_owned();
    Err(match UnixStream::connect(&path) {
        _ if !metadata.file_type().is_socket() => SocketError::Foreign(path),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => SocketError::Stale(path),
        _ => SocketError::InUse(path),
    })
}

/// Listens on `path`, where there is no file yet, without ever waiting. Only the user can connect.
///
/// # Errors
///
/// There is a file already, or there can be none.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    check(path)?;
    let failed = |source| SocketError::Listen {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_private_and_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let (listener, file) = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
        drop(listener);
        // A child that another test is just starting has it too, until it runs its program.
        let stale = (0..100).any(|_| {
            let stale = matches!(listen(&path), Err(SocketError::Stale(_)));
            if !stale {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            stale
        });
        assert!(stale);
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Foreign(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let nowhere = directory.path().join("no/such");
        assert!(matches!(listen(&nowhere), Err(SocketError::Listen { .. })));
    }
}
