// SPDX-License-Identifier: GPL-2.0
//! Sockets to the Host. At the other end is `selftests/runner/src/vsock.rs`.

use std::fs::File;
use std::io::{Error, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::thread;

use crate::sys::check;
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a port where nobody listens", refused),
    ("megabytes, and the end of them", sends),
    ("connections from the Host", serves),
];

const HOST: u32 = 2;
const LENGTH: usize = 3 << 20;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all bits of the struct may be 0.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    address
}

fn socket() -> File {
    // SAFETY: a new descriptor, which is ours alone.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
        File::from_raw_fd(check("socket", fd) as i32)
    }
}

fn connect(port: u32) -> Result<File, Error> {
    let (socket, address) = (socket(), address(HOST, port));
    let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: reads an address of that size.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) } {
        0 => Ok(socket),
        _ => Err(Error::last_os_error()),
    }
}

fn refused() {
    let error = connect(2001).expect_err("nobody listens");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}");
}

fn sends() {
    let mut socket = connect(2000).expect("the test listens");
    let bytes: Vec<u8> = (0..LENGTH).map(|n| (n ^ (n >> 8)) as u8).collect();
    socket.write_all(&bytes).expect("write");
    // SAFETY: no memory is involved.
    check("shutdown", unsafe {
        libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR)
    });
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("read");
    let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
    assert_eq!(answer, format!("{LENGTH} {sum}").into_bytes());
}

/// Sends everything back, until somebody says "quit". Connections are open then.
fn serves() {
    let (listener, address) = (socket(), address(libc::VMADDR_CID_ANY, 1000));
    let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    let fd = listener.as_raw_fd();
    // SAFETY: reads an address of that size.
    check("bind", unsafe {
        libc::bind(fd, (&raw const address).cast(), size)
    });
    // SAFETY: no memory is involved.
    check("listen", unsafe { libc::listen(fd, 128) });
    println!("listening");
    let (quit, quits) = std::sync::mpsc::channel();
    thread::spawn(move || loop {
        let none = std::ptr::null_mut();
        // SAFETY: no address is asked for; the new descriptor is ours alone.
        let mut socket = unsafe {
            let fd = libc::accept(listener.as_raw_fd(), none, none.cast());
            File::from_raw_fd(check("accept", fd) as i32)
        };
        let quit = quit.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match socket.read(&mut buffer).expect("read") {
                    0 => return,
                    4 if buffer.starts_with(b"quit") => quit.send(()).expect("main waits"),
                    count => socket.write_all(&buffer[..count]).expect("write"),
                }
            }
        });
    });
    quits.recv().expect("a thread sends");
}
