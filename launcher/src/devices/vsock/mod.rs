// SPDX-License-Identifier: GPL-2.0
//! Sockets to the Host: a socket device (section 5.10 of the specification), for streams.
//!
//! A packet is a header and data. What packets mean is for [`Hub`]; here they are taken from and put
//! into buffers. The event queue is for a Guest that moves to another Host, so nothing is ever in it.

mod connection;
pub mod hub;
pub mod packet;
mod path;

use std::io::{self, Read, Write};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{until_quiet, Device, Fault, Kicked, Served, Source};
use crate::devices::vsock::hub::{Hub, DATA_MAX};
use crate::devices::vsock::packet::{Header, HEADER};
use crate::memory::dma::Dma;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Packets to the driver in one visit: the other queues have their turn then.
const AT_ONCE: usize = 256;

/// The device.
pub struct Vsock {
    hub: Hub,
    /// The data of one packet.
    data: Box<[u8]>,
    /// The driver's packets wait until there is room for answers.
    stalled: bool,
    /// There was more than [`AT_ONCE`].
    exhausted: bool,
}

impl Vsock {
    /// A device whose other end is `hub`.
    pub fn new(hub: Hub) -> Self {
        Self {
            hub,
            data: vec![0; DATA_MAX].into(),
            stalled: false,
            exhausted: false,
        }
    }

    /// Puts packets into buffers, as long as there are both.
    fn receive(&mut self, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut served = Served::default();
        self.exhausted = false;
        for _ in 0..AT_ONCE {
            if !self.hub.has_news() && !self.hub.poll().map_err(Fault::Host)? {
                return Ok(served);
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                return Ok(served);
            };
            let head = chain.head_index();
            let mut writer = chain.writer(memory)?;
            let room = writer.available_bytes().saturating_sub(HEADER);
            if room == 0 {
                return Err(Fault::Buffer(io::ErrorKind::WriteZero.into()));
            }
            let data = &mut self.data[..room.min(DATA_MAX)];
            let Some(header) = self.hub.packet(data) else {
                // It is for the next packet.
                queue.go_to_previous_position();
                continue;
            };
            let data = &data[..header.length as usize];
            writer
                .write_all(&header.to_bytes())
                .and_then(|()| writer.write_all(data))
                .map_err(Fault::Buffer)?;
            queue.add_used(memory, head, (HEADER + data.len()) as u32)?;
            served.used = true;
            if self.stalled && self.hub.has_room() {
                served.then = 1 << TRANSMIT;
            }
        }
        self.exhausted = true;
        self.hub.come_again();
        Ok(served)
    }

    /// Takes packets, as long as there is room for what they are answered with.
    fn transmit(&mut self, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        let mut served = Served::default();
        self.stalled = false;
        loop {
            if !self.hub.has_room() {
                self.stalled = true;
                break;
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let mut reader = chain.reader(memory)?;
            let mut header = [0; HEADER];
            reader.read_exact(&mut header).map_err(Fault::Buffer)?;
            let header = Header::from_bytes(&header);
            let length = header.length as usize;
            let data = self.data.get_mut(..length);
            let data = data.ok_or(Fault::LongPacket(header.length))?;
            reader.read_exact(data).map_err(Fault::Buffer)?;
            self.hub.take(&header, data);
            queue.add_used(memory, head, 0)?;
            served.used = true;
        }
        if self.hub.has_news() {
            served.then = 1 << RECEIVE;
        }
        Ok(served)
    }
}

impl Device for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    /// Without any, a device is for streams.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128, 128, 8]
    }

    fn kicked(&self, _: usize) -> Kicked {
        Kicked::Thread
    }

    /// `struct virtio_vsock_config` is the driver's CID.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::copy_config(&self.hub.guest_cid().to_le_bytes(), offset, data);
    }

    fn start(&mut self, _: u64) {}

    fn reset(&mut self) {
        self.hub.reset();
        self.stalled = false;
    }

    fn source(&self) -> Option<Source> {
        Some(Source {
            fd: self.hub.fd(),
            queue: RECEIVE,
        })
    }

    fn serve(&mut self, index: usize, queue: &mut Queue, memory: &Dma) -> Result<Served, Fault> {
        until_quiet(queue, memory, |queue| match index {
            RECEIVE => {
                let served = self.receive(queue, memory)?;
                Ok((served, !self.exhausted && self.hub.has_news()))
            }
            TRANSMIT => Ok((self.transmit(queue, memory)?, !self.stalled)),
            _ => Ok((Served::default(), false)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::testing::driver::{Driver, SIZE};
    use crate::devices::vsock::hub::Spec;
    use crate::devices::vsock::packet::{op, shutdown};
    use crate::devices::Window;
    use crate::socket_file::SocketFile;

    const CID: u64 = 3;
    const PORT: u32 = 1234;
    const BUFFER: u32 = 64 << 10;

    struct Bench {
        driver: Driver,
        path: PathBuf,
        seen: usize,
        _file: SocketFile,
        _directory: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("sock");
            let spec = Spec {
                path: path.clone(),
                cid: CID as u32,
            };
            let (hub, file) = Hub::listen(&spec).unwrap();
            Self {
                driver: Driver::new(Vsock::new(hub), 0),
                path,
                seen: 0,
                _file: file,
                _directory: directory,
            }
        }

        /// Listens for what the Guest connects to.
        fn listen(&self, port: u32) -> UnixListener {
            UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
        }

        fn header(op: u16) -> Header {
            Header {
                source_cid: CID,
                destination_cid: 2,
                source_port: PORT,
                destination_port: 80,
                socket_type: 1,
                op,
                buffer: BUFFER,
                ..Default::default()
            }
        }

        fn send(&mut self, header: Header, data: &[u8]) {
            let header = Header {
                length: data.len() as u32,
                ..header
            };
            let packet = [&header.to_bytes()[..], data].concat();
            self.driver.send(TRANSMIT, &packet);
        }

        /// What the device sends now, with buffers for five packets.
        fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
            for _ in 0..5 {
                self.driver.give(RECEIVE);
            }
            self.driver.device.process(RECEIVE);
            let all = self.driver.filled(RECEIVE);
            let new = all[self.seen..].iter().map(|packet| {
                let (header, data) = packet.split_first_chunk().unwrap();
                (Header::from_bytes(header), data.to_vec())
            });
            let new: Vec<_> = new.collect();
            self.seen = all.len();
            new
        }

        fn operations(&mut self) -> Vec<u16> {
            self.receive().iter().map(|(header, _)| header.op).collect()
        }

        /// A connection of the Guest's to port 80.
        fn connected(&mut self) -> UnixStream {
            let listener = self.listen(80);
            self.send(Self::header(op::REQUEST), b"");
            assert_eq!(self.operations(), [op::RESPONSE]);
            listener.accept().unwrap().0
        }
    }

    #[test]
    fn configuration() {
        let bench = Bench::new();
        let mut cid = [0xff; 8];
        bench.driver.mmio.load(0x100, &mut cid);
        assert_eq!(u64::from_le_bytes(cid), CID);
    }

    #[test]
    fn the_guest_connects_and_both_ends_close_in_turn() {
        let mut bench = Bench::new();
        let mut socket = bench.connected();
        bench.send(Bench::header(op::RW), b"question");
        let mut question = [0; 8];
        socket.read_exact(&mut question).unwrap();
        assert_eq!(&question, b"question");
        let done = Header {
            flags: shutdown::SEND,
            ..Bench::header(op::SHUTDOWN)
        };
        bench.send(done, b"");
        assert_eq!(socket.read(&mut question).unwrap(), 0);

        socket.write_all(b"answer").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let [(data, answer), (end, _)] = &bench.receive()[..] else {
            panic!("data and its end");
        };
        assert_eq!(
            (data.op, &answer[..], data.forwarded),
            (op::RW, &b"answer"[..], 8)
        );
        assert_eq!(end.op, op::SHUTDOWN);
        assert_ne!(end.flags & shutdown::SEND, 0);
        let done = Header {
            flags: shutdown::BOTH,
            ..done
        };
        bench.send(done, b"");
        assert_eq!(bench.operations(), [op::RST]);
    }

    #[test]
    fn our_side_connects() {
        let mut bench = Bench::new();
        let mut socket = UnixStream::connect(&bench.path).unwrap();
        socket.write_all(b"CONNECT 22\nearly").unwrap();
        let [(request, _)] = bench.receive()[..] else {
            panic!("a request");
        };
        assert_eq!((request.op, request.destination_port), (op::REQUEST, 22));
        let answer = Header {
            source_port: 22,
            destination_port: request.source_port,
            ..Bench::header(op::RESPONSE)
        };
        bench.send(answer, b"");
        let expected = format!("OK {}\n", request.source_port);
        let mut line = vec![0; expected.len()];
        socket.read_exact(&mut line).unwrap();
        assert_eq!(line, expected.as_bytes());
        let [(_, early)] = &bench.receive()[..] else {
            panic!("what was said early");
        };
        assert_eq!(early, b"early");
    }

    #[test]
    fn nobody_listens() {
        let mut bench = Bench::new();
        bench.send(Bench::header(op::REQUEST), b"");
        assert_eq!(bench.operations(), [op::RST]);
        bench.send(Bench::header(op::RST), b"");
        assert!(bench.operations().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_reset_or_ignored() {
        for (header, answer) in [
            (
                Header {
                    source_cid: 4,
                    ..Bench::header(op::REQUEST)
                },
                None,
            ),
            (
                Header {
                    destination_cid: 7,
                    ..Bench::header(op::REQUEST)
                },
                Some(op::RST),
            ),
            (
                Header {
                    socket_type: 2,
                    ..Bench::header(op::REQUEST)
                },
                Some(op::RST),
            ),
            (Bench::header(op::RW), Some(op::RST)),
            (Bench::header(99), Some(op::RST)),
            (
                Header {
                    source_port: u32::MAX,
                    ..Bench::header(op::REQUEST)
                },
                Some(op::RST),
            ),
        ] {
            let mut bench = Bench::new();
            let _listener = bench.listen(80);
            bench.send(header, b"");
            assert_eq!(bench.operations().first().copied(), answer, "{header:?}");
        }
    }

    #[test]
    fn a_second_request_for_a_connection_ends_it() {
        let mut bench = Bench::new();
        let mut socket = bench.connected();
        bench.send(Bench::header(op::REQUEST), b"");
        assert_eq!(bench.operations(), [op::RST]);
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn without_credit_our_side_waits() {
        let mut bench = Bench::new();
        let mut socket = bench.connected();
        let little = |buffer, forwarded| Header {
            buffer,
            forwarded,
            ..Bench::header(op::CREDIT_UPDATE)
        };
        bench.send(little(3, 0), b"");
        socket.write_all(b"hello").unwrap();
        let packets = bench.receive();
        assert_eq!(packets[0].1, b"hel");
        assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
        assert_eq!(packets.len(), 2);
        bench.send(little(3, 3), b"");
        assert_eq!(bench.receive()[0].1, b"lo");
    }

    #[test]
    fn a_reset_of_the_device_closes_connections() {
        let mut bench = Bench::new();
        let mut socket = bench.connected();
        bench.driver.bring_up();
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_flood_waits_for_buffers() {
        let mut bench = Bench::new();
        for _ in 0..60 {
            bench.send(Bench::header(op::RW), b"");
        }
        assert!(!bench.driver.needs_reset());
        assert_eq!(bench.operations(), [op::RST; 5]);
    }

    #[test]
    fn a_packet_that_is_too_long_stops_the_device() {
        let mut bench = Bench::new();
        let header = Header {
            length: BUFFER + 1,
            ..Bench::header(op::RW)
        };
        bench.driver.send(TRANSMIT, &header.to_bytes());
        assert!(bench.driver.needs_reset());
    }

    proptest! {
        /// Random descriptors on every queue: no panic, and an end.
        #[test]
        fn hostile_rings(
            queue in 0usize..3,
            descriptors in prop::collection::vec(
                (any::<u64>(), 0u32..0x3000, 0u16..8, 0u16..80), 1..64,
            ),
            small in any::<bool>(),
            heads in prop::collection::vec(0u16..80, 1..64),
            available in prop_oneof![0..SIZE, any::<u16>()],
        ) {
            let mut bench = Bench::new();
            bench.send(Bench::header(op::RW), b"");
            let driver = &mut bench.driver;
            for (slot, &(gpa, length, flags, next)) in descriptors.iter().enumerate() {
                let gpa = if small { gpa % (1 << 21) } else { gpa };
                driver.descriptor(queue, slot as u16, gpa, length, flags, next);
            }
            for &head in &heads {
                driver.offer(queue, head);
            }
            let at = driver.rings[queue].available() + 2;
            driver.memory.write_obj(available, GuestAddress(at)).unwrap();
            driver.device.process(queue);
        }

        /// Packets that are nearly right, in any order: no panic, and never more than its bound.
        #[test]
        fn hostile_packets(
            packets in prop::collection::vec(
                (1u16..9, 0u32..4, any::<u32>(), any::<u32>(), 0u32..3, 0usize..200), 1..60,
            ),
        ) {
            let mut bench = Bench::new();
            let listener = bench.listen(80);
            listener.set_nonblocking(true).unwrap();
            let mut sockets = Vec::new();
            for (op, flags, buffer, forwarded, port, length) in packets {
                let header = Header {
                    flags,
                    buffer,
                    forwarded,
                    source_port: PORT + port,
                    ..Bench::header(op)
                };
                bench.send(header, &vec![7; length]);
                if let Ok((mut socket, _)) = listener.accept() {
                    socket.set_nonblocking(true).unwrap();
                    let _ = socket.write(&[1; 100]);
                    sockets.push(socket);
                }
                bench.driver.give(RECEIVE);
                bench.driver.device.process(RECEIVE);
            }
            prop_assert!(!bench.driver.needs_reset());
        }
    }
}
