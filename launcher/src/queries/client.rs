// SPDX-License-Identifier: GPL-2.0
//! The side that asks, and finds out whom.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{self, getsockopt, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::unistd::Uid;
use serde_json::Value;

use super::{names_of, place, Query, Reply};
use crate::report::codes::Code;
use crate::report::messages::printable;
use crate::report::Explain;

/// The kernel's list of UNIX sockets.
const SOCKETS: &str = "/proc/net/unix";
/// The flag of one that listens, `__SO_ACCEPTCON` of `linux:include/linux/net.h`, as it is in that list.
const LISTENS: &str = "00010000";
/// The time that an lg has to answer. It takes long where its machine is loaded, and for ever where it is stopped.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer.
const ANSWER_MAX: usize = 1 << 20;

/// The reasons why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{}", Code::NoAnswer.title())]
pub enum NoAnswer {
    /// Nobody can be asked.
    Nobody,
    /// It is not said who is.
    Several(Vec<u32>),
    /// There is no such Guest, or it is somebody else's.
    NoSuch(u32),
    /// The connection breaks.
    Broken(u32, #[source] io::Error),
    /// That one cannot be answered.
    Refused(String),
}

impl Explain for NoAnswer {
    fn code(&self) -> Code {
        Code::NoAnswer
    }

    fn why(&self) -> String {
        match self {
            Self::Nobody => "no guest of yours is running".into(),
            Self::Several(pids) => {
                let line = |pid| format!("\n            {pid}  {}", command_line(pid));
                let lines: String = pids.iter().copied().map(line).collect();
                format!("there are several guests of yours:{lines}")
            }
            Self::NoSuch(pid) => format!("process {pid} is no lg run of yours"),
            Self::Broken(pid, error) if error.kind() == io::ErrorKind::WouldBlock => {
                format!("lg run, process {pid}, does not answer: it may be stopped")
            }
            Self::Broken(pid, error) => format!("lg run, process {pid}: {error}"),
            Self::Refused(why) => why.clone(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Several(_) => "name one: --guest PID".into(),
            _ => self.code().fix().to_string(),
        }
    }
}

/// The processes of this user's Guests, in the order of their numbers.
pub fn guests() -> Vec<u32> {
    let list = fs::read(SOCKETS).unwrap_or_default();
    listed(&String::from_utf8_lossy(&list), Uid::effective().as_raw())
}

/// Those of a user in the kernel's list.
fn listed(list: &str, uid: u32) -> Vec<u32> {
    let names = format!("@{}", names_of(uid));
    let pid = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, _, _, flags, _, _, _, name] = fields[..] else {
            return None;
        };
        let pid = name.strip_prefix(&names)?.parse().ok()?;
        (flags == LISTENS).then_some(pid)
    };
    let pids: BTreeSet<u32> = list.lines().filter_map(pid).collect();
    pids.into_iter().collect()
}

/// The Guest that is meant: that of process `named`, or the only one.
///
/// # Errors
///
/// There is none, or it is not said which of several.
pub fn choose(named: Option<u32>) -> Result<u32, NoAnswer> {
    match (named, &guests()[..]) {
        (Some(pid), guests) if guests.contains(&pid) => Ok(pid),
        (Some(pid), _) => Err(NoAnswer::NoSuch(pid)),
        (None, []) => Err(NoAnswer::Nobody),
        (None, &[pid]) => Ok(pid),
        (None, guests) => Err(NoAnswer::Several(guests.to_vec())),
    }
}

/// The command line of a process, for people.
pub fn command_line(pid: u32) -> String {
    let mut bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .iter_mut()
        .filter(|byte| **byte == 0)
        .for_each(|byte| *byte = b' ');
    printable(bytes.trim_ascii_end()).replace('\n', " ")
}

/// What the lg of process `pid` answers.
///
/// # Errors
///
/// There is no such lg of this user's, it says nothing, or it says why it cannot answer.
pub fn ask(pid: u32, query: &Query) -> Result<Value, NoAnswer> {
    ask_within(pid, query, PATIENCE)
}

/// The same, but it has no more than this time to answer.
///
/// # Errors
///
/// As those of [`ask`].
pub fn ask_within(pid: u32, query: &Query, patience: Duration) -> Result<Value, NoAnswer> {
    let uid = Uid::effective().as_raw();
    let until = Instant::now() + patience;
    let place = place(uid, pid).map_err(|error| NoAnswer::Broken(pid, error))?;
    let socket = connect(&place, patience).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => NoAnswer::NoSuch(pid),
        _ => NoAnswer::Broken(pid, error),
    })?;
    let peer = getsockopt(&socket, PeerCredentials).map_err(|_| NoAnswer::NoSuch(pid))?;
    if peer.uid() != uid || u32::try_from(peer.pid()) != Ok(pid) {
        return Err(NoAnswer::NoSuch(pid));
    }
    match exchange(socket, query, until).map_err(|error| NoAnswer::Broken(pid, error))? {
        Reply::Answer(value) => Ok(value),
        Reply::Error(why) => Err(NoAnswer::Refused(printable(why.as_bytes()))),
    }
}

/// Connects to a socket. Where others queue up before one that takes nobody in, that is for ever otherwise.
fn connect(place: &SocketAddr, patience: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let socket = UnixStream::from(socket);
    socket.set_write_timeout(Some(patience))?;
    let name = place.as_abstract_name().unwrap_or_default();
    socket::connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
    Ok(socket)
}

/// A Guest that has got out of its place into lg may answer anything, as slowly as it likes.
fn exchange(mut socket: UnixStream, query: &Query, until: Instant) -> io::Result<Reply> {
    socket.write_all(format!("{query}\n").as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut part)? {
            0 => return Ok(serde_json::from_slice(&answer)?),
            length => answer.extend(&part[..length]),
        }
        if answer.len() > ANSWER_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process;
    use std::thread;

    use serde_json::json;

    use super::*;
    use crate::queries::server::Listener;

    /// What is there to be asked, and what is not.
    #[test]
    fn who_is_there_answers() {
        let (own, uid) = (process::id(), Uid::effective().as_raw());
        let listener = Listener::open().unwrap();
        Listener::open().unwrap_err();
        thread::spawn(move || {
            listener.serve(|query| match query {
                Query::Stats => Ok(json!({"entries": 7})),
                Query::Guest => Err("no guest".into()),
                Query::Walk { gva, .. } => Err(format!("nothing at {gva:#x}\x1b")),
            })
        });
        assert!(guests().contains(&own));
        assert_eq!(choose(Some(own)).unwrap(), own);
        // Who says nothing, or too much, does not keep others from asking.
        let place = place(uid, own).unwrap();
        let _silent = UnixStream::connect_addr(&place).unwrap();
        let mut loud = UnixStream::connect_addr(&place).unwrap();
        let _ = loud.write_all(&[b'x'; 1000]);
        assert_eq!(ask(own, &Query::Stats).unwrap(), json!({"entries": 7}));
        let refused = ask(own, &Query::Walk { gva: 16, vcpu: 0 }).unwrap_err();
        assert_eq!(refused.why(), "nothing at 0x10\u{fffd}");
        assert!(!command_line(own).is_empty());
    }

    #[test]
    fn a_name_that_is_not_its_owners_is_not_asked() {
        // Nobody has this number: pid_max is 2^22 at most.
        let (pid, uid) = (1 << 23, Uid::effective().as_raw());
        assert!(matches!(ask(pid, &Query::Stats), Err(NoAnswer::NoSuch(_))));
        assert!(matches!(choose(Some(pid)), Err(NoAnswer::NoSuch(_))));
        let _squatter = UnixListener::bind_addr(&place(uid, pid).unwrap()).unwrap();
        assert!(matches!(ask(pid, &Query::Stats), Err(NoAnswer::NoSuch(_))));
    }

    /// As one that is frozen, and has been asked too often.
    #[test]
    fn a_long_queue_is_not_joined_for_ever() {
        let (pid, uid) = (1 << 24, Uid::effective().as_raw());
        let place = place(uid, pid).unwrap();
        let listener = UnixListener::bind_addr(&place).unwrap();
        socket::listen(&listener, socket::Backlog::new(0).unwrap()).unwrap();
        let patience = Duration::from_millis(50);
        let mut queue = Vec::new();
        while let Ok(asker) = connect(&place, patience) {
            queue.push(asker);
        }
        let error = ask_within(pid, &Query::Stats, patience).unwrap_err();
        assert!(error.why().contains("does not answer"), "{error:?}");
    }

    #[test]
    fn an_answer_ends_in_time_and_in_size() {
        let soon = Duration::from_millis(50);
        let (here, _there) = UnixStream::pair().unwrap();
        let error = exchange(here, &Query::Stats, Instant::now() + soon).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let (here, mut there) = UnixStream::pair().unwrap();
        let flood = thread::spawn(move || while there.write_all(&[b' '; 4096]).is_ok() {});
        exchange(here, &Query::Stats, Instant::now() + PATIENCE).unwrap_err();
        flood.join().unwrap();
    }

    #[test]
    fn the_kernels_list() {
        let list = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000a1: 00000002 00000000 00010000 0001 01 15731 @lg/1000/77\n\
            00000000a2: 00000003 00000000 00000000 0001 03 15733 @lg/1000/78\n\
            00000000a3: 00000002 00000000 00010000 0001 01 15734 @lg/1001/79\n\
            00000000a4: 00000002 00000000 00010000 0001 01 15735 @lg/1000/x\n\
            00000000a5: 00000002 00000000 00010000 0001 01 15736 /run/lg/1000/80\n\
            00000000a6: 00000002 00000000 00010000 0001 01 15737 @lg/1000/5\n\
            00000000a7: 00000002 00000000 00010000 0001 01 15738\n";
        assert_eq!(listed(list, 1000), [5, 77]);
        assert_eq!(listed("", 0), [0; 0]);
    }
}
