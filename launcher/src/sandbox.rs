// SPDX-License-Identifier: GPL-2.0
//! The Launcher gives up what it does not need, before the Guest's first instruction.
//!
//! A Guest that finds a hole in a device gets into this process, and should find little there:
//! Landlock leaves no files but the shared directories, no network, no UNIX sockets and nobody to
//! send signals to; seccomp leaves no system calls but those that threads, streams and devices are
//! served with, so no new programs. What was opened before stays open: RAM, disks, a network's
//! socket, `/dev/lguest`.
//!
//! Many a call does one thing that is needed and others that are not, so what decides is its
//! arguments, not its name: [`of_arguments`] is the place for one more. Calls that change a file by
//! its path are for none of these threads: Landlock does not judge what changes its mode, owner,
//! times or extended attributes, so a process of its own does that, see
//! [`attributes`](crate::devices::fs::attributes).
//!
//! Both are inherited by the threads that are started afterwards, and by nothing else: this is
//! called while there is one thread.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, ABI,
};
use lguest_abi::{
    LGUEST_IOCTL_GET_EXIT, LGUEST_IOCTL_GET_STATS, LGUEST_IOCTL_GET_VCPU_STATS,
    LGUEST_IOCTL_GET_WALK, LGUEST_IOCTL_IRQ_LINE, LGUEST_IOCTL_RUN, LGUEST_IOCTL_SET_DEBUG,
};
use nix::libc::{self, c_long, c_void, siginfo_t};
use nix::unistd::{getpid, Pid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vmm_sys_util::signal::register_signal_handler;

use crate::report::codes::Code;
use crate::report::end::LAUNCHER_ERROR;

/// The newest Landlock version that has something to give up: the network by UDP came with it. An
/// older kernel's confines less.
const LANDLOCK: ABI = ABI::V10;

/// The version that confines UNIX sockets which have a path.
const CONFINES_SOCKETS: u32 = 9;
/// The version that confines signals, and UNIX sockets which have no path.
const CONFINES_SIGNALS: u32 = 6;
/// The version that confines TCP.
const CONFINES_TCP: u32 = 4;

/// A directory that stays reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The directory.
    pub directory: PathBuf,
    /// Files in it may be changed, made and removed.
    pub write: bool,
}

/// The needs of this process from now on, beside what it has open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs<'a> {
    /// The directories that it serves.
    pub grants: &'a [Grant],
    /// Another process that it sends signals to.
    pub watcher: Option<Pid>,
    /// The directory below which it connects to UNIX sockets, and they to it.
    pub sockets: Option<&'a Path>,
    /// The function that a signal handler calls when a forbidden call ends this process.
    pub last: Option<fn()>,
}

/// As [`Needs::last`] says.
static LAST: OnceLock<fn()> = OnceLock::new();

impl Needs<'_> {
    fn writes(&self) -> bool {
        self.grants.iter().any(|grant| grant.write)
    }
}

/// The strength of the sandbox that the kernel could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The version of the kernel's Landlock; 0 if it has none.
    pub landlock: u32,
}

impl Sandbox {
    /// The things that an intruder could still reach, for want of a newer kernel. `None` if there
    /// is nothing.
    pub fn gaps(&self) -> Option<String> {
        let version = self.landlock;
        let gaps = match version {
            0 => return Some("this kernel has no Landlock, so a guest that breaks out of a device reaches the files that you can".into()),
            _ if version < CONFINES_TCP => "TCP, and UNIX sockets",
            _ if version < CONFINES_SIGNALS => "UNIX sockets",
            _ if version < CONFINES_SOCKETS => "UNIX sockets that have a path",
            _ => return None,
        };
        Some(format!(
            "this kernel's Landlock is version {version}, and does not confine {gaps}: seccomp alone does"
        ))
    }
}

/// Enters the sandbox. What `needs` names stays reachable.
///
/// # Errors
///
/// A directory that cannot be opened, or a kernel without seccomp. One without Landlock is no
/// error: the result tells.
pub fn enter(needs: &Needs<'_>) -> io::Result<Sandbox> {
    if let Some(last) = needs.last {
        let _ = LAST.set(last);
    }
    let landlock = landlock_version();
    confine_files(needs)?;
    confine_calls(allow_list(needs), !needs.grants.is_empty())?;
    Ok(Sandbox { landlock })
}

/// The same for the process that changes attributes of files, and speaks to us by its standard input:
/// see [`attributes`](crate::devices::fs::attributes).
///
/// # Errors
///
/// Those of [`enter`].
pub fn enter_for_attributes() -> io::Result<()> {
    confine_files(&Needs::default())?;
    let calls = [RUNTIME, DESCRIPTORS, MESSAGES, ATTRIBUTES].concat();
    confine_calls(filter(calls, of_arguments(&Needs::default())), false)
}

/// The version of this kernel's Landlock; 0 if it has none.
pub fn landlock_version() -> u32 {
    /// Asks for the newest version that the kernel knows.
    const VERSION: u64 = 1;
    // SAFETY: with this flag the call takes no memory, and only returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) };
    version.try_into().unwrap_or(0)
}

/// The rights in a directory that is served: no more than the file server uses there.
fn access(write: bool) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let never = AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::IoctlDev
        | AccessFs::ResolveUnix;
    match write {
        true => AccessFs::from_all(LANDLOCK) & !never,
        false => read,
    }
}

fn confine_files(needs: &Needs<'_>) -> io::Result<()> {
    let served = needs.grants.iter();
    let served = served.map(|grant| (grant.directory.as_path(), access(grant.write)));
    let sockets = needs
        .sockets
        .map(|path| (path, AccessFs::ResolveUnix.into()));
    let open = |(path, access)| Ok((PathFd::new(path)?, access));
    let opened = served.chain(sockets).map(open);
    let opened: Vec<_> = opened
        .collect::<Result<_, landlock::PathFdError>>()
        .map_err(io::Error::other)?;
    let rules = opened
        .into_iter()
        .map(|(directory, access)| Ok::<_, RulesetError>(PathBeneath::new(directory, access)));
    // A watcher is outside: seccomp sees to it that it is alone there.
    let scopes = match needs.watcher {
        Some(_) => Scope::AbstractUnixSocket.into(),
        None => Scope::from_all(LANDLOCK),
    };
    let confine = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(scopes)?
            .create()?
            .add_rules(rules)?
            .restrict_self()
    };
    confine().map(drop).map_err(io::Error::other)
}

/// The calls that memory, threads and time take, in this process and in the C library.
const RUNTIME: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    // Refused where nothing is shared: see `confine_calls`.
    libc::SYS_openat,
];

/// Descriptors that are open: streams, disks, kicks, RAM.
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_io_uring_enter,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
];

/// Looking at files, where any directory is shared. What may be opened, is for Landlock; that a path
/// exists, and who owns it, it lets everybody see.
const FILES: &[c_long] = &[
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_faccessat2,
    libc::SYS_flock,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
];

/// Making, moving and removing them, where the Guest may write to a directory. Which directory, is
/// for Landlock.
const WRITING: &[c_long] = &[
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_copy_file_range,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_umask,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
];

/// The calls of the process that changes attributes: Landlock would let it do so anywhere.
const ATTRIBUTES: &[c_long] = &[
    libc::SYS_readlinkat,
    libc::SYS_readlink,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
];

/// Sockets that are open.
const MESSAGES: &[c_long] = &[
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

/// Taking in who comes to a socket that listens already: of a vsock, or of those who ask about the Guest.
const VISITORS: &[c_long] = &[libc::SYS_accept4];

/// New connections over UNIX sockets, where there is a vsock.
const CONNECTIONS: &[c_long] = &[libc::SYS_connect];

/// What is asked of a terminal, of a socket, of a disk, of a tap interface and of the module while a
/// Guest runs. None of it puts keys into the user's terminal (TIOCSTI), makes an interface or names
/// somebody who gets signals (FIOSETOWN).
const IOCTLS: &[u64] = &[
    // Compared first: each exit of the Guest to us, and each interrupt of a device, is one.
    LGUEST_IOCTL_RUN,
    LGUEST_IOCTL_IRQ_LINE,
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TIOCGWINSZ,
    libc::TIOCGPGRP,
    libc::FIONBIO,
    BLKDISCARD,
    libc::TUNSETOFFLOAD,
    LGUEST_IOCTL_GET_STATS,
    LGUEST_IOCTL_GET_VCPU_STATS,
    LGUEST_IOCTL_SET_DEBUG,
    LGUEST_IOCTL_GET_WALK,
    LGUEST_IOCTL_GET_EXIT,
];
/// `_IO(0x12, 119)`, of `linux:include/uapi/linux/fs.h`.
const BLKDISCARD: u64 = 0x1277;

/// The commands to a descriptor. None of them names somebody who gets signals (F_SETOWN, F_SETSIG).
const FCNTLS: &[i32] = &[
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_DUPFD_CLOEXEC,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GETPIPE_SZ,
    libc::F_SETPIPE_SZ,
];

/// The requests of a thread: a name for itself, and for its memory.
const PRCTLS: &[i32] = &[libc::PR_SET_NAME, libc::PR_SET_VMA];

type Filter = Result<BpfProgram, seccompiler::Error>;

/// `opens`: files may be opened by name.
fn confine_calls(allowed: Filter, opens: bool) -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_forbidden_call)?;
    // clone3 hides from seccomp what it is to make, but a C library that hears that there is none
    // starts its threads with clone.
    let mut programs = vec![refuse(libc::SYS_clone3, libc::ENOSYS)];
    if !opens {
        // A C library looks how the kernel gives out memory before it returns some, and can do without.
        programs.push(refuse(libc::SYS_openat, libc::EACCES));
    }
    programs.push(allowed);
    for program in programs {
        let program = program.map_err(io::Error::other)?;
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// A filter by which a call fails.
fn refuse(call: c_long, errno: i32) -> Filter {
    let filter = SeccompFilter::new(
        [(call, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

fn allow_list(needs: &Needs<'_>) -> Filter {
    let mut calls = [RUNTIME, DESCRIPTORS, MESSAGES, VISITORS].concat();
    for (needed, more) in [
        (!needs.grants.is_empty(), FILES),
        (needs.writes(), WRITING),
        (needs.sockets.is_some(), CONNECTIONS),
    ] {
        calls.extend(needed.then_some(more).into_iter().flatten());
    }
    filter(calls, of_arguments(needs))
}

/// A filter for these calls, and for those of [`of_arguments`].
fn filter(calls: Vec<c_long>, of_arguments: Rules) -> Filter {
    let whole = calls.into_iter().map(|call| (call, Vec::new()));
    let rules: BTreeMap<_, _> = whole.chain(of_arguments?).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

type Rules = Result<Vec<(c_long, Vec<SeccompRule>)>, seccompiler::BackendError>;

/// The calls that are allowed with some arguments only. Each is an int, or the low half of what says
/// all that is asked here.
fn of_arguments(needs: &Needs<'_>) -> Rules {
    use SeccompCmpOp::{Eq, MaskedEq};
    let is = |index, how, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, how, value);
    // Argument `index` is one of these.
    let one_of = |index, values: &[u64]| {
        let rule = |&value| SeccompRule::new(vec![is(index, Eq, value & 0xffff_ffff)?]);
        values.iter().map(rule).collect::<Result<Vec<_>, _>>()
    };
    let commands =
        |commands: &[i32]| -> Vec<_> { commands.iter().map(|&command| command as u64).collect() };
    let signalled: Vec<_> = [Some(getpid()), needs.watcher]
        .into_iter()
        .flatten()
        .map(|pid| pid.as_raw() as u64)
        .collect();
    let mut fcntl = one_of(1, &commands(FCNTLS))?;
    // The terminal may have an owner, who would get signals.
    let signals = libc::O_ASYNC as u64;
    fcntl.push(SeccompRule::new(vec![
        is(1, Eq, libc::F_SETFL as u64)?,
        is(2, MaskedEq(signals), 0)?,
    ])?);
    let thread = libc::CLONE_THREAD as u64;
    let thread = SeccompRule::new(vec![is(0, MaskedEq(thread), thread)?])?;
    let mut rules = vec![
        (libc::SYS_fcntl, fcntl),
        (libc::SYS_ioctl, one_of(1, IOCTLS)?),
        (libc::SYS_prctl, one_of(0, &commands(PRCTLS))?),
        // A thread, not a process.
        (libc::SYS_clone, vec![thread]),
        // Nobody else's limits, and no signals for others.
        (libc::SYS_prlimit64, one_of(0, &[0])?),
        (libc::SYS_tgkill, one_of(0, &signalled)?),
        // What is in a pipe at standard input is copied.
        (libc::SYS_tee, one_of(0, &[libc::STDIN_FILENO as u64])?),
    ];
    if needs.sockets.is_some() {
        // No other family: nobody here speaks to a network by himself.
        rules.push((libc::SYS_socket, one_of(0, &[libc::AF_UNIX as u64])?));
    }
    Ok(rules)
}

/// A system call was made that is not on the list: a hole that somebody uses, or a list that is too
/// short. Either way it is the end, and the user must hear which it was.
extern "C" fn on_forbidden_call(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    /// The index of `si_syscall` in a siginfo_t, in units of its type
    /// (`linux:include/uapi/asm-generic/siginfo.h`).
    const SI_SYSCALL: usize = 6;
    // SAFETY: the kernel fills in all of a siginfo_t, and for a SIGSYS of seccomp's an int is there.
    let call = unsafe { info.cast::<i32>().add(SI_SYSCALL).read() };
    let mut text = [0; 256];
    let mut left = &mut text[..];
    // Nothing may be allocated here: another thread may be at it.
    let _ = write!(
        left,
        "\r\nlg: error[{}]: system call {call} was stopped\r\n     why: it is none of those that lg \
         needs while a guest runs\r\n     fix: {}\r\n",
        Code::Sandbox,
        Code::Sandbox.fix()
    );
    let length = 256 - left.len();
    if let Some(last) = LAST.get() {
        last();
    }
    // Not by io::stderr(), whose lock a thread may hold that waits for a reader.
    // SAFETY: reads `text`.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), length) };
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(LAUNCHER_ERROR.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile() {
        let grants = [Grant {
            directory: "/".into(),
            write: true,
        }];
        let all = Needs {
            grants: &grants,
            watcher: Some(getpid()),
            sockets: Some(Path::new("/")),
            last: None,
        };
        let some = allow_list(&Needs::default()).unwrap().len();
        assert!(some > 100 && allow_list(&all).unwrap().len() > some);
    }

    #[test]
    fn no_call_is_named_twice() {
        let needs = Needs {
            sockets: Some(Path::new("/")),
            ..Needs::default()
        };
        let of_arguments = of_arguments(&needs).unwrap().into_iter();
        let lists = [
            RUNTIME,
            DESCRIPTORS,
            FILES,
            WRITING,
            MESSAGES,
            VISITORS,
            CONNECTIONS,
        ]
        .concat();
        let mut calls: Vec<_> = of_arguments.map(|(call, _)| call).chain(lists).collect();
        let count = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), count);
    }

    #[test]
    fn an_older_kernel_is_told() {
        let gaps = |landlock| Sandbox { landlock }.gaps();
        assert!(gaps(0).unwrap().contains("no Landlock"));
        assert!(gaps(3).unwrap().contains("TCP"));
        assert!(gaps(8).unwrap().contains("version 8"));
        assert_eq!(gaps(CONFINES_SOCKETS), None);
    }
}
