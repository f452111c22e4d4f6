// SPDX-License-Identifier: GPL-2.0
//! The Host's end of vsock: all connections of a Guest, and the UNIX sockets that they go to, by
//! Firecracker's convention.
//!
//! * Our side connects to the UNIX socket PATH and writes `CONNECT PORT\n`; when the Guest listens
//!   on that port, it reads `OK HOST_PORT\n`, and from there on speaks with the Guest.
//! * The Guest connects to port PORT of CID 2, and gets whoever listens on the UNIX socket
//!   `PATH_PORT`.
//!
//! Nothing here knows of virtqueues: packets of the Guest's go in at [`Hub::take`], and those for it
//! come out at [`Hub::packet`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use super::connection::{Broken, Connection, Word, BUFFER};
use super::packet::{op, socket_type, Header};
use super::path;
pub use super::path::Spec;
use crate::report::codes::Code;
use crate::report::Explain;

/// The reasons why the socket of `--vsock` cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("there can be no vsock")]
pub struct VsockError(#[source] pub SocketError);

impl Explain for VsockError {
    fn code(&self) -> Code {
        Code::Vsock
    }

    fn why(&self) -> String {
        self.0.to_string()
    }

    fn fix(&self) -> String {
        self.0.fix()
    }
}
use crate::socket_file::{self, SocketError, SocketFile};

/// The Host's CID.
const HOST_CID: u64 = 2;
/// The most data in a packet. More than its credit the Guest may not send anyway.
pub const DATA_MAX: usize = BUFFER as usize;
/// Connections at a time: each takes a descriptor, and up to 64 KiB when its reader is slow.
const CONNECTIONS_MAX: usize = 512;
/// Resets that wait for buffers of the Guest's. When there are more, the Guest's packets wait.
const RESETS_MAX: usize = 256;
/// `VMADDR_PORT_ANY`: not a port.
const NO_PORT: u32 = u32::MAX;
/// The first port of connections from our side: above those that programs choose.
const FIRST_PORT: u32 = 1 << 30;

/// The token of epoll that is no connection's.
const LISTENER: u64 = u64::MAX;
const AGAIN: u64 = u64::MAX - 1;

/// A connection's two ports. As long as it is not known where our side wants to go, the Guest's is
/// [`NO_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    host: u32,
    guest: u32,
}

impl Key {
    fn token(self) -> u64 {
        (u64::from(self.host) << 32) | u64::from(self.guest)
    }

    fn of_token(token: u64) -> Self {
        Self {
            host: (token >> 32) as u32,
            guest: token as u32,
        }
    }
}

/// All connections.
pub struct Hub {
    guest_cid: u64,
    path: path::Sockets,
    listener: UnixListener,
    /// A program may wait for us to accept it.
    acceptable: bool,
    epoll: Epoll,
    events: Vec<EpollEvent>,
    again: EventFd,
    connections: HashMap<Key, Connection>,
    /// Those that have something to say, each once.
    ready: VecDeque<Key>,
    resets: VecDeque<Header>,
    next_port: u32,
}

impl Hub {
    /// Listens where `spec` says. The file of the socket lives as long as the other result.
    ///
    /// # Errors
    ///
    /// There is a file already, or none can be made there.
    pub fn listen(spec: &Spec) -> Result<(Self, SocketFile), SocketError> {
        let (listener, file) = socket_file::listen(&spec.path)?;
        let hub = Self::new(listener, spec).map_err(|source| SocketError::Listen {
            path: spec.path.clone(),
            source,
        })?;
        Ok((hub, file))
    }

    /// As [`Hub::listen`], with a listener that is there already and does not block.
    ///
    /// # Errors
    ///
    /// Too many descriptors are open.
    pub fn new(listener: UnixListener, spec: &Spec) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let again = EventFd::new(EFD_NONBLOCK)?;
        for (fd, token) in [(listener.as_raw_fd(), LISTENER), (again.as_raw_fd(), AGAIN)] {
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))?;
        }
        Ok(Self {
            guest_cid: spec.cid.into(),
            path: path::Sockets::new(&spec.path),
            listener,
            acceptable: true,
            epoll,
            events: vec![EpollEvent::default(); CONNECTIONS_MAX + 2],
            again,
            connections: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
        })
    }

    /// The Guest's CID.
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// Becomes readable when there may be something to do: [`Hub::poll`], then [`Hub::packet`].
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Makes [`Hub::fd`] readable again.
    pub fn come_again(&self) {
        // It can only fail when 2^64 of these wait.
        let _ = self.again.write(1);
    }

    /// Closes all connections, without a word to the Guest.
    pub fn reset(&mut self) {
        self.connections.clear();
        self.ready.clear();
        self.resets.clear();
        self.acceptable = true;
    }

    /// May the Guest send another packet, or would its answer be one too many?
    pub fn has_room(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Is there something to say to the Guest?
    pub fn has_news(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Looks what our side's sockets have to tell. Returns whether that was anything.
    pub fn poll(&mut self) -> io::Result<bool> {
        let mut events = std::mem::take(&mut self.events);
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        };
        for event in &events[..count.as_ref().map_or(0, |count| *count)] {
            match event.data() {
                LISTENER => self.acceptable = true,
                AGAIN => drop(self.again.read()),
                token => {
                    let set = event.event_set();
                    let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
                    let readable = set.intersects(EventSet::IN | EventSet::READ_HANG_UP);
                    self.wake(Key::of_token(token), readable, hung_up);
                }
            }
        }
        self.events = events;
        self.accept();
        Ok(count? != 0)
    }

    /// Something happened to a connection's socket.
    fn wake(&mut self, key: Key, readable: bool, hung_up: bool) {
        // An event can be older than the end of its connection.
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match connection.wake(readable, hung_up) {
            Err(Broken) => self.remove(key),
            Ok(()) if key.guest == NO_PORT => self.greet(key),
            Ok(()) => self.queue(key),
        }
    }

    /// Accepts those who want to connect to the Guest, so far as there is room.
    fn accept(&mut self) {
        while self.acceptable && self.make_room() {
            let accepted = self.listener.accept().and_then(|(socket, _)| {
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            match accepted {
                Ok(socket) => {
                    let key = Key {
                        host: self.free_port(),
                        guest: NO_PORT,
                    };
                    self.insert(key, Connection::accepted(socket));
                    self.greet(key);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // There is nobody, or no descriptor for him: the next one wakes us.
                Err(_) => self.acceptable = false,
            }
        }
    }

    /// Reads where our side wants to connect to.
    fn greet(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match connection.greeted() {
            Ok(None) => {}
            Ok(Some(guest)) if guest != NO_PORT => {
                if let Some(connection) = self.connections.remove(&key) {
                    let key = Key { guest, ..key };
                    if self.watch(key, &connection, ControlOperation::Modify) {
                        self.connections.insert(key, connection);
                        self.queue(key);
                    }
                }
            }
            Ok(Some(_)) | Err(Broken) => self.remove(key),
        }
    }

    /// A port of ours that no connection has.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = match port + 1 {
                NO_PORT => FIRST_PORT,
                next => next,
            };
            if !self.connections.keys().any(|key| key.host == port) {
                return port;
            }
        }
    }

    /// Is there room for one more connection? One that only waits for the Guest to forget it is
    /// given up for that.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < CONNECTIONS_MAX {
            return true;
        }
        let mut all = self.connections.iter();
        let closing = all.find(|(_, connection)| connection.is_closing());
        let Some(key) = closing.map(|(key, _)| *key).filter(|_| self.has_room()) else {
            return false;
        };
        self.remove(key);
        self.reset_guest(key);
        true
    }

    fn insert(&mut self, key: Key, connection: Connection) {
        if self.watch(key, &connection, ControlOperation::Add) {
            self.connections.insert(key, connection);
        }
    }

    fn watch(&self, key: Key, connection: &Connection, operation: ControlOperation) -> bool {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, key.token());
        let fd = connection.socket.as_raw_fd();
        self.epoll.ctl(operation, fd, event).is_ok()
    }

    /// Ends a connection. Epoll forgets its socket when that is closed.
    fn remove(&mut self, key: Key) {
        self.connections.remove(&key);
    }

    /// Puts a connection in the queue if it has something to say.
    fn queue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key) {
            if !connection.queued && connection.next().is_some() {
                connection.queued = true;
                self.ready.push_back(key);
            }
        }
    }

    /// A packet to the Guest.
    fn header(&self, key: Key, op: u16) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: key.host,
            destination_port: key.guest,
            socket_type: socket_type::STREAM,
            op,
            ..Default::default()
        }
    }

    /// Tells the Guest that there is no such connection.
    fn reset_guest(&mut self, key: Key) {
        self.resets.push_back(self.header(key, op::RST));
    }

    /// Takes a packet of the Guest's.
    pub fn take(&mut self, header: &Header, data: &[u8]) {
        // A packet in somebody else's name gets no answer.
        if header.source_cid != self.guest_cid {
            return;
        }
        let key = Key {
            host: header.destination_port,
            guest: header.source_port,
        };
        let here = header.destination_cid == HOST_CID;
        if !here || header.socket_type != socket_type::STREAM {
            if header.op != op::RST {
                let reset = Header {
                    source_cid: header.destination_cid,
                    socket_type: header.socket_type,
                    ..self.header(key, op::RST)
                };
                self.resets.push_back(reset);
            }
            return;
        }
        match (self.connections.get_mut(&key), header.op) {
            (None, op::RST) => {}
            (None, op::REQUEST) => self.connect(key, header),
            (None, _) => self.reset_guest(key),
            // It is none of the Guest's as long as it does not know of it.
            (Some(_), _) if key.guest == NO_PORT => self.reset_guest(key),
            (Some(connection), op::RST) => {
                if !connection.linger() {
                    self.remove(key);
                }
            }
            (Some(connection), _) if connection.is_lingering() => self.reset_guest(key),
            (Some(connection), _) => match connection.take(header, data, key.host) {
                Ok(()) => self.queue(key),
                Err(Broken) => {
                    self.remove(key);
                    self.reset_guest(key);
                }
            },
        }
    }

    /// The Guest asks for a connection.
    fn connect(&mut self, key: Key, request: &Header) {
        let possible = key.host != NO_PORT && key.guest != NO_PORT && self.make_room();
        let socket: Option<UnixStream> =
            possible.then(|| self.path.connect(key.host).ok()).flatten();
        match socket {
            Some(socket) => {
                self.insert(key, Connection::requested(socket, request));
                self.queue(key);
            }
            None => self.reset_guest(key),
        }
    }

    /// The next packet for the Guest; its data, if it has some, is then in front of `data`, which
    /// is not empty.
    pub fn packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            let Some(word) = connection.next() else {
                continue;
            };
            let (op, flags, length) = match word {
                Word::Reset => {
                    self.remove(key);
                    return Some(self.header(key, op::RST));
                }
                Word::Control(op, flags) => (op, flags, 0),
                Word::Data => match connection.read(data) {
                    0 => {
                        self.queue(key);
                        continue;
                    }
                    length => (op::RW, 0, length as u32),
                },
            };
            connection.said(op, flags);
            let mut header = Header::default();
            connection.give_credit(&mut header);
            self.queue(key);
            return Some(Header {
                length,
                flags,
                buffer: header.buffer,
                forwarded: header.forwarded,
                ..self.header(key, op)
            });
        }
        None
    }
}
