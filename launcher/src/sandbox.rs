// SPDX-License-Identifier: GPL-2.0
//! The Launcher gives up what it does not need, before the Guest's first instruction.
//!
//! A Guest that finds a hole in a device gets into this process, and should find little there:
//! Landlock leaves no files but the shared directories, and no network; seccomp leaves no system
//! calls but those that threads, streams and devices are served with, so no new programs. What was
//! opened before stays open: RAM, disks, a network's socket, `/dev/lguest`.
//!
//! Both are inherited by the threads that are started afterwards, and by nothing else: this is
//! called while there is one thread.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use landlock::{
    Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, ABI,
};
use nix::libc::{self, c_long, c_void, siginfo_t};
use nix::unistd::{getpid, Pid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vmm_sys_util::signal::register_signal_handler;

use crate::codes::Code;
use crate::end::LAUNCHER_ERROR;
use crate::terminal;

/// The Landlock version whose rights are given up. On an older kernel, fewer are.
const LANDLOCK: ABI = ABI::V7;

/// A directory that stays reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The directory.
    pub directory: PathBuf,
    /// Files in it may be changed, made and removed.
    pub write: bool,
}

/// How much the kernel could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Files and network are confined.
    pub landlock: bool,
}

/// Enters the sandbox. What `grants` names stays reachable, and of other processes, `watcher` can
/// still be sent signals.
///
/// # Errors
///
/// A directory that cannot be opened, or a kernel without seccomp. One without Landlock is no
/// error: the result tells.
pub fn enter(grants: &[Grant], watcher: Option<Pid>) -> io::Result<Sandbox> {
    let landlock = confine_files(grants)?;
    confine_calls(watcher)?;
    Ok(Sandbox { landlock })
}

/// Can this kernel confine files at all?
pub fn has_landlock() -> bool {
    /// Asks for the newest version that the kernel knows.
    const VERSION: u64 = 1;
    // SAFETY: with this flag the call takes no memory, and only returns a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, VERSION) > 0 }
}

fn confine_files(grants: &[Grant]) -> io::Result<bool> {
    let directories: Vec<_> = grants
        .iter()
        .map(|grant| PathFd::new(&grant.directory))
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let rules = grants.iter().zip(directories).map(|(grant, directory)| {
        let access = if grant.write {
            AccessFs::from_all(LANDLOCK)
        } else {
            AccessFs::from_read(LANDLOCK)
        };
        Ok::<_, RulesetError>(PathBeneath::new(directory, access))
    });
    let confine = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?
            .add_rules(rules)?
            .restrict_self()
    };
    let status = confine().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// What memory, threads and time take, in this process and in the C library.
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
    libc::SYS_prctl,
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
    libc::SYS_prlimit64,
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
    libc::SYS_fcntl,
    libc::SYS_ioctl,
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

/// Files in shared directories. Which directories, is for Landlock.
const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_getdents64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_faccessat2,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_chmod,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_flock,
    libc::SYS_copy_file_range,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_geteuid,
    libc::SYS_getegid,
];

/// Connections over UNIX sockets.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
];

fn confine_calls(watcher: Option<Pid>) -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_forbidden_call)?;
    for program in [without_clone3(), allow_list(watcher)] {
        let program = program.map_err(io::Error::other)?;
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// clone3 hides from seccomp what it is to make, but a C library that hears that there is none
/// starts its threads with clone.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        TargetArch::x86_64,
    )?
    .try_into()
}

fn allow_list(watcher: Option<Pid>) -> Result<BpfProgram, seccompiler::BackendError> {
    let always = [RUNTIME, DESCRIPTORS, FILES, SOCKETS].concat();
    let mut rules: BTreeMap<_, _> = always.into_iter().map(|call| (call, Vec::new())).collect();
    let argument = |index, operator, value| {
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    // No other family: nobody here speaks to a network by himself.
    let unix = argument(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
    rules.insert(libc::SYS_socket, vec![unix.clone()]);
    rules.insert(libc::SYS_socketpair, vec![unix]);
    // A thread, not a process.
    let thread = libc::CLONE_THREAD as u64;
    let thread = argument(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![thread]);
    // Nobody else's processes.
    let signalled = [Some(getpid()), watcher].into_iter().flatten();
    let signalled = signalled.map(|pid| argument(0, SeccompCmpOp::Eq, pid.as_raw() as u64));
    rules.insert(libc::SYS_tgkill, signalled.collect::<Result<_, _>>()?);
    SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// A system call was made that is not on the list: a hole that somebody uses, or a list that is too
/// short. Either way it is the end, and the user must hear which it was.
extern "C" fn on_forbidden_call(_: i32, info: *mut siginfo_t, _: *mut c_void) {
    /// Where `si_syscall` is in a siginfo_t, in units of its type (`linux:include/uapi/asm-generic/siginfo.h`).
    const SI_SYSCALL: usize = 6;
    // SAFETY: the kernel fills in all of a siginfo_t, and for a SIGSYS of seccomp's an int is there.
    let call = unsafe { info.cast::<i32>().add(SI_SYSCALL).read() };
    let mut text = [0; 256];
    let mut left = &mut text[..];
    // Nothing may be allocated here: another thread may be at it.
    let _ = write!(
        left,
        "\r\nlg: error[{}]: system call {call} was stopped\r\n     why: it is none of those that lg \
         needs while a guest runs\r\n     fix: trust this guest no further, and report it\r\n",
        Code::Sandbox
    );
    let length = 256 - left.len();
    terminal::restore();
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
    fn the_filter_compiles() {
        assert!(allow_list(None).unwrap().len() > 100);
    }

    #[test]
    fn no_call_is_named_twice() {
        let mut calls = [RUNTIME, DESCRIPTORS, FILES, SOCKETS].concat();
        let count = calls.len();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), count);
    }
}
