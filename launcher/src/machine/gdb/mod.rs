// SPDX-License-Identifier: GPL-2.0
//! `lg run --gdb`: a debugger on the vCPU, by gdb's remote protocol.
//!
//! gdb is waited for before the Guest's first instruction, and before the sandbox. Its session runs
//! in the vCPU's thread, which either runs the Guest or listens to gdb. What gdb sends while the
//! Guest runs is noticed by a second thread, which then interrupts the vCPU.

pub mod memory;
pub mod registers;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use lguest_abi::{
    lguest_regs, LGUEST_DEBUG_BREAKPOINTS, LGUEST_DEBUG_INJECT_BP, LGUEST_DEBUG_STEP,
};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags};
use nix::sys::pthread::{pthread_kill, pthread_self, Pthread};
use nix::sys::socket::{recv, MsgFlags};

use crate::cli::place::GdbError;
use crate::machine::cpu::{Executor, Step};
use crate::machine::pause::STOP_SIGNAL;
use crate::machine::view::page_table;
use crate::queries;
use crate::report::end::End;
use crate::report::messages::say;
use crate::report::system::setup;
use crate::report::Error;
use crate::socket_file;
use memory::Debugged;
use registers::{Regs, X86_64};

/// Vector of a breakpoint.
const BP: u32 = 3;
/// Length of INT3.
const INT3: u64 = 1;

/// A gdb that has come.
pub struct Gdb(UnixStream);

/// The connection, for [`GdbStub`], which writes single bytes.
struct Stream {
    socket: UnixStream,
    output: Vec<u8>,
}

impl Connection for Stream {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A gdb that kills its Guest does not wait for the answer. That it has gone is noticed when
        // there is nothing to read, and no sooner, or the kill would be lost.
        let _ = Write::write_all(&mut self.socket, &self.output);
        self.output.clear();
        Ok(())
    }
}

impl ConnectionExt for Stream {
    fn read(&mut self) -> io::Result<u8> {
        self.flush()?;
        let mut byte = [0];
        Read::read_exact(&mut self.socket, &mut byte)?;
        Ok(byte[0])
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        self.flush()?;
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.socket.as_raw_fd(), &mut byte, flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            // Also at the end, which `read` tells.
            result => result.map(|_| Some(byte[0])).map_err(io::Error::from),
        }
    }
}

impl Gdb {
    /// Waits for it at `place`. Nobody else can come there afterwards.
    pub fn wait(place: &Path) -> Result<Self, Error> {
        let failed = |source| GdbError::Wait {
            place: place.into(),
            source,
        };
        // Whoever comes has all of the Guest, and so what the Guest has of us.
        let (listener, _file) = socket_file::listen(place).map_err(GdbError::Socket)?;
        listener.set_nonblocking(false).map_err(failed)?;
        say(&format!(
            "waiting for gdb: target remote {}",
            place.display()
        ));
        let (stream, _) = listener.accept().map_err(failed)?;
        Ok(Self(stream))
    }

    /// Lets gdb drive `guest`. Returns how that ended, or `None` if gdb has gone and the Guest is
    /// to go on alone; `stopped` says that nobody wants it any more.
    pub fn serve(self, guest: &mut Executor, stopped: &AtomicBool) -> Result<Option<End>, Error> {
        let watched = self.0.try_clone().map_err(setup("the connection to gdb"))?;
        let stream = Stream {
            socket: self.0,
            output: Vec::new(),
        };
        let alarm = Alarm::default();
        let vcpu = pthread_self();
        thread::scope(|scope| {
            scope.spawn(|| alarm.watch(watched.as_fd(), vcpu));
            let mut session = Session {
                memory: Debugged::new(guest.memory.clone()),
                guest,
                alarm: &alarm,
                stopped,
                stepping: false,
                end: None,
            };
            let reason = GdbStub::new(stream).run_blocking::<Session<'_>>(&mut session);
            alarm.over.store(true, Ordering::SeqCst);
            session.close(reason)
        })
    }
}

/// Interrupts the vCPU when gdb has something to say.
#[derive(Default)]
struct Alarm {
    /// The vCPU is in the Guest, or about to enter it.
    running: AtomicBool,
    over: AtomicBool,
}

impl Alarm {
    fn watch(&self, gdb: BorrowedFd<'_>, vcpu: Pthread) {
        const PERIOD_MS: u16 = 100;
        while !self.over.load(Ordering::SeqCst) {
            let mut fds = [PollFd::new(gdb, PollFlags::POLLIN)];
            if !matches!(poll(&mut fds, PERIOD_MS), Ok(1)) {
                continue;
            }
            // A signal right before the vCPU enters the Guest is lost, so it is sent until what gdb
            // said has been read.
            if self.running.load(Ordering::SeqCst) {
                let _ = pthread_kill(vcpu, STOP_SIGNAL);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The machine as gdb drives it.
struct Session<'a> {
    guest: &'a mut Executor,
    memory: Debugged,
    alarm: &'a Alarm,
    stopped: &'a AtomicBool,
    stepping: bool,
    /// The Guest has ended.
    end: Option<End>,
}

type StopReason = SingleThreadStopReason<u64>;

impl Session<'_> {
    fn cr3(&self) -> u64 {
        self.guest.vcpu.regs().cr3
    }

    fn ask(&mut self, flags: u32) -> Result<(), Error> {
        self.guest.vcpu.set_debug(flags)?;
        Ok(())
    }

    /// The events that the vCPU is to look for while it runs.
    fn flags(&self) -> u32 {
        let step = if self.stepping { LGUEST_DEBUG_STEP } else { 0 };
        LGUEST_DEBUG_BREAKPOINTS | step
    }

    fn go(&mut self, stepping: bool) -> Result<(), Error> {
        self.stepping = stepping;
        match self.end {
            Some(_) => Ok(()),
            None => self.ask(self.flags()),
        }
    }

    /// One more RUN. `None` if there is nothing to tell gdb.
    fn run(&mut self) -> Result<Option<StopReason>, Error> {
        match self.guest.step()? {
            // With gdb there is one vCPU, which has reported its end itself.
            Step::Done | Step::Over => Ok(None),
            Step::Debug { vector: BP } => {
                let mut regs = self.guest.vcpu.regs();
                let at = regs.rip.wrapping_sub(INT3);
                if self.memory.is_breakpoint(at) {
                    regs.rip = at;
                    self.guest.vcpu.set_regs(regs);
                    return Ok(Some(StopReason::SwBreak(())));
                }
                // The Guest's own.
                self.ask(self.flags() | LGUEST_DEBUG_INJECT_BP)?;
                Ok(None)
            }
            Step::Debug { .. } => Ok(Some(StopReason::DoneStep)),
            Step::End(end) => {
                let reason = match end {
                    // Its last state can be looked at.
                    End::Panic(_) | End::Death { .. } => StopReason::Signal(Signal::SIGABRT),
                    _ => StopReason::Exited(end.status()),
                };
                self.end = Some(end);
                Ok(Some(reason))
            }
        }
    }

    /// The Guest's fate, now that gdb is done with it.
    fn close<C: fmt::Display>(
        mut self,
        reason: Result<DisconnectReason, gdbstub::stub::GdbStubError<Error, C>>,
    ) -> Result<Option<End>, Error> {
        self.memory.remove_all();
        match reason {
            Ok(DisconnectReason::Kill) => return Ok(Some(self.end.unwrap_or(End::Left))),
            Ok(_) => {}
            Err(error) => {
                let what = error.to_string();
                match error.into_target_error() {
                    Some(error) => return Err(error),
                    None => say(&format!("without gdb from here on: {what}")),
                }
            }
        }
        if self.end.is_none() {
            self.ask(0)?;
        }
        Ok(self.end)
    }
}

impl BlockingEventLoop for Session<'_> {
    type Target = Self;
    type Connection = Stream;
    type StopReason = StopReason;

    fn wait_for_stop_reason(
        session: &mut Self,
        gdb: &mut Stream,
    ) -> Result<Event<StopReason>, WaitForStopReasonError<Error, io::Error>> {
        if session.end.is_some() {
            return Ok(Event::TargetStopped(StopReason::Terminated(
                Signal::SIGABRT,
            )));
        }
        loop {
            if gdb
                .peek()
                .map_err(WaitForStopReasonError::Connection)?
                .is_some()
            {
                let byte = gdb.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
            session.alarm.running.store(true, Ordering::SeqCst);
            let reason = session.run();
            session.alarm.running.store(false, Ordering::SeqCst);
            if let Some(reason) = reason.map_err(WaitForStopReasonError::Target)? {
                return Ok(Event::TargetStopped(reason));
            }
            if session.stopped.load(Ordering::SeqCst) {
                return Ok(Event::TargetStopped(StopReason::Exited(0)));
            }
        }
    }

    fn on_interrupt(_: &mut Self) -> Result<Option<StopReason>, Error> {
        Ok(Some(StopReason::Signal(Signal::SIGINT)))
    }
}

impl Target for Session<'_> {
    type Arch = X86_64;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

/// The commands of ours: `monitor pagetable ADDRESS`.
impl MonitorCmd for Session<'_> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Error> {
        let text = match pagetable_of(command) {
            Some(gva) => {
                let vm = self.guest.vcpu.vm();
                page_table(vm, 0, &self.guest.memory, self.cr3(), gva).to_string()
            }
            None => "pagetable ADDRESS, in hexadecimal: what it is in the guest's page tables, and in the shadow\n"
                .into(),
        };
        out.write_raw(text.as_bytes());
        Ok(())
    }
}

/// The address in `pagetable ADDRESS`.
fn pagetable_of(command: &[u8]) -> Option<u64> {
    let words = std::str::from_utf8(command).ok()?;
    let mut words = words.split_ascii_whitespace();
    let (name, address) = (words.next()?, words.next()?);
    if name != "pagetable" || words.next().is_some() {
        return None;
    }
    queries::address(address)
}

impl SingleThreadBase for Session<'_> {
    fn read_registers(&mut self, regs: &mut Regs) -> TargetResult<(), Self> {
        regs.0 = self.guest.vcpu.regs();
        Ok(())
    }

    fn write_registers(&mut self, regs: &Regs) -> TargetResult<(), Self> {
        let old = self.guest.vcpu.regs();
        self.guest.vcpu.set_regs(lguest_regs {
            fs_base: old.fs_base,
            gs_base: old.gs_base,
            cr2: old.cr2,
            cr3: old.cr3,
            user_mode: old.user_mode,
            ..regs.0
        });
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        match self.memory.read(self.cr3(), start, data) {
            0 if !data.is_empty() => Err(TargetError::NonFatal),
            len => Ok(len),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8]) -> TargetResult<(), Self> {
        let cr3 = self.cr3();
        let written = self.memory.write(cr3, start, data);
        written.then_some(()).ok_or(TargetError::NonFatal)
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

/// The signals that gdb would have us deliver mean nothing to a machine.
impl SingleThreadResume for Session<'_> {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), Error> {
        self.go(false)
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Session<'_> {
    fn step(&mut self, _: Option<Signal>) -> Result<(), Error> {
        self.go(true)
    }
}

impl Breakpoints for Session<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Session<'_> {
    fn add_sw_breakpoint(&mut self, gva: u64, _: usize) -> TargetResult<bool, Self> {
        let cr3 = self.cr3();
        Ok(self.memory.insert(cr3, gva))
    }

    fn remove_sw_breakpoint(&mut self, gva: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.memory.remove(gva))
    }
}
