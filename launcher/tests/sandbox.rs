// SPDX-License-Identifier: GPL-2.0
//! The sandbox, from inside: each test runs itself once more, in a process that goes in there and
//! tries something.

use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use launcher::devices::fs::{attributes, host};
use launcher::sandbox::{self, Grant, Needs, Sandbox};
use nix::libc;
use nix::unistd::{getpid, getppid, Pid};
use rustix::fs::{AtFlags, OFlags, CWD};
use rustix::io::Errno;

const SIGSYS: i32 = 31;
const INSIDE: &str = "LG_TEST_INSIDE";

/// Runs the test `name` again, as the process that goes into the sandbox. It has an empty directory,
/// which goes when it has ended.
fn inside(name: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, directory.path())
        .output()
        .unwrap()
}

/// The directory, in that process.
fn is_inside() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

/// Goes into the sandbox, and takes these directories along.
fn enter(grants: &[Grant]) -> Sandbox {
    let needs = Needs {
        grants,
        ..Needs::default()
    };
    sandbox::enter(&needs).unwrap()
}

fn grant(directory: &Path, write: bool) -> [Grant; 1] {
    let directory = directory.into();
    [Grant { directory, write }]
}

fn confined(output: &Output) -> String {
    format!("{output:?}")
}

#[test]
fn files_elsewhere_are_gone_and_open_ones_stay() {
    if let Some(dir) = is_inside() {
        let open = File::open("/proc/thread-self/status").unwrap();
        fs::write(dir.join("file"), "shared").unwrap();
        let entered = enter(&grant(&dir, false));
        assert_eq!(
            fs::read_to_string(dir.join("file")).unwrap(),
            "shared",
            "granted"
        );
        let status = std::io::read_to_string(open).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        if entered.landlock > 0 {
            File::open("/etc/passwd").unwrap_err();
            fs::write(dir.join("file"), "changed").unwrap_err();
            println!("confined");
        }
        return;
    }
    let output = inside("files_elsewhere_are_gone_and_open_ones_stay");
    assert!(output.status.success(), "{}", confined(&output));
    let said = String::from_utf8_lossy(&output.stdout).contains("confined");
    assert!(
        said || sandbox::landlock_version() == 0,
        "{}",
        confined(&output)
    );
}

/// Also what Landlock lets everybody open. The C library opens a file when it gives memory back.
#[test]
fn nothing_to_open_without_a_share() {
    if is_inside().is_some() {
        enter(&[]);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let error = rustix::fs::openat(CWD, "/dev/null", flags, 0.into()).unwrap_err();
        assert_eq!(error, Errno::ACCESS);
        return;
    }
    let output = inside("nothing_to_open_without_a_share");
    assert!(output.status.success(), "{}", confined(&output));
}

#[test]
fn what_may_be_written_is_writable() {
    if let Some(dir) = is_inside() {
        enter(&grant(&dir, true));
        fs::write(dir.join("file"), "made").unwrap();
        rustix::fs::unlinkat(CWD, dir.join("file"), AtFlags::empty()).unwrap();
        return;
    }
    let output = inside("what_may_be_written_is_writable");
    assert!(output.status.success(), "{}", confined(&output));
}

/// The end of a process that makes a forbidden call: our own status, and the reason.
fn stopped(output: &Output, call: libc::c_long) {
    assert_eq!(output.status.code(), Some(125), "{}", confined(output));
    assert_eq!(output.status.signal(), None);
    let text = String::from_utf8_lossy(&output.stderr);
    let words = format!("lg: error[LG0026]: system call {call} was stopped");
    assert!(text.contains(&words), "{words}: {text}");
    assert!(text.contains("why: ") && text.contains("fix: "), "{text}");
}

#[test]
fn no_network() {
    if is_inside().is_some() {
        enter(&[]);
        let _ = TcpStream::connect("127.0.0.1:1");
        return;
    }
    stopped(&inside("no_network"), libc::SYS_socket);
}

#[test]
fn no_signals_for_other_processes() {
    if is_inside().is_some() {
        let parent = getppid();
        enter(&[]);
        let none = |pid: Pid| {
            let pid = pid.as_raw();
            // SAFETY: takes numbers only, and no signal is sent.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) }
        };
        assert_eq!(none(getpid()), 0);
        println!("still here");
        none(parent);
        return;
    }
    let output = inside("no_signals_for_other_processes");
    stopped(&output, libc::SYS_tgkill);
    assert!(String::from_utf8_lossy(&output.stdout).contains("still here"));
}

#[test]
fn no_programs() {
    if is_inside().is_some() {
        enter(&[]);
        let _ = Command::new("/bin/true").status();
        return;
    }
    let output = inside("no_programs");
    // The C library starts programs with all signals blocked, so that nothing can be said there.
    assert_eq!(
        output.status.signal(),
        Some(SIGSYS),
        "{}",
        confined(&output)
    );
}

/// Each of these is a call that lg makes, with arguments that it does not.
macro_rules! stops {
    ($($name:ident: $call:ident, $try:expr;)*) => {$(
        #[test]
        fn $name() {
            if let Some(dir) = is_inside() {
                #[allow(clippy::redundant_closure_call)]
                ($try)(&dir);
                return;
            }
            stopped(&inside(stringify!($name)), libc::$call);
        }
    )*};
}

/// A system call of five numbers, or addresses of what the caller still has.
fn call(number: libc::c_long, arguments: [u64; 5]) -> libc::c_long {
    let [a, b, c, d, e] = arguments;
    // SAFETY: what is called here is to be stopped. Where it is not, it takes numbers only, or reads
    // a string that outlives the call.
    unsafe { libc::syscall(number, a, b, c, d, e) }
}

/// fcntl() of a descriptor.
fn control(fd: RawFd, command: i32, argument: u64) {
    call(libc::SYS_fcntl, [fd as u64, command as u64, argument, 0, 0]);
}

stops! {
    no_signals_by_a_descriptors_owner: SYS_fcntl, |_: &Path| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let parent = getppid().as_raw() as u64;
        enter(&[]);
        control(ours.as_raw_fd(), libc::F_SETOWN, parent);
    };
    no_other_signal_for_an_owner: SYS_fcntl, |_: &Path| {
        const F_SETSIG: i32 = 10;
        let (ours, _theirs) = UnixStream::pair().unwrap();
        enter(&[]);
        control(ours.as_raw_fd(), F_SETSIG, libc::SIGKILL as u64);
    };
    no_signals_for_an_owner_that_was_there: SYS_fcntl, |_: &Path| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        control(ours.as_raw_fd(), libc::F_SETOWN, getppid().as_raw() as u64);
        enter(&[]);
        control(ours.as_raw_fd(), libc::F_SETFL, libc::O_ASYNC as u64);
    };
    no_owner_by_ioctl: SYS_ioctl, |_: &Path| {
        const FIOSETOWN: u64 = 0x8901;
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let owner = getppid().as_raw();
        enter(&[]);
        call(libc::SYS_ioctl, [ours.as_raw_fd() as u64, FIOSETOWN, &raw const owner as u64, 0, 0]);
    };
    no_limits_of_other_processes: SYS_prlimit64, |_: &Path| {
        let parent = getppid().as_raw() as u64;
        enter(&[]);
        let own = call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as u64, 0, 0, 0]);
        assert_eq!(own, 0);
        call(libc::SYS_prlimit64, [parent, libc::RLIMIT_NOFILE as u64, 0, 0, 0]);
    };
    no_keys_for_the_terminal: SYS_ioctl, |_: &Path| {
        enter(&[]);
        call(libc::SYS_ioctl, [0, libc::TIOCSTI, c"x".as_ptr() as u64, 0, 0]);
    };
    no_interface: SYS_ioctl, |_: &Path| {
        enter(&[]);
        call(libc::SYS_ioctl, [0, libc::TUNSETIFF, 0, 0, 0]);
    };
    no_process_that_may_look: SYS_prctl, |_: &Path| {
        enter(&[]);
        call(libc::SYS_prctl, [libc::PR_SET_PTRACER as u64, u64::MAX, 0, 0, 0]);
    };
    no_sockets_without_a_vsock: SYS_socket, |_: &Path| {
        enter(&[]);
        let _ = UnixStream::connect("/run/no-such");
    };
    no_other_sockets_with_a_vsock: SYS_socket, |dir: &Path| {
        let needs = Needs { sockets: Some(dir), ..Needs::default() };
        sandbox::enter(&needs).unwrap();
        let _ = TcpStream::connect("127.0.0.1:1");
    };
    nothing_is_made_on_a_read_only_share: SYS_mkdirat, |dir: &Path| {
        enter(&grant(dir, false));
        let _ = rustix::fs::mkdirat(CWD, dir.join("new"), 0o700.into());
    };
    nothing_is_removed_on_a_read_only_share: SYS_unlinkat, |dir: &Path| {
        fs::write(dir.join("file"), "").unwrap();
        enter(&grant(dir, false));
        let _ = rustix::fs::unlinkat(CWD, dir.join("file"), AtFlags::empty());
    };
    no_modes_by_path: SYS_fchmodat, |dir: &Path| {
        enter(&grant(dir, true));
        let _ = rustix::fs::chmodat(CWD, dir, 0o777.into(), AtFlags::empty());
    };
    no_modes_by_descriptor: SYS_fchmod, |dir: &Path| {
        enter(&grant(dir, true));
        let _ = rustix::fs::fchmod(File::open(dir).unwrap(), 0o777.into());
    };
    no_owners: SYS_fchownat, |dir: &Path| {
        enter(&grant(dir, true));
        let _ = rustix::fs::chownat(CWD, dir, None, None, AtFlags::empty());
    };
    no_times: SYS_utimensat, |dir: &Path| {
        enter(&grant(dir, true));
        call(libc::SYS_utimensat, [libc::AT_FDCWD as u64, c"/".as_ptr() as u64, 0, 0, 0]);
    };
    no_extended_attributes: SYS_setxattr, |dir: &Path| {
        enter(&grant(dir, true));
        let _ = rustix::fs::setxattr(dir, c"user.a", b"", rustix::fs::XattrFlags::empty());
    };
}

/// What the sandbox does not allow, a process outside does, for files in the shared directory alone.
#[test]
fn attributes_change_in_writable_directories() {
    if let Some(dir) = is_inside() {
        let (shared, other) = (dir.join("shared"), dir.join("other"));
        for directory in [&shared, &other] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), "").unwrap();
        }
        let lg = Path::new(env!("CARGO_BIN_EXE_lg"));
        attributes::start(lg, &[&shared]).unwrap();
        // It is the user's, to be read.
        let grants = [grant(&shared, true), grant(&dir, false)].concat();
        enter(&grants);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let change = |path: &Path| {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
            let found = rustix::fs::openat(CWD, path, flags, 0.into())?;
            host::set_mode(found.as_fd(), 0o751)
        };
        change(&shared.join("file")).unwrap();
        assert_eq!(mode(&shared.join("file")), 0o751);
        let file = File::open(shared.join("file")).unwrap();
        // Not every file system has them.
        if let Err(error) = host::set_xattr(file.as_fd(), c"user.lg", b"value", 0) {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
        for outside in [
            other.join("file"),
            other,
            dir,
            "/dev/null".into(),
            "/".into(),
        ] {
            let before = mode(&outside);
            let error = change(&outside).unwrap_err();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EPERM),
                "{}",
                outside.display()
            );
            assert_eq!(mode(&outside), before);
        }
        println!("confined");
        return;
    }
    let output = inside("attributes_change_in_writable_directories");
    assert!(output.status.success(), "{}", confined(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("confined"));
}

/// The process that changes attributes takes no directory from who has come into lg.
#[test]
fn no_directory_is_added_later() {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_lg"))
        .arg(attributes::SUBCOMMAND)
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    let root = File::open("/").unwrap();
    let ask = |message: &[u8], with_root: bool| {
        use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        let rights = [root.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if with_root {
            assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
        }
        sendmsg(
            &ours,
            &[io::IoSlice::new(message)],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
        let mut answer = [0; 4];
        rustix::io::read(&ours, &mut answer).unwrap();
        i32::from_le_bytes(answer)
    };
    assert_eq!(ask(&[2, 0, 0, 0, 0], true), libc::EINVAL, "not yet");
    assert_eq!(ask(&[1], false), 0, "ready");
    for (message, with_root) in [(&[0][..], true), (&[1], false), (&[1], true), (&[9], true)] {
        assert_eq!(ask(message, with_root), libc::EINVAL, "{message:?}");
    }
    assert_eq!(ask(&[2, 0, 0, 0, 0], true), libc::EPERM, "a mode");
    drop(ours);
    assert!(process.wait().unwrap().success());
}

/// A vsock connects to the sockets in its directory, and the user's others stay unheard of.
#[test]
fn only_sockets_of_the_vsock() {
    if let Some(dir) = is_inside() {
        let place = |name: &str| {
            fs::create_dir(dir.join(name)).unwrap();
            dir.join(name).join("socket")
        };
        let (own, other) = (place("own"), place("other"));
        let _listeners = [&own, &other].map(|path| UnixListener::bind(path).unwrap());
        let needs = Needs {
            sockets: own.parent(),
            ..Needs::default()
        };
        let version = sandbox::enter(&needs).unwrap().landlock;
        UnixStream::connect(own).unwrap();
        let refused = UnixStream::connect(other).is_err();
        assert_eq!(refused, version >= 9, "version {version}");
        println!("confined");
        return;
    }
    let output = inside("only_sockets_of_the_vsock");
    assert!(output.status.success(), "{}", confined(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("confined"));
}
