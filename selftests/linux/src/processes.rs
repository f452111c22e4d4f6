// SPDX-License-Identifier: GPL-2.0
//! Processes: many, deep, traced, and talking to each other.

use crate::sys::{check, in_child, spawn, wait};
use crate::Test;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("fork and wait, 300 times", fork_and_wait),
    ("100 children at once", children_at_once),
    ("fork and exec, 100 times", fork_and_exec),
    ("a chain of forks", chain_of_forks),
    ("pipes", pipes),
    ("ping-pong", ping_pong),
    ("a stack that grows", growing_stack),
    ("a stack that grows too much", stack_overflow),
    ("single steps", single_steps),
    ("many system calls", many_system_calls),
];

fn fork_and_wait() {
    for i in 0..300 {
        assert_eq!(in_child(|| i % 100), i % 100);
    }
}

fn children_at_once() {
    let children: Vec<i32> = (0..100)
        .map(|i| {
            spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                i
            })
        })
        .collect();
    for (i, child) in (0..).zip(children) {
        assert_eq!(libc::WEXITSTATUS(wait(child)), i);
    }
}

fn myself() -> std::path::PathBuf {
    std::env::current_exe().expect("/proc/self/exe")
}

fn fork_and_exec() {
    for i in 0..100 {
        let status = Command::new(myself())
            .args(["--exec", &i.to_string()])
            .status()
            .expect("exec");
        assert_eq!(status.code(), Some(i));
    }
}

fn chain_of_forks() {
    fn link(left: i32) -> i32 {
        if left == 0 {
            return 77;
        }
        in_child(|| link(left - 1))
    }
    assert_eq!(link(60), 77);
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let mut fds = [0; 2];
    // SAFETY: two new descriptors, which become two files.
    unsafe {
        check("pipe", libc::pipe(fds.as_mut_ptr()));
        (
            std::fs::File::from_raw_fd(fds[0]),
            std::fs::File::from_raw_fd(fds[1]),
        )
    }
}

/// Data goes through three processes and comes back whole.
fn pipes() {
    let mut cat = Command::new("/bin/sh")
        .args(["-c", "cat | cat | cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let data: Vec<u8> = (0..4_000_000u32)
        .flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes())
        .step_by(4)
        .collect();
    let (mut input, mut output) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let copy = data.clone();
    let writer = std::thread::spawn(move || input.write_all(&copy));
    let mut back = Vec::new();
    output.read_to_end(&mut back).expect("read");
    writer.join().unwrap().expect("write");
    assert!(
        back == data,
        "{} bytes came back of {}",
        back.len(),
        data.len()
    );
    assert!(cat.wait().unwrap().success());
}

fn ping_pong() {
    let ((mut here, mut there), (mut from, mut to)) = (pipe(), pipe());
    let child = spawn(|| {
        let mut byte = [0];
        for _ in 0..5000 {
            here.read_exact(&mut byte).unwrap();
            to.write_all(&[byte[0].wrapping_add(1)]).unwrap();
        }
        0
    });
    for i in 0..5000u32 {
        let mut byte = [0];
        there.write_all(&[i as u8]).unwrap();
        from.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], (i as u8).wrapping_add(1));
    }
    assert_eq!(wait(child), 0);
}

fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == 0 {
        0
    } else {
        recurse(depth - 1) + u64::from(frame[depth as usize % 64] == depth)
    }
}

fn growing_stack() {
    assert_eq!(recurse(4000), 4000, "some MiB of stack");
}

fn stack_overflow() {
    let status = in_child(|| {
        // SAFETY: the default action: the child ends, instead of printing a message.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        recurse(u64::MAX >> 1) as i32
    });
    assert_eq!(status, 128 + libc::SIGSEGV);
}

/// A debugger steps its child through system calls, a fault and a loop, and reads its memory and registers.
fn single_steps() {
    static VARIABLE: u64 = 0x1234_5678_9abc_def0;
    // SAFETY: ptrace of our own child; the variable is read in the child's memory.
    unsafe {
        let child = spawn(|| {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            let mut sum = 0u64;
            for i in 0..100 {
                sum = std::hint::black_box(sum + i);
            }
            libc::syscall(libc::SYS_getppid);
            (sum % 100) as i32
        });
        assert!(libc::WIFSTOPPED(wait(child)));
        let word = libc::ptrace(libc::PTRACE_PEEKDATA, child, &raw const VARIABLE, 0) as u64;
        assert_eq!(word, VARIABLE, "PTRACE_PEEKDATA");
        let mut steps = 0;
        let mut last_rip = 0;
        loop {
            check(
                "PTRACE_SINGLESTEP",
                libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0),
            );
            let status = wait(child);
            if libc::WIFEXITED(status) {
                assert_eq!(libc::WEXITSTATUS(status), 4950 % 100);
                break;
            }
            assert_eq!(libc::WSTOPSIG(status), libc::SIGTRAP);
            let mut regs: libc::user_regs_struct = std::mem::zeroed();
            check(
                "PTRACE_GETREGS",
                libc::ptrace(libc::PTRACE_GETREGS, child, 0, &mut regs),
            );
            assert_ne!(regs.rip, last_rip, "a step moves RIP");
            (steps, last_rip) = (steps + 1, regs.rip);
        }
        assert!(steps > 300, "{steps} steps");
    }
}

fn many_system_calls() {
    // SAFETY: these calls only return numbers.
    unsafe {
        let (pid, parent) = (libc::getpid(), libc::getppid());
        for _ in 0..50_000 {
            assert_eq!(libc::syscall(libc::SYS_getpid), i64::from(pid));
        }
        assert_eq!(libc::syscall(libc::SYS_getppid), i64::from(parent));
        assert_eq!(libc::syscall(9999), -1, "a system call that does not exist");
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::ENOSYS)
        );
    }
}
