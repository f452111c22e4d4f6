// SPDX-License-Identifier: GPL-2.0
//! The targets of the fuzzers: everything that takes bytes from a Guest or from a file.
//!
//! A target is a function of any bytes. It must not panic, and must come to an end. The programs of
//! `selftests/fuzz/fuzz_targets` feed it with what libFuzzer thinks of; a test here feeds it with what is in
//! `selftests/fuzz/corpus`, so that whatever was found once stays fixed.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use lguest_abi::lguest_regs;
use nix::sys::signal::{SigSet, Signal};
use vmm_sys_util::tempdir::TempDir;
use xen_abi::handover::SHIM;

use crate::boot::{xen, Layout};
use crate::death::{backtrace, Death, Orc};
use crate::devices::balloon::Balloon;
use crate::devices::blk::disk::ring::Ring;
use crate::devices::blk::disk::{self, Access, Disk, SECTOR};
use crate::devices::blk::Blk;
use crate::devices::bytes::Input;
use crate::devices::console::ports::{Ports, Stream, To};
use crate::devices::console::Console;
use crate::devices::fs::cow::CowServer;
use crate::devices::fs::host;
use crate::devices::fs::newer::Files;
use crate::devices::fs::server::{FileServer, Limits};
use crate::devices::fs::Fs;
use crate::devices::net::cable::Cable;
use crate::devices::net::peer::Mac;
use crate::devices::net::stream;
use crate::devices::net::Net;
use crate::devices::rng::Rng;
use crate::devices::testing::fuzz::{drive, Choices};
use crate::devices::vsock::hub::{Hub, Spec};
use crate::devices::vsock::Vsock;
use crate::image::xen::Notes;
use crate::image::{Abi, Image, Look};
use crate::machine::insn::{self, Target};
use crate::memory::create_parts;
use crate::trace::file::Trace;
use crate::trace::summary::Summary;
use crate::trace::symbols::Symbols;
use crate::trace::{perfetto, text};
use crate::xen::testing::fuzz as kernel;

/// The name of a target's program and corpus, and what takes the bytes.
type Row = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Row] = &[
    ("balloon", balloon),
    ("blk", blk),
    ("console", console),
    ("cow", private_root),
    ("death", death),
    ("fs", shares),
    ("image", image),
    ("insn", insn),
    ("net", net),
    ("ports", ports),
    ("rng", rng),
    ("trace", trace),
    ("vsock", vsock),
    ("xen", xen),
    ("xenblk", xenblk),
    ("xennet", xennet),
    ("xenstore", xenstore),
];

/// A driver of a disk of 64 sectors: with a ring, without one, or an overlay.
pub fn blk(bytes: &[u8]) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.as_path().join("disk");
    fs::write(&path, [b'x'; 64 * SECTOR as usize]).expect("a file");
    let kind = bytes.first().copied().unwrap_or_default() % 3;
    let access = if kind == 0 {
        Access::Overlay
    } else {
        Access::Write
    };
    let disk = Disk::open(&disk::Spec { path, access }).expect("it is one");
    let with_ring = disk.file().filter(|_| kind == 1);
    let ring = with_ring.and_then(|file| Ring::new(file, Blk::DEPTH).ok());
    drive(Blk::new(disk, ring), bytes, |_| {});
}

/// A trace, which whoever sends it to us may have made, and the kernel beside it.
pub fn trace(bytes: &[u8]) {
    let Ok(trace) = Trace::parse(bytes) else {
        return;
    };
    let symbols = Symbols::parse(bytes);
    let summary = Summary::of(&trace);
    let _ = (summary.to_string(), serde_json::to_string(&summary));
    for event in &trace.events {
        text::line(&trace, event, &symbols);
    }
    let mut out = Vec::new();
    perfetto::write(&trace, &symbols, &mut out).expect("there is room");
    serde_json::from_slice::<serde_json::Value>(&out).expect("it is JSON");
}

/// What is left of a Guest that has died: its kernel's file, and registers and stacks from anywhere in it. And the
/// account of a death, which whoever sends it to us may have made.
pub fn death(bytes: &[u8]) {
    if let Ok(death) = Death::parse(bytes) {
        let _ = (death.to_string(), death.beginning());
    }
    let (orc, symbols) = (Orc::parse(bytes), Symbols::parse(bytes));
    let read = |at: u64| {
        let at = usize::try_from(at).ok()? % bytes.len().max(1);
        Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    for at in (0..bytes.len() as u64).step_by(64).take(64) {
        let word = |index: u64| read(at + index * 8).unwrap_or(at);
        let regs = lguest_regs {
            rip: word(0),
            rsp: word(1),
            rbp: word(2),
            r10: word(3),
            ..Default::default()
        };
        for frame in backtrace(&regs, &orc, read) {
            symbols.name(frame.ip);
        }
    }
}

/// A driver of the console, while somebody types.
pub fn console(bytes: &[u8]) {
    let input = Arc::<Input>::default();
    let device = Console::new(input.clone(), Some(Arc::default()), Box::new(|_| {}));
    drive(device, bytes, |choices| {
        let count = choices.byte().into();
        input.offer(choices.bytes(count));
    });
}

/// A driver of a shared directory.
pub fn shares(bytes: &[u8]) {
    let directory = TempDir::new().expect("a directory");
    let root = host::open_root(directory.as_path()).expect("it is there");
    let files = FileServer::new(root, false, SHARED).expect("it is a directory");
    drive_files(files, &directory, bytes);
}

/// A driver of a root that is private to its Guest.
pub fn private_root(bytes: &[u8]) {
    let directory = TempDir::new().expect("a directory");
    let root = host::open_root(directory.as_path()).expect("it is there");
    let files = CowServer::new(root, SHARED, 1 << 16).expect("it is a directory");
    drive_files(files, &directory, bytes);
}

/// The limits on what a share or a root may have open.
const SHARED: Limits = Limits {
    inodes: 16,
    handles: 16,
};

/// The Host makes a file, a directory and a link in `directory` now and then.
fn drive_files(files: impl Files + 'static, directory: &TempDir, bytes: &[u8]) {
    drive(Fs::new("fuzz", files), bytes, |choices| {
        let path = directory.as_path().join(choices.byte().to_string());
        // What is there stays.
        let _ = match choices.byte() % 3 {
            0 => fs::write(path, "content"),
            1 => fs::create_dir(path),
            _ => std::os::unix::fs::symlink("/", path),
        };
    });
}

/// A driver of the network device.
pub fn net(bytes: &[u8]) {
    let (cable, act) = cable();
    drive(Net::new(Mac([2; 6]), cable), bytes, act);
}

/// A cable, and what its peer does: somebody sends whole frames, bytes by chance or the end, and now and then reads what has come.
fn cable() -> (Cable, impl FnMut(&mut Choices<'_>)) {
    block_sigpipe();
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    theirs.set_nonblocking(true).expect("set_nonblocking");
    let stream = stream::Stream::new(ours).expect("there are descriptors");
    let act = move |choices: &mut Choices<'_>| {
        let count = usize::from(choices.byte()) << (choices.byte() % 9);
        // What does not fit is lost, as from any peer that does not wait.
        let _ = match choices.byte() % 8 {
            0 => theirs.shutdown(Shutdown::Write),
            1 | 2 => theirs.read(&mut [0; 1 << 16]).map(drop),
            3 => theirs.write_all(choices.bytes(count)),
            _ => {
                let length = (count as u32).to_be_bytes();
                theirs.write_all(&[&length[..], &vec![0xa5; count]].concat())
            }
        };
    };
    (Cable::new(Box::new(stream), |_| {}), act)
}

/// A driver of ports of each kind, of which the first has input and then its end.
pub fn ports(bytes: &[u8]) {
    let input = Arc::<Input>::default();
    let written = |output| Stream {
        input: None,
        output,
    };
    let device = Ports::new(vec![
        (
            "in",
            Stream {
                input: Some(input.clone()),
                ..Stream::default()
            },
        ),
        ("out", written(To::Outlet(Arc::default()))),
        ("told", written(To::Taker(Box::new(|_| {})))),
    ]);
    drive(device, bytes, |choices| match choices.byte() {
        0 => input.end(),
        count => drop(input.offer(choices.bytes(count.into()))),
    });
}

/// A driver that reports free pages, of those that the rings are in among others.
pub fn balloon(bytes: &[u8]) {
    drive(Balloon, bytes, |_| {});
}

/// A driver of the entropy device.
pub fn rng(bytes: &[u8]) {
    drive(Rng, bytes, |_| {});
}

/// As in lg, where Rust's runtime sees to it: who writes to a closed socket gets an error.
fn block_sigpipe() {
    let blocked = SigSet::from(Signal::SIGPIPE).thread_block();
    blocked.expect("the signal exists");
}

/// A driver of the socket device, CID 3. Our side connects, listens for its port 5, reads, writes
/// and closes.
pub fn vsock(bytes: &[u8]) {
    block_sigpipe();
    let path = std::env::temp_dir().join(format!("lg-fuzz-{}", std::process::id()));
    let port = path.with_file_name(format!("lg-fuzz-{}_5", std::process::id()));
    let listen = |path| {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("bind");
        listener.set_nonblocking(true).expect("set_nonblocking");
        listener
    };
    let (listener, peers) = (listen(&path), listen(&port));
    let spec = Spec { path, cid: 3 };
    let hub = Hub::new(listener, &spec).expect("there are descriptors");
    let mut sockets: Vec<UnixStream> = Vec::new();
    drive(Vsock::new(hub), bytes, |choices| {
        let deed = choices.byte() % 6;
        let one = choices.byte();
        let index = usize::from(one) % sockets.len().max(1);
        match (deed, sockets.get_mut(index)) {
            (0, _) => {
                let mut socket = UnixStream::connect(&spec.path).expect("connect");
                let _ = writeln!(socket, "CONNECT {one}");
                socket.set_nonblocking(true).expect("set_nonblocking");
                sockets.push(socket);
            }
            (1, _) => sockets.extend(peers.accept().map(|(socket, _)| socket)),
            (2, Some(socket)) => {
                let _ = socket.set_nonblocking(true);
                let _ = socket.read(&mut [0; 256]);
            }
            (3, Some(socket)) => {
                let _ = socket.set_nonblocking(true);
                let _ = socket.write(&[one; 100]);
            }
            (4, Some(socket)) => drop(socket.shutdown(Shutdown::Write)),
            (5, Some(_)) => drop(sockets.swap_remove(index)),
            _ => {}
        }
    });
    for path in [&spec.path, &port] {
        let _ = fs::remove_file(path);
    }
}

/// A kernel of Xen's: rings, grants, requests to the PCI bus and to a disk, and functions on the bus.
pub fn xen(bytes: &[u8]) {
    with_disk(|disk| kernel::all(bytes, disk));
}

/// A kernel of Xen's with xen-blkfront: requests, their ring, and grants.
pub fn xenblk(bytes: &[u8]) {
    with_disk(|disk| kernel::disk(bytes, disk));
}

/// A kernel of Xen's with xen-netfront: pieces, empty pages, their rings, and grants.
pub fn xennet(bytes: &[u8]) {
    let (cable, act) = cable();
    kernel::net(bytes, cable, act);
}

/// A disk of 64 sectors, which is an overlay.
fn with_disk(act: impl FnOnce(Disk)) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.as_path().join("disk");
    fs::write(&path, [b'x'; 64 * SECTOR as usize]).expect("a file");
    let access = Access::Overlay;
    act(Disk::open(&disk::Spec { path, access }).expect("it is one"));
}

/// A kernel of Xen's that sends messages to the xenstore.
pub fn xenstore(bytes: &[u8]) {
    kernel::store(bytes);
}

/// An instruction that reaches for a device: the registers' values, then its bytes.
pub fn insn(bytes: &[u8]) {
    struct Device(u64);

    impl Target for Device {
        fn load(&mut self, data: &mut [u8]) {
            data.copy_from_slice(&self.0.to_le_bytes()[..data.len()]);
        }

        fn store(&mut self, data: &[u8]) {
            assert!(matches!(data.len(), 1 | 2 | 4 | 8));
        }
    }

    let Some((value, bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let value = u64::from_le_bytes(*value);
    let mut regs = lguest_regs {
        rax: value,
        rcx: value,
        rdi: value,
        rip: value,
        rflags: value,
        ..Default::default()
    };
    let before = format!("{regs:?}");
    if insn::emulate(bytes, &mut regs, &mut Device(value)).is_err() {
        assert_eq!(format!("{regs:?}"), before, "a refused one changes nothing");
    }
}

/// A kernel's file: an ELF executable or a bzImage, packed in any way.
pub fn image(bytes: &[u8]) {
    if let Ok(image) = Image::parse(bytes.to_vec()) {
        for segment in &image.segments {
            assert!(image.bytes(segment).len() as u64 <= segment.size);
            assert!(segment.gpa + segment.size <= lguest_abi::LGUEST_MAX_GPA);
        }
        if let Abi::Xen(notes) = &image.abi {
            build(&image, notes);
        }
    }
    // What else is in a file, whether it is a kernel that runs or not.
    let _ = Look::at(bytes.to_vec());
}

/// Puts a kernel of Xen's and a small initrd into RAM, if they fit.
fn build(image: &Image, notes: &Notes) {
    const RAM: u64 = 64 << 20;
    let initrd = b"initrd";
    let shim = Image::empty_at(SHIM);
    if let Ok(layout) = xen::Layout::of(image, notes, shim, initrd.len(), (RAM, 1)) {
        let layout = Layout::Xen(Box::new(layout));
        let memory = create_parts(&layout.memory()).expect("a memfd");
        layout.load(&memory, image, initrd, c"console=hvc0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../selftests/fuzz/corpus");

    #[test]
    fn every_corpus_runs_through_its_target() {
        for (name, target) in TARGETS {
            let archive = fs::read(format!("{CORPUS}/{name}.tar")).expect(name);
            let inputs = inputs(&archive);
            assert!(!inputs.is_empty(), "{name} has no corpus");
            inputs.into_iter().for_each(target);
        }
    }

    /// The files in an archive of tar's: each has a block in front of it, with its length in octal digits
    /// at 124, and ends with its last block; a block of zeros ends them all.
    fn inputs(archive: &[u8]) -> Vec<&[u8]> {
        const BLOCK: usize = 512;
        let mut inputs = Vec::new();
        let mut rest = archive;
        while rest[0] != 0 {
            let digits = std::str::from_utf8(&rest[124..135]).expect("digits");
            let length = usize::from_str_radix(digits, 8).expect("octal digits");
            inputs.push(&rest[BLOCK..][..length]);
            rest = &rest[BLOCK + length.next_multiple_of(BLOCK)..];
        }
        inputs
    }

    #[test]
    fn every_corpus_has_a_target() {
        for archive in fs::read_dir(CORPUS).unwrap() {
            let name = archive.unwrap().file_name();
            let known = TARGETS
                .iter()
                .any(|(target, _)| *name == *format!("{target}.tar"));
            assert!(known, "{name:?}");
        }
    }
}
