// SPDX-License-Identifier: GPL-2.0
//! `lg top` on a terminal: it leaves that as it was; and elsewhere.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{self, Child, Command};
use std::thread;

use launcher::machine::view::{Guest, Kernel};
use launcher::queries::server::Listener;
use launcher::queries::Query;
use nix::pty::openpty;
use nix::sys::signal::{kill, Signal};
use nix::sys::termios::{tcgetattr, LocalFlags};
use nix::unistd::Pid;
use serde_json::{json, Value};

/// Starts it on a terminal of its own, and waits for what it shows.
fn top() -> (File, OwnedFd, Child) {
    let terminal = openpty(None, None).unwrap();
    let lg = Command::new(env!("CARGO_BIN_EXE_lg"))
        .arg("top")
        .stdin(terminal.slave.try_clone().unwrap())
        .stdout(terminal.slave.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut master = File::from(terminal.master);
    until(&mut master, "q: leave");
    (master, terminal.slave, lg)
}

/// Reads what it shows up to these words.
fn until(master: &mut File, words: &str) -> String {
    let mut text = String::new();
    let mut part = [0; 1024];
    while !text.contains(words) {
        let length = master.read(&mut part).unwrap();
        text += &String::from_utf8_lossy(&part[..length]);
    }
    text
}

#[test]
fn the_terminal_is_as_it_was() {
    let leave: [fn(&mut File, &Child); 2] = [
        |master, _| master.write_all(b"xq").unwrap(),
        |_, lg| kill(Pid::from_raw(lg.id() as i32), Signal::SIGTERM).unwrap(),
    ];
    let before = tcgetattr(openpty(None, None).unwrap().slave).unwrap();
    for leave in leave {
        let (mut master, slave, mut lg) = top();
        let during = tcgetattr(&slave).unwrap();
        assert!(!during.local_flags.contains(LocalFlags::ECHO));
        leave(&mut master, &lg);
        // The cursor and the other screen.
        until(&mut master, "\x1b[?25h\x1b[?1049l");
        assert!(lg.wait().unwrap().success());
        let after = tcgetattr(&slave).unwrap();
        assert_eq!(after.local_flags, before.local_flags);
    }
}

/// What it prints where it is no terminal.
fn printed(argument: &str) -> String {
    let lg = Command::new(env!("CARGO_BIN_EXE_lg"))
        .args(["top", argument])
        .output()
        .unwrap();
    let text = String::from_utf8(lg.stdout).unwrap();
    assert!(lg.status.success() && lg.stderr.is_empty(), "{text}");
    text
}

/// This process answers as an `lg run` does.
#[test]
fn elsewhere_it_prints_once() {
    let guest = Guest {
        kernel: Kernel {
            path: "/boot/vmlinux".into(),
            build_id: None,
        },
        command: "make\u{1b}check".into(),
        memory: 256 << 20,
        age: 10.0,
        cpu: 5.0,
    };
    let listener = Listener::open().unwrap();
    let answer = json!(guest);
    thread::spawn(move || {
        listener.serve(|query| match query {
            Query::Guest => Ok(answer.clone()),
            Query::Stats => Ok(json!({"entries": 1000, "page_faults": 20})),
            Query::Walk { .. } => Err("nobody asks".into()),
        })
    });
    let pid = process::id();
    let seen: Vec<Value> = serde_json::from_str(&printed("--json")).unwrap();
    let seen = seen.iter().find(|seen| seen["pid"] == json!(pid)).unwrap();
    assert_eq!(seen["stopped"], json!(false));
    assert_eq!(seen["guest"]["command"], json!("make\u{fffd}check"));
    assert_eq!(seen["guest"]["kernel"]["path"], json!("/boot/vmlinux"));
    assert_eq!(seen["counters"]["entries"], json!(1000));
    let table = printed("--once");
    let words = |line: &str| line.split_whitespace().map(String::from).collect();
    let mut lines = table.lines().map(words);
    let row: Vec<String> = lines
        .find(|row: &Vec<_>| row[0] == pid.to_string())
        .unwrap();
    assert_eq!(row[1..4], ["0:10", "50", "256M"]);
    assert_eq!(row[5..8], ["100", "2", "-"]);
    assert_eq!(row[11..], ["vmlinux", "make\u{fffd}check"]);
}
