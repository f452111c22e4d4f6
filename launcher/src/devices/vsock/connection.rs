// SPDX-License-Identifier: GPL-2.0
//! One connection: a stream socket of the Guest's on one side, a UNIX socket on the other.
//!
//! Each side may send only what the other has room for. The Guest is told of our room, and its bytes
//! that the UNIX socket does not take wait here, at most [`BUFFER`] of them. Of the Guest's room we
//! hear with every packet; what it has no room for stays in the UNIX socket, whose writer then waits.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::packet::{op, shutdown, Header};

/// The most bytes of the Guest's that wait for the UNIX socket: its credit.
pub(super) const BUFFER: u32 = 64 << 10;
/// The Guest hears of new room when there is this much more than it knows of.
const WORTH_TELLING: u32 = BUFFER / 4;
/// `CONNECT 4294967295\n` is the longest first line there is.
const GREETING_MAX: usize = 19;

/// The phases of a connection.
#[derive(Debug, PartialEq)]
enum Phase {
    /// Our side has connected, and is to say where to.
    Greeting(Vec<u8>),
    /// The Guest is to be asked.
    Asking,
    /// The Guest was asked.
    Asked,
    /// The Guest is to hear that it is connected.
    Granting,
    /// Both sides are connected.
    Open,
    /// The Guest has forgotten it, but what it sent is not all written.
    Lingering,
}

/// The next word of our side of a connection.
#[derive(Debug, PartialEq)]
pub(super) enum Word {
    /// A packet without data: operation and flags.
    Control(u16, u32),
    /// A packet with data, so far as there is some.
    Data,
    /// The last word. There is no connection after it.
    Reset,
}

/// The other side broke the rules, or is gone: there is nothing to save.
#[derive(Debug)]
pub(super) struct Broken;

/// A connection.
pub(super) struct Connection {
    pub(super) socket: UnixStream,
    phase: Phase,
    /// Is it in the queue of those that have something to say?
    pub(super) queued: bool,

    /// From the Guest, and not written yet.
    waiting: VecDeque<u8>,
    /// The number of bytes that were written, and how many of these the Guest knows of.
    forwarded: u32,
    told: u32,
    wants_credit: bool,

    /// The number of bytes that were sent to the Guest.
    sent: u32,
    /// The Guest's buffer, and how many bytes have left it.
    guest_buffer: u32,
    guest_forwarded: u32,
    has_asked_for_credit: bool,
    /// There may be something to read.
    readable: bool,

    /// What the Guest will not do any more, and what our side will not, and what the Guest knows of
    /// that: flags of SHUTDOWN.
    guest_shutdown: u32,
    our_shutdown: u32,
    told_shutdown: u32,
}

impl Connection {
    fn new(socket: UnixStream, phase: Phase) -> Self {
        Self {
            socket,
            phase,
            queued: false,
            waiting: VecDeque::new(),
            forwarded: 0,
            told: 0,
            wants_credit: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            has_asked_for_credit: false,
            readable: true,
            guest_shutdown: 0,
            our_shutdown: 0,
            told_shutdown: 0,
        }
    }

    /// Our side has connected by `socket`.
    pub(super) fn accepted(socket: UnixStream) -> Self {
        Self::new(socket, Phase::Greeting(Vec::new()))
    }

    /// The Guest has connected by `request`, to `socket`.
    pub(super) fn requested(socket: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(socket, Phase::Granting);
        connection.take_credit(request);
        connection
    }

    /// The room that the Guest has for our bytes. It can claim anything: nonsense means none.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
        self.has_asked_for_credit &= self.credit() == 0;
    }

    /// Fills in what every packet to the Guest says of our room.
    pub(super) fn give_credit(&mut self, header: &mut Header) {
        header.buffer = BUFFER;
        header.forwarded = self.forwarded;
        self.told = self.forwarded;
        self.wants_credit = false;
    }

    /// Is this connection over for our side, and the Guest knows it?
    pub(super) fn is_closing(&self) -> bool {
        self.told_shutdown == shutdown::BOTH
    }

    /// The next word.
    pub(super) fn next(&self) -> Option<Word> {
        let has_credit = self.credit() != 0;
        let open = (shutdown::SEND & self.our_shutdown) | (shutdown::RECEIVE & self.guest_shutdown);
        let may_read = self.readable && open == 0;
        match self.phase {
            Phase::Greeting(_) | Phase::Asked | Phase::Lingering => None,
            Phase::Asking => Some(Word::Control(op::REQUEST, 0)),
            Phase::Granting => Some(Word::Control(op::RESPONSE, 0)),
            Phase::Open if self.guest_shutdown == shutdown::BOTH && self.waiting.is_empty() => {
                Some(Word::Reset)
            }
            Phase::Open if self.wants_credit => Some(Word::Control(op::CREDIT_UPDATE, 0)),
            Phase::Open if may_read && has_credit => Some(Word::Data),
            Phase::Open if may_read && !self.has_asked_for_credit => {
                Some(Word::Control(op::CREDIT_REQUEST, 0))
            }
            // The end of our data comes behind all of it.
            Phase::Open if self.our_shutdown & !self.told_shutdown != 0 && !may_read => {
                Some(Word::Control(op::SHUTDOWN, self.our_shutdown))
            }
            Phase::Open => None,
        }
    }

    /// The packet `op` with `flags`, which [`Connection::next`] wanted, goes out.
    pub(super) fn said(&mut self, op: u16, flags: u32) {
        match op {
            op::REQUEST => self.phase = Phase::Asked,
            op::RESPONSE => self.phase = Phase::Open,
            op::CREDIT_REQUEST => self.has_asked_for_credit = true,
            op::SHUTDOWN => self.told_shutdown |= flags,
            _ => {}
        }
    }

    /// Reads into `data` what the Guest has room for, and tells how much; 0 when there is nothing
    /// now. `data` is not empty.
    pub(super) fn read(&mut self, data: &mut [u8]) -> usize {
        let limit = data.len().min(self.credit() as usize);
        match self.socket.read(&mut data[..limit]) {
            Ok(0) => self.our_shutdown |= shutdown::SEND,
            Ok(count) => {
                self.sent = self.sent.wrapping_add(count as u32);
                return count;
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => self.readable = false,
                _ => self.our_shutdown = shutdown::BOTH,
            },
        }
        0
    }

    /// Our side's socket says that there may be something to read, or room to write, or that the
    /// peer is gone (`hung_up`).
    pub(super) fn wake(&mut self, readable: bool, hung_up: bool) -> Result<(), Broken> {
        self.readable |= readable || hung_up;
        if hung_up {
            self.our_shutdown |= shutdown::RECEIVE;
        }
        self.flush()
    }

    /// Reads where our side wants to connect to: `CONNECT PORT\n`. `None` when the line is not
    /// complete yet.
    pub(super) fn greeted(&mut self) -> Result<Option<u32>, Broken> {
        let Phase::Greeting(line) = &mut self.phase else {
            return Ok(None);
        };
        // Byte by byte: what follows the line is for the Guest.
        let mut byte = [0];
        while !line.ends_with(b"\n") {
            match self.socket.read(&mut byte) {
                Ok(1) if line.len() < GREETING_MAX => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(Broken),
            }
        }
        let port = parse_greeting(line).ok_or(Broken)?;
        self.phase = Phase::Asking;
        Ok(Some(port))
    }

    /// Takes a packet of the Guest's for this connection; `host_port` is our side's.
    pub(super) fn take(
        &mut self,
        header: &Header,
        data: &[u8],
        host_port: u32,
    ) -> Result<(), Broken> {
        self.take_credit(header);
        match (header.op, &self.phase) {
            (op::RESPONSE, Phase::Asked) => {
                self.phase = Phase::Open;
                let answer = format!("OK {host_port}\n");
                // A new socket has room for it.
                self.socket
                    .write_all(answer.as_bytes())
                    .map_err(|_| Broken)?;
                Ok(())
            }
            (op::RW, Phase::Open | Phase::Granting) => self.take_data(data),
            (op::CREDIT_UPDATE, Phase::Open | Phase::Granting) => Ok(()),
            (op::CREDIT_REQUEST, Phase::Open | Phase::Granting) => {
                self.wants_credit = true;
                Ok(())
            }
            (op::SHUTDOWN, Phase::Open | Phase::Granting) => {
                self.guest_shutdown |= header.flags & shutdown::BOTH;
                if self.guest_shutdown & shutdown::RECEIVE != 0 {
                    // Whoever writes there shall hear that nobody reads.
                    let _ = self.socket.shutdown(Shutdown::Read);
                }
                self.flush()
            }
            _ => Err(Broken),
        }
    }

    /// The Guest has reset the connection. Does it linger, as there is something to write?
    pub(super) fn linger(&mut self) -> bool {
        let said_good_bye = self.guest_shutdown & shutdown::SEND != 0;
        if said_good_bye && !self.waiting.is_empty() {
            self.phase = Phase::Lingering;
        }
        self.is_lingering()
    }

    pub(super) fn is_lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// Takes data from the Guest, which goes straight to the socket if it can.
    fn take_data(&mut self, data: &[u8]) -> Result<(), Broken> {
        let too_much = self.waiting.len() + data.len() > BUFFER as usize;
        if too_much || self.guest_shutdown & shutdown::SEND != 0 {
            return Err(Broken);
        }
        let written = if self.waiting.is_empty() {
            self.write(data)
        } else {
            0
        };
        self.waiting.extend(&data[written..]);
        Ok(())
    }

    /// Writes what waits, and passes on the end that comes behind it.
    fn flush(&mut self) -> Result<(), Broken> {
        let mut waiting = std::mem::take(&mut self.waiting);
        while !waiting.is_empty() {
            let written = self.write(waiting.as_slices().0);
            if written == 0 {
                break;
            }
            waiting.drain(..written);
        }
        self.waiting = waiting;
        if self.waiting.is_empty() && self.guest_shutdown & shutdown::SEND != 0 {
            let _ = self.socket.shutdown(Shutdown::Write);
            if self.is_lingering() {
                return Err(Broken);
            }
        }
        Ok(())
    }

    /// Writes `data` so far as the socket takes it, and tells how far.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut written = 0;
        while written < data.len() && self.our_shutdown & shutdown::RECEIVE == 0 {
            match self.socket.write(&data[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.our_shutdown |= shutdown::RECEIVE,
            }
        }
        if self.our_shutdown & shutdown::RECEIVE != 0 {
            // Nobody will read it; the Guest hears that soon.
            written = data.len();
        }
        self.forwarded = self.forwarded.wrapping_add(written as u32);
        self.wants_credit |= self.forwarded.wrapping_sub(self.told) >= WORTH_TELLING;
        written
    }
}

fn parse_greeting(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (word, port) = line.split_once(' ')?;
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !word.eq_ignore_ascii_case("connect") || !digits {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings() {
        assert_eq!(parse_greeting(b"CONNECT 1024\n"), Some(1024));
        assert_eq!(parse_greeting(b"connect 0\n"), Some(0));
        for bad in [
            &b"CONNECT 1024"[..],
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT 1 2\n",
            b"CONNECT 4294967296\n",
            b"GET / HTTP/1.1\n",
            b"\xff\n",
        ] {
            assert_eq!(parse_greeting(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn credit_that_makes_no_sense_is_none() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut connection = Connection::accepted(socket);
        let credit = |connection: &mut Connection, sent, buffer, forwarded| {
            connection.sent = sent;
            connection.take_credit(&Header {
                buffer,
                forwarded,
                ..Default::default()
            });
            connection.credit()
        };
        assert_eq!(credit(&mut connection, 100, 1000, 40), 940);
        assert_eq!(credit(&mut connection, 10, 1000, u32::MAX - 9), 980);
        assert_eq!(credit(&mut connection, 100, 50, 0), 0);
        assert_eq!(credit(&mut connection, 100, 1000, 101), 0);
    }

    #[test]
    fn what_waits_has_a_bound() {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut connection = Connection::requested(socket, &Header::default());
        let data = vec![1; BUFFER as usize / 2];
        // Nobody reads: the socket's own buffer fills up first.
        while connection.waiting.len() < data.len() {
            connection.take_data(&data).unwrap();
        }
        let forwarded = connection.forwarded as usize;
        let sent = forwarded + connection.waiting.len();
        assert!(connection.take_data(&vec![1; BUFFER as usize]).is_err());
        // What waits arrives in the end, and the Guest hears of the room.
        let mut count = 0;
        let mut buffer = vec![0; 1 << 20];
        while count < sent {
            count += peer.read(&mut buffer).unwrap();
            connection.wake(false, false).unwrap();
        }
        assert_eq!(count, sent);
        assert_eq!(connection.forwarded as usize, sent);
        assert!(connection.wants_credit);
    }
}
