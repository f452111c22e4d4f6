// SPDX-License-Identifier: GPL-2.0
//! Streams of bytes, by TCP or AF_VSOCK, to a server on the Host.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use crate::clock::{count, measure_all};
use crate::Workload;

const ROUND_TRIPS: u64 = 1000;
/// The number of bytes that go each way, in pieces of this size.
const MEGABYTES: u64 = 32;
const MEGABYTE: usize = 1 << 20;
/// The first byte of a connection: what the server does.
const ECHO: u8 = b'e';
const SINK: u8 = b'<';
const SOURCE: u8 = b'>';
/// The address of the server, seen from the Guest's AF_VSOCK.
const PORT: u32 = 1000;

pub(crate) trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A connection to `address`.
pub(crate) fn tcp(address: &str) -> Box<dyn Stream> {
    let stream = TcpStream::connect(address).expect("a server");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    Box::new(stream)
}

/// A connection to port [`PORT`] of the Host's.
pub(crate) fn vsock() -> Box<dyn Stream> {
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as u16,
        svm_reserved1: 0,
        svm_port: PORT,
        svm_cid: libc::VMADDR_CID_HOST,
        svm_zero: [0; 4],
    };
    // SAFETY: Makes a descriptor, which is nobody else's.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
        assert_ne!(socket, -1, "socket: {}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(socket)
    };
    // SAFETY: The address is of the size that is named.
    let status = unsafe {
        let size = size_of_val(&address) as libc::socklen_t;
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size)
    };
    assert_eq!(status, 0, "connect: {}", io::Error::last_os_error());
    // Reads and writes as a file does.
    Box::new(fs::File::from(socket))
}

/// Passes bytes to and fro by connections that `connect` makes. The server has one at a time.
pub(crate) fn workloads(connect: &dyn Fn() -> Box<dyn Stream>) -> [Workload; 3] {
    [
        round_trips(connect()),
        to_host(connect()),
        from_host(connect()),
    ]
}

fn round_trips(mut stream: Box<dyn Stream>) -> Workload {
    send(&mut stream, &[ECHO]);
    let ticks = measure_all(ROUND_TRIPS, || {
        send(&mut stream, b"x");
        receive(&mut stream, &mut [0]);
    });
    Workload {
        name: "round-trip",
        size: 1,
        requests: ROUND_TRIPS,
        ticks,
    }
}

fn to_host(mut stream: Box<dyn Stream>) -> Workload {
    let buffer = vec![0x5a; MEGABYTE];
    send(&mut stream, &[SINK]);
    let ticks = count(|| {
        (0..MEGABYTES).for_each(|_| send(&mut stream, &buffer));
        // The server answers when it has all.
        receive(&mut stream, &mut [0]);
    });
    Workload {
        name: "to-host",
        size: MEGABYTE,
        requests: MEGABYTES,
        ticks,
    }
}

fn from_host(mut stream: Box<dyn Stream>) -> Workload {
    let mut buffer = vec![0x5a; MEGABYTE];
    let ticks = count(|| {
        send(&mut stream, &[SOURCE]);
        (0..MEGABYTES).for_each(|_| receive(&mut stream, &mut buffer));
    });
    Workload {
        name: "from-host",
        size: MEGABYTE,
        requests: MEGABYTES,
        ticks,
    }
}

/// The server: for TCP connections to `address`, and those to `socket` as well. Does not return.
pub(crate) fn serve(address: &str, socket: &Path) {
    let tcp = TcpListener::bind(address).expect("an address to listen on");
    let unix = UnixListener::bind(socket).expect("a socket to listen on");
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let stream = stream.expect("a connection");
            stream.set_nodelay(true).expect("TCP_NODELAY");
            answer(&stream);
        }
    });
    for stream in unix.incoming() {
        answer(&stream.expect("a connection"));
    }
}

/// Serves one connection until its end.
fn answer<'a, S>(stream: &'a S)
where
    &'a S: Read + Write,
{
    let mut stream = stream;
    let mut buffer = vec![0; MEGABYTE];
    receive(&mut stream, &mut buffer[..1]);
    match buffer[0] {
        ECHO => {
            while stream.read_exact(&mut buffer[..1]).is_ok()
                && stream.write_all(&buffer[..1]).is_ok()
            {}
        }
        SINK => {
            (0..MEGABYTES).for_each(|_| receive(&mut stream, &mut buffer));
            send(&mut stream, b"x");
        }
        _ => (0..MEGABYTES).for_each(|_| send(&mut stream, &buffer)),
    }
}

fn send(stream: &mut impl Write, bytes: &[u8]) {
    stream.write_all(bytes).expect("write");
}

fn receive(stream: &mut impl Read, bytes: &mut [u8]) {
    stream.read_exact(bytes).expect("read");
}
