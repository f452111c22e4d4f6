// SPDX-License-Identifier: GPL-2.0
//! Frames over a stream socket, each behind its length in four bytes, the highest first: how QEMU
//! and passt speak.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::peer::{Header, Peer, Readiness, FRAME_MAX, HEADER_SIZE, PLAIN};

/// Size of a length.
const LENGTH_SIZE: usize = 4;
/// The buffer for reading ahead: it holds some of the longest frames, so that few are moved to make
/// room.
const AHEAD: usize = 4 * (LENGTH_SIZE + FRAME_MAX);
/// The MTU that passt tells of: a frame has 64 KiB at most, rounded down to words of IPv4.
const MTU: u16 = 65520;
/// passt hangs up when a frame is longer. An honest driver sends none, as they exceed the MTU.
const PASST_MAX: usize = 65535;

/// A peer at the end of a stream.
pub struct Stream {
    socket: UnixStream,
    readiness: Readiness,
    /// Bytes of the packet at hand that are sent already.
    sent: usize,
    /// The bytes that were read: the part from `start` to `end` is still to be used.
    ahead: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stream {
    /// Frames over `socket`.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            readiness: Readiness::new(socket.as_raw_fd())?,
            socket,
            sent: 0,
            ahead: vec![0; AHEAD].into(),
            start: 0,
            end: 0,
        })
    }

    /// The length of the next frame, if so much was read. One that cannot be means that we and the
    /// peer do not agree any more where a frame begins.
    fn next_length(&self) -> io::Result<Option<usize>> {
        let Some(length) = self.ahead[self.start..self.end].first_chunk() else {
            return Ok(None);
        };
        match u32::from_be_bytes(*length) as usize {
            length @ 1..=FRAME_MAX => Ok(Some(length)),
            length => Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("it announced a frame of {length} bytes"),
            )),
        }
    }

    /// Reads what is there, and tells whether there was anything.
    fn read_ahead(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.ahead.len() - self.start < LENGTH_SIZE + FRAME_MAX {
            self.ahead.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            match self.socket.read(&mut self.ahead[self.end..]) {
                Ok(0) => return Err(ended()),
                Ok(count) => {
                    self.end += count;
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                // It left frames of ours unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(ended()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "passt has ended")
}

impl Peer for Stream {
    fn mtu(&self) -> u16 {
        MTU
    }

    fn readiness(&self) -> RawFd {
        self.readiness.epoll.as_raw_fd()
    }

    fn send(&mut self, packet: &mut [u8]) -> io::Result<bool> {
        let length = packet.len() - HEADER_SIZE;
        if length > PASST_MAX {
            return Ok(true);
        }
        // The end of a header that nobody reads makes room for the length, so that one call writes
        // both.
        let message = &mut packet[HEADER_SIZE - LENGTH_SIZE..];
        message[..LENGTH_SIZE].copy_from_slice(&(length as u32).to_be_bytes());
        let Self {
            socket,
            readiness,
            sent,
            ..
        } = self;
        readiness.write(|| {
            *sent += socket
                .write(&message[*sent..])
                .map_err(|error| match error.kind() {
                    ErrorKind::BrokenPipe => ended(),
                    _ => error,
                })?;
            let through = *sent == message.len();
            if through {
                *sent = 0;
            }
            Ok(through)
        })
    }

    fn receive(&mut self) -> io::Result<Option<(Header, &[u8])>> {
        loop {
            if let Some(length) = self.next_length()? {
                let frame = self.start + LENGTH_SIZE;
                if frame + length <= self.end {
                    return Ok(Some((PLAIN, &self.ahead[frame..frame + length])));
                }
            }
            if !self.read_ahead()? {
                return Ok(None);
            }
        }
    }

    fn received(&mut self) {
        if let Ok(Some(length)) = self.next_length() {
            self.start = self.end.min(self.start + LENGTH_SIZE + length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use proptest::prelude::*;
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;
    use crate::devices::net::peer::FRAME_MIN;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours).unwrap(), theirs)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    fn packet(frame: &[u8]) -> Vec<u8> {
        [&[0xee; HEADER_SIZE], frame].concat()
    }

    fn next(stream: &mut Stream) -> Option<Vec<u8>> {
        let frame = stream.receive().unwrap().map(|(_, frame)| frame.to_vec());
        if frame.is_some() {
            stream.received();
        }
        frame
    }

    /// As a device's thread watches a stream.
    struct Watch(Epoll);

    impl Watch {
        fn new(stream: &Stream) -> Self {
            let epoll = Epoll::new().unwrap();
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            epoll
                .ctl(ControlOperation::Add, stream.readiness(), event)
                .unwrap();
            Self(epoll)
        }

        fn is_told(&self) -> bool {
            self.0.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
        }
    }

    #[test]
    fn a_frame_that_comes_byte_by_byte() {
        let (mut stream, mut theirs) = pair();
        let frame = [7; 60];
        for byte in framed(&frame) {
            assert_eq!(stream.receive().unwrap(), None);
            theirs.write_all(&[byte]).unwrap();
        }
        // It stays until it is done with.
        assert_eq!(stream.receive().unwrap(), Some((PLAIN, &frame[..])));
        assert_eq!(next(&mut stream), Some(frame.to_vec()));
        assert_eq!(next(&mut stream), None);
    }

    #[test]
    fn lengths_that_cannot_be() {
        for length in [0, FRAME_MAX as u32 + 1, u32::MAX] {
            let (mut stream, mut theirs) = pair();
            theirs.write_all(&length.to_be_bytes()).unwrap();
            let error = stream.receive().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
    }

    #[test]
    fn the_end_is_an_error() {
        let (mut stream, mut theirs) = pair();
        theirs.write_all(&framed(&[1; 20])[..10]).unwrap();
        assert_eq!(stream.receive().unwrap(), None);
        // Not by being dropped: a child that another test is just starting has it too.
        theirs.shutdown(Shutdown::Both).unwrap();
        let error = stream.receive().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(stream.send(&mut packet(&[1; 20])).is_err());
    }

    #[test]
    fn what_passt_would_hang_up_at_is_not_sent() {
        let (mut stream, mut theirs) = pair();
        assert!(stream.send(&mut packet(&[1; PASST_MAX + 1])).unwrap());
        theirs.set_nonblocking(true).unwrap();
        let error = theirs.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn each_arrival_is_told() {
        let (mut stream, mut theirs) = pair();
        let watch = Watch::new(&stream);
        assert!(!watch.is_told());
        for _ in 0..3 {
            theirs.write_all(&framed(&[1; 20])).unwrap();
            assert!(watch.is_told());
            assert!(!watch.is_told());
            // Even if nobody reads for want of buffers.
            theirs.write_all(&framed(&[2; 20])).unwrap();
            assert!(watch.is_told());
            while next(&mut stream).is_some() {}
        }
    }

    /// A full socket takes a part of a packet. The rest follows when there is room, and that there
    /// is, is told.
    #[test]
    fn a_full_socket_loses_nothing() {
        let (mut stream, mut theirs) = pair();
        let watch = Watch::new(&stream);
        theirs.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        let mut sent = Vec::new();
        for round in 0..3 {
            let full = (0..100).find_map(|n| {
                let frame = vec![10 * round + n % 10; 50_000];
                sent.extend(framed(&frame));
                let mut packet = packet(&frame);
                (!stream.send(&mut packet).unwrap()).then_some(packet)
            });
            let mut waits = full.expect("a socket holds less than 5 MB");
            assert!(!stream.send(&mut waits).unwrap());
            assert!(!watch.is_told());
            let _ = theirs.read_to_end(&mut got);
            assert!(watch.is_told());
            assert!(stream.send(&mut waits).unwrap());
            let _ = theirs.read_to_end(&mut got);
            assert!(got == sent);
            // Nobody waits for room any more.
            assert!(!watch.is_told());
        }
    }

    proptest! {
        /// Whatever the pieces, the same frames come out.
        #[test]
        fn pieces(
            lengths in prop::collection::vec(prop_oneof![1..200usize, FRAME_MIN..=FRAME_MAX], 1..12),
            pieces in prop::collection::vec(1..100_000usize, 1..20),
        ) {
            let (mut stream, mut theirs) = pair();
            let frames: Vec<_> = lengths.iter().zip(0u8..).map(|(&n, x)| vec![x; n]).collect();
            let bytes: Vec<_> = frames.iter().flat_map(|frame| framed(frame)).collect();
            let mut pieces = pieces.into_iter().cycle();
            let mut left = &bytes[..];
            let mut got = Vec::new();
            while !left.is_empty() {
                // So much fits into a socket for sure.
                let size = pieces.next().unwrap().min(left.len());
                let (now, later) = left.split_at(size);
                theirs.write_all(now).unwrap();
                left = later;
                while let Some(frame) = next(&mut stream) {
                    got.push(frame);
                }
            }
            prop_assert!(got == frames);
        }
    }
}
