// SPDX-License-Identifier: GPL-2.0
//! The side that answers.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Uid;
use serde_json::Value;

use super::{place, Query, Reply, QUESTION_MAX};

/// The time that somebody has to ask, and then to take the answer. Others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time without anything to try again after there was no room for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket at which this process is asked.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// The user, which nobody can look up in the sandbox.
    uid: Uid,
}

impl Listener {
    /// Makes the socket of this process.
    ///
    /// # Errors
    ///
    /// Somebody has its name, or too many descriptors are open.
    pub fn open() -> io::Result<Self> {
        let uid = Uid::effective();
        let socket = UnixListener::bind_addr(&place(uid.as_raw(), process::id())?)?;
        Ok(Self { socket, uid })
    }

    /// Answers for ever, one question after the other: by what `answer` returns, an error in words otherwise.
    pub fn serve(&self, answer: impl Fn(&Query) -> Result<Value, String>) -> ! {
        loop {
            match self.socket.accept() {
                // Who does not ask or does not listen is not waited for.
                Ok((asker, _)) => drop(self.reply(asker, &answer)),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    fn reply(
        &self,
        mut asker: UnixStream,
        answer: impl Fn(&Query) -> Result<Value, String>,
    ) -> io::Result<()> {
        let peer = Uid::from_raw(getsockopt(&asker, PeerCredentials)?.uid());
        if peer != self.uid && !peer.is_root() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let question = question(&mut asker)?;
        let reply = match question.parse().and_then(|query| answer(&query)) {
            Ok(value) => Reply::Answer(value),
            Err(why) => Reply::Error(why),
        };
        let line = serde_json::to_string(&reply)? + "\n";
        asker.set_write_timeout(Some(PATIENCE))?;
        asker.write_all(line.as_bytes())
    }
}

/// The first line that comes from `asker`.
fn question(asker: &mut UnixStream) -> io::Result<String> {
    let (mut line, until) = ([0; QUESTION_MAX], Instant::now() + PATIENCE);
    let mut length = 0;
    while !line[..length].ends_with(b"\n") {
        let left = until.saturating_duration_since(Instant::now());
        // None of it is an error here.
        asker.set_read_timeout(Some(left))?;
        match asker.read(&mut line[length..])? {
            0 => return Err(io::ErrorKind::InvalidData.into()),
            count => length += count,
        }
    }
    Ok(String::from_utf8_lossy(&line[..length]).into_owned())
}
