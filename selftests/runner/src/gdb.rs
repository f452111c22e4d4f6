// SPDX-License-Identifier: GPL-2.0
//! `lg run --gdb`, with a small client of gdb's remote protocol.

use crate::command::{self, End, Running};
use crate::test::{text, Outcome, Row, HERE};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const SOCKET: &str = "/tmp/gdb";
const CTRL_C: &[u8] = b"\x03";
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[
    ("steps-and-breakpoints", 30, steps_and_breakpoints),
    ("interrupt-and-detach", 30, interrupt_and_detach),
    ("kill", 30, kill),
    ("pagetable", 30, pagetable),
    ("panic", 30, panic),
    ("client-gone", 30, client_gone),
    ("nonsense", 60, nonsense),
    ("no-port", 30, no_port),
    ("place-taken", 30, place_taken),
];

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A Launcher whose Guest waits for us, and our end of the connection.
struct Session {
    launcher: Running,
    stream: Box<dyn Stream>,
}

/// Starts `guest` with a gdb wanted at `place`.
fn launch(guest: &str, append: &str, place: &str) -> Result<Running, String> {
    let path = format!("{HERE}/{guest}");
    let argv = [
        "lg", "run", &path, "-m", "64M", "--append", append, "--gdb", place,
    ];
    command::start(&argv).map_err(text)
}

/// Tries until it works: the Launcher may not listen yet.
fn connect<T>(connect: impl Fn() -> std::io::Result<T>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match connect() {
            Err(_) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            result => return result.map_err(text),
        }
    }
}

impl Session {
    fn start(guest: &str, append: &str) -> Result<Self, String> {
        let launcher = launch(guest, append, SOCKET)?;
        let stream = connect(|| UnixStream::connect(SOCKET))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        let stream = Box::new(stream);
        Ok(Self { launcher, stream })
    }

    fn byte(&mut self) -> Result<u8, String> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).map_err(text)?;
        Ok(byte[0])
    }

    /// Sends a packet.
    fn send(&mut self, packet: &str) -> Outcome {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        let framed = format!("${packet}#{sum:02x}");
        self.stream.write_all(framed.as_bytes()).map_err(text)
    }

    /// Receives a packet, acknowledges it, and expands what is run-length encoded.
    fn receive(&mut self) -> Result<String, String> {
        while self.byte()? != b'$' {}
        let mut packet = String::new();
        loop {
            match self.byte()? {
                b'#' => break,
                b'*' => {
                    let count = self.byte()?.saturating_sub(29);
                    let last = packet.chars().last().ok_or("a repetition of nothing")?;
                    (0..count).for_each(|_| packet.push(last));
                }
                byte => packet.push(byte.into()),
            }
        }
        // The Launcher may have ended with that.
        let _ = self.stream.write_all(b"+");
        Ok(packet)
    }

    fn ask(&mut self, packet: &str) -> Result<String, String> {
        self.send(packet)?;
        self.receive().map_err(|error| format!("{packet}: {error}"))
    }

    /// Fails unless the answer to `packet` begins with `expected`.
    fn expect(&mut self, packet: &str, expected: &str) -> Result<String, String> {
        let answer = self.ask(packet)?;
        if answer.starts_with(expected) {
            Ok(answer)
        } else {
            Err(format!("{packet}: {answer:?} instead of {expected:?}"))
        }
    }

    /// What `monitor COMMAND` prints.
    fn monitor(&mut self, command: &str) -> Result<String, String> {
        let hex = |text: String, byte| text + &format!("{byte:02x}");
        let hex = command.bytes().fold(String::new(), hex);
        self.send(&format!("qRcmd,{hex}"))?;
        let mut text = Vec::new();
        loop {
            let packet = self.receive()?;
            let Some(hex) = packet.strip_prefix('O').filter(|_| packet != "OK") else {
                let text = String::from_utf8_lossy(&text).into_owned();
                return (packet == "OK").then_some(text).ok_or(packet);
            };
            for digits in hex.as_bytes().chunks(2) {
                let digits = std::str::from_utf8(digits).map_err(crate::test::text)?;
                text.push(u8::from_str_radix(digits, 16).map_err(crate::test::text)?);
            }
        }
    }

    /// RIP: the 17th of the 64-bit registers that come first.
    fn rip(&mut self) -> Result<u64, String> {
        let regs = self.ask("g")?;
        let digits = regs.get(16 * 16..17 * 16).ok_or(format!("g: {regs}"))?;
        let value = u64::from_str_radix(digits, 16).map_err(text)?;
        Ok(value.swap_bytes())
    }

    fn expect_rip(&mut self, what: &str, expected: u64) -> Outcome {
        let rip = self.rip()?;
        if rip == expected {
            Ok(())
        } else {
            Err(format!("{what}: RIP is {rip:#x} instead of {expected:#x}"))
        }
    }

    fn memory(&mut self, address: u64, length: usize) -> Result<Vec<u8>, String> {
        let hex = self.ask(&format!("m{address:x},{length:x}"))?;
        let byte = |i: usize| {
            let digits = hex.get(i..i + 2).ok_or("half a byte")?;
            u8::from_str_radix(digits, 16).map_err(|_| "no number")
        };
        (0..hex.len())
            .step_by(2)
            .map(byte)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("memory at {address:#x}: {hex}: {error}"))
    }

    /// The Launcher's end, which must be `expected`.
    fn finish(self, expected: End) -> Result<String, String> {
        drop(self.stream);
        let finished = self.launcher.finish(PATIENCE).map_err(text)?;
        finished.expect(expected)?;
        Ok(finished.output)
    }
}

/// The first instructions of every bare Guest: lea (7 bytes), mov (3), xor (2), call (5).
fn steps_and_breakpoints(_: Duration) -> Outcome {
    let mut gdb = Session::start("guests/hello", "")?;
    gdb.expect("qSupported:swbreak+", "PacketSize=")?;
    gdb.expect("?", "T05")?;
    let entry = gdb.rip()?;
    for length in [7, 10] {
        gdb.expect("vCont;s", "S05")?;
        gdb.expect_rip("a step", entry + length)?;
    }
    let call = entry + 12;
    let insn = gdb.memory(call, 5)?;
    let [0xe8, a, b, c, d] = insn[..] else {
        return Err(format!("no call at {call:#x} but {insn:x?}"));
    };
    let offset = i32::from_le_bytes([a, b, c, d]);
    gdb.expect(&format!("Z0,{call:x},1"), "OK")?;
    if gdb.memory(call, 5)? != insn {
        return Err("the breakpoint shows".into());
    }
    gdb.expect("vCont;c", "T05")?;
    gdb.expect_rip("the breakpoint", call)?;
    gdb.expect(&format!("z0,{call:x},1"), "OK")?;
    gdb.expect("vCont;s", "S05")?;
    gdb.expect_rip("the call", (call + 5).wrapping_add_signed(offset.into()))?;
    gdb.expect("Z0,0,1", "OK")?;
    gdb.expect("Z0,7fff00000000,1", "E")?;
    gdb.expect("m7fff00000000,8", "E")?;
    gdb.expect("vCont;c", "W00")?;
    let output = gdb.finish(End::Exit(0))?;
    match output.contains("Hello from guest kernel mode") {
        true => Ok(()),
        false => Err(output),
    }
}

const SPINNER: (&str, &str) = ("selftests/hostile/events", "crime=spin-with-interrupts-off");

fn interrupt_and_detach(_: Duration) -> Outcome {
    let mut gdb = Session::start(SPINNER.0, SPINNER.1)?;
    for _ in 0..20 {
        gdb.send("vCont;c")?;
        std::thread::sleep(Duration::from_millis(20));
        gdb.stream.write_all(CTRL_C).map_err(text)?;
        let answer = gdb.receive()?;
        if !answer.starts_with("S02") {
            return Err(format!("Ctrl-C: {answer}"));
        }
        let rip = gdb.rip()?;
        gdb.memory(rip, 8)?;
        gdb.expect("vCont;s", "S05")?;
    }
    gdb.expect("D", "OK")?;
    if gdb
        .launcher
        .ends_within(Duration::from_millis(500))
        .map_err(text)?
    {
        return Err("the guest has not survived the debugger".into());
    }
    gdb.launcher.signal(libc::SIGTERM);
    gdb.finish(End::Exit(128 + libc::SIGTERM)).map(drop)
}

/// `monitor pagetable`: of where the Guest is, of what it has not, and of nonsense.
fn pagetable(_: Duration) -> Outcome {
    let mut session = Session::start("selftests/guests/registers", "")?;
    let rip = session.rip()?;
    let before = session.monitor(&format!("pagetable {rip:#x}"))?;
    for part in [
        "in the guest's tables at 0x",
        "level 4, index 511\n    guest's entry at 0x",
        "level 1, index ",
        "shadow, kernel mode: ",
        "kernel mode  fetch  exit: lg.ko ",
    ] {
        if !before.contains(part) {
            return Err(format!("no {part:?} in {before}"));
        }
    }
    // One instruction later, the shadow has its page.
    session.expect("s", "S05")?;
    let after = session.monitor(&format!("pagetable {rip:x}"))?;
    if !after.contains("kernel mode  fetch  goes through to 0x") {
        return Err(format!("the page is not in the shadow: {after}"));
    }
    let absent = session.monitor("pagetable 0x123456789000")?;
    if !absent.contains("not present") || !absent.contains("read   exit: the guest gets #PF") {
        return Err(format!("where nothing is: {absent}"));
    }
    for nonsense in [
        "pagetable",
        "pagetable here",
        "pagetable 1 2",
        "other 1",
        "",
    ] {
        let said = session.monitor(nonsense)?;
        if !said.starts_with("pagetable ADDRESS") {
            return Err(format!("{nonsense:?}: {said}"));
        }
    }
    session.send("k")?;
    session.finish(End::Exit(0)).map(drop)
}

fn kill(_: Duration) -> Outcome {
    let mut gdb = Session::start(SPINNER.0, SPINNER.1)?;
    gdb.expect("?", "T05")?;
    // gdb waits for no answer.
    gdb.send("k")?;
    gdb.finish(End::Exit(0)).map(drop)
}

/// A Guest that panics is held for a last look.
fn panic(_: Duration) -> Outcome {
    let crime = "crime=panic-message-without-end";
    let mut gdb = Session::start("selftests/hostile/hypercalls", crime)?;
    gdb.expect("vCont;c", "S06")?;
    let rip = gdb.rip()?;
    // Behind the SYSCALL of the last hypercall.
    if gdb.memory(rip - 2, 2)? != [0x0f, 0x05] {
        return Err(format!("no hypercall before {rip:#x}"));
    }
    gdb.expect("vCont;c", "X06")?;
    let output = gdb.finish(End::Exit(255))?;
    match output.contains("the guest's kernel panicked: AAAA") {
        true => Ok(()),
        false => Err(output),
    }
}

/// The Guest goes on alone, without the breakpoint that nobody took away.
fn client_gone(_: Duration) -> Outcome {
    let mut gdb = Session::start("guests/hello", "")?;
    let entry = gdb.rip()?;
    gdb.expect(&format!("Z0,{:x},1", entry + 7), "OK")?;
    gdb.finish(End::Exit(0)).map(drop)
}

/// Packets of random letters, and bytes that are no packets.
fn nonsense(_: Duration) -> Outcome {
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut number = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..30 {
        let mut gdb = Session::start("guests/hello", "")?;
        for _ in 0..number() % 40 {
            let letters = b"gGmMxXzZvcsDHTpPqQ?0123456789abcdef,;:#$-+*}\xff";
            let packet = (0..number() % 30)
                .map(|_| letters[number() as usize % letters.len()])
                .map(char::from)
                .filter(char::is_ascii)
                .collect::<String>();
            // The Launcher may have had enough.
            let sent = match number() % 3 {
                0 => gdb.stream.write_all(packet.as_bytes()).map_err(text),
                _ => gdb.send(&packet),
            };
            if sent.is_err() {
                break;
            }
        }
        let output = gdb.finish(End::Exit(0))?;
        if output.contains("panicked") {
            return Err(output);
        }
    }
    Ok(())
}

/// A port of the loopback interface is there for other users, and for other Guests.
fn no_port(_: Duration) -> Outcome {
    for place in ["4321", ":4321", "localhost:4321"] {
        let finished = launch("guests/hello", "", place)?.finish(PATIENCE);
        let finished = finished.map_err(text)?;
        finished.expect(End::Exit(125))?;
        if !finished.output.contains("target remote /tmp/gdb") {
            return Err(finished.report("said:"));
        }
    }
    Ok(())
}

fn place_taken(_: Duration) -> Outcome {
    fs::write(SOCKET, "a file of the user's").map_err(text)?;
    let finished = launch("guests/hello", "", SOCKET)?.finish(PATIENCE);
    let survived = Path::new(SOCKET).is_file();
    fs::remove_file(SOCKET).map_err(text)?;
    let finished = finished.map_err(text)?;
    finished.expect(End::Exit(125))?;
    match survived && finished.output.contains("exists, and is no socket") {
        true => Ok(()),
        false => Err(finished.report("said:")),
    }
}
