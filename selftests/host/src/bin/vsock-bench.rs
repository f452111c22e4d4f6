// SPDX-License-Identifier: GPL-2.0
//! vsock-bench INITRD - what bytes through `--vsock` cost: round trips of one byte, and a stream.
//!
//! In the guest, `linux-tests vsock-server` sends everything back. Where the time stamp counter
//! counts instructions (QEMU's -icount), the numbers are instructions of Host and guest together.

use std::arch::x86_64::_rdtsc;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const PATH: &str = "/tmp/vsock-bench";
const ROUNDS: u64 = 1000;
const LENGTH: usize = 8 << 20;

/// Connects to the guest's server; `None` when it does not listen yet.
fn connect() -> io::Result<Option<UnixStream>> {
    let mut socket = UnixStream::connect(PATH)?;
    socket.write_all(b"CONNECT 1000\n")?;
    let mut byte = [0];
    while byte != *b"\n" {
        if socket.read(&mut byte)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(socket))
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { _rdtsc() }
}

fn main() -> io::Result<()> {
    let initrd = std::env::args().nth(1).expect("usage: vsock-bench INITRD");
    let mut guest = Command::new("lg")
        .args(["run", "--initrd", &initrd, "--vsock", PATH, "--"])
        .args(["/selftests/linux-tests", "vsock-server"])
        .spawn()?;
    let mut socket = loop {
        thread::sleep(Duration::from_millis(100));
        if let Ok(Some(socket)) = connect() {
            break socket;
        }
    };

    let begin = ticks();
    for _ in 0..ROUNDS {
        socket.write_all(b"x")?;
        socket.read_exact(&mut [0])?;
    }
    println!("round trip of 1 byte: {} ticks", (ticks() - begin) / ROUNDS);

    let mut sender = socket.try_clone()?;
    let (begin, start) = (ticks(), Instant::now());
    let sender = thread::spawn(move || {
        sender.write_all(&vec![b'x'; LENGTH])?;
        sender.shutdown(Shutdown::Write)
    });
    let mut back = Vec::new();
    socket.read_to_end(&mut back)?;
    sender.join().expect("it does not panic")?;
    assert_eq!(back.len(), LENGTH);
    let (ticks, seconds) = (ticks() - begin, start.elapsed().as_secs_f64());
    println!(
        "{} MiB there and back: {:.1} ticks a byte, {:.1} MiB/s",
        LENGTH >> 20,
        ticks as f64 / LENGTH as f64,
        (LENGTH >> 20) as f64 / seconds
    );

    while let Ok(None) = connect() {}
    if let Ok(Some(mut socket)) = connect() {
        socket.write_all(b"quit")?;
    }
    guest.wait()?;
    Ok(())
}
