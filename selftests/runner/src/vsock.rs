// SPDX-License-Identifier: GPL-2.0
//! Does `--vsock` work both ways? In the Guest is `selftests/linux/src/vsock.rs`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{self, End};
use crate::script::initrd;
use crate::test::{text, Outcome, Row};

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[("both-ways", 120, both_ways), ("refusals", 30, refusals)];

const PATH: &str = "/tmp/vsock";
const LENGTH: usize = 3 << 20;
/// As many at a time.
const CONNECTIONS: usize = 100;

/// Connects to the Guest's `port`; `None` when it refuses.
fn connect(port: u32) -> io::Result<Option<UnixStream>> {
    let mut socket = UnixStream::connect(PATH)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        if socket.read(&mut byte)? == 0 {
            return Ok(None);
        }
        line.push(byte[0]);
    }
    match line.strip_prefix(b"OK ") {
        Some(_) => Ok(Some(socket)),
        None => Err(io::Error::other("no OK")),
    }
}

/// Takes what the Guest sends, slowly, and answers with how much it was and its sum.
fn slow_reader(listener: UnixListener) -> io::Result<()> {
    let (mut socket, _) = listener.accept()?;
    let (mut count, mut sum) = (0, 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        // Long enough for every buffer on the way to fill up.
        thread::sleep(Duration::from_millis(2));
        match socket.read(&mut buffer)? {
            0 => break,
            read => {
                count += read;
                sum += buffer[..read]
                    .iter()
                    .map(|&byte| u64::from(byte))
                    .sum::<u64>();
            }
        }
    }
    socket.write_all(format!("{count} {sum}").as_bytes())
}

/// Sends megabytes, reads them back more slowly, and then the end.
fn echo() -> Outcome {
    let mut socket = connect(1000).map_err(text)?.ok_or("refused")?;
    let bytes: Vec<u8> = (0..LENGTH).map(|n| (n ^ (n >> 7)) as u8).collect();
    let mut writer = socket.try_clone().map_err(text)?;
    let sent = bytes.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    thread::sleep(Duration::from_millis(500));
    let mut back = Vec::new();
    socket.read_to_end(&mut back).map_err(text)?;
    writer
        .join()
        .map_err(|_| "the writer panicked")?
        .map_err(text)?;
    if back != bytes {
        return Err(format!("{} bytes came back, not the same", back.len()));
    }
    Ok(())
}

fn both_ways(timeout: Duration) -> Outcome {
    let start = Instant::now();
    let listener = UnixListener::bind(format!("{PATH}_2000")).map_err(text)?;
    let reader = thread::spawn(move || slow_reader(listener));
    let initrd = initrd().map_err(text)?;
    let argv = [
        "lg",
        "run",
        "--initrd",
        &initrd,
        "--vsock",
        PATH,
        "--",
        "/selftests/linux-tests",
        "vsock",
    ];
    let running = command::start(&argv).map_err(text)?;
    let result = (|| {
        // The Guest listens after it has sent its own.
        while !reader.is_finished() {
            if start.elapsed() > timeout / 2 {
                return Err("the guest does not connect".into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        reader
            .join()
            .map_err(|_| "the reader panicked")?
            .map_err(text)?;
        while connect(1000).map_err(text)?.is_none() {
            if start.elapsed() > timeout / 2 {
                return Err("the guest does not listen".into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        let mode = fs::metadata(PATH).map_err(text)?.permissions().mode();
        if mode & 0o777 != 0o600 {
            return Err(format!("the socket's mode is {mode:o}"));
        }
        if connect(1001).map_err(text)?.is_some() {
            return Err("a port where nobody listens was connected".to_string());
        }
        echo()?;
        let mut sockets = Vec::new();
        for _ in 0..CONNECTIONS {
            sockets.push(connect(1000).map_err(text)?.ok_or("refused")?);
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket
                .write_all(format!("hello {number:03}").as_bytes())
                .map_err(text)?;
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            let mut back = [0; 9];
            socket.read_exact(&mut back).map_err(text)?;
            if back != *format!("hello {number:03}").as_bytes() {
                return Err(format!("connection {number} got another's bytes"));
            }
        }
        sockets[0].write_all(b"quit").map_err(text)?;
        // The Guest's end is the end of them all.
        for mut socket in sockets {
            match socket.read(&mut [0]) {
                Ok(0) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => return Err(format!("not closed: {other:?}")),
            }
        }
        Ok(())
    })();
    let finished = running.finish(timeout / 2).map_err(text)?;
    result.map_err(|error| finished.report(&format!("{error}; lg printed:")))?;
    finished.expect(End::Exit(0))?;
    match fs::exists(PATH) {
        Ok(false) => Ok(()),
        _ => Err("the socket is still there".into()),
    }
}

/// Where something is already, lg makes no socket, and leaves it alone.
fn refusals(timeout: Duration) -> Outcome {
    const TAKEN: &str = "/tmp/vsock-taken";
    let run = |reason: &str| {
        let argv = ["lg", "run", "--vsock", TAKEN, "--", "true"];
        let finished = command::run(&argv, timeout / 3).map_err(text)?;
        finished.expect(End::Exit(125))?;
        if !finished.output.contains(reason) {
            return Err(finished.report(&format!("not {reason:?} but:")));
        }
        Ok(())
    };
    let listener = UnixListener::bind(TAKEN).map_err(text)?;
    run("is in use")?;
    drop(listener);
    run("is left from a run that was killed")?;
    fs::remove_file(TAKEN).map_err(text)?;
    fs::write(TAKEN, "precious").map_err(text)?;
    run("exists, and is no socket")?;
    match fs::read(TAKEN) {
        Ok(bytes) if bytes == b"precious" => Ok(()),
        other => Err(format!("the file is changed: {other:?}")),
    }
}
