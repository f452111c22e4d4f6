// SPDX-License-Identifier: GPL-2.0
//! The run loop of a vCPU: runs the Guest, and does what it stops for, until it ends. There is a thread for each.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lguest_abi::{
    LGUEST_CONSOLE_MAX, LGUEST_SHUTDOWN_PANIC, LGUEST_SHUTDOWN_POWEROFF, LGUEST_SHUTDOWN_RESTART,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::Killable;

use crate::devices::bytes::Output;
use crate::devices::Window;
use crate::machine::bus::Devices;
use crate::machine::insn::{self, Target};
use crate::machine::module::{Exit, Vcpu};
use crate::machine::pause::{Pause, STOP_SIGNAL};
use crate::machine::recorder::Recorder;
use crate::memory::Memory;
use crate::report::end::End;
use crate::report::messages::printable;
use crate::report::Error;
use crate::signal;
use crate::xen::Xen;

/// Of a panic message, this many bytes are read.
const MESSAGE_MAX: usize = 1024;

/// Drives a Guest, such as a debugger. Returns how that ended, or `None` if the Guest is to go on
/// alone; the flag says that nobody wants it any more.
pub type Driver = Box<dyn FnOnce(&mut Executor, &AtomicBool) -> Result<Option<End>, Error> + Send>;

/// All vCPUs, each in a thread of its own.
pub struct RunningVcpus {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl RunningVcpus {
    /// Runs the vCPUs until the Guest ends, the first one at first as `driver` wants it, and reports the end to
    /// `ends`.
    pub fn start(
        executors: Vec<Executor>,
        mut driver: Option<Driver>,
        ends: &Sender<End>,
    ) -> io::Result<Self> {
        signal::only_interrupt(STOP_SIGNAL)?;
        let stop = Arc::new(AtomicBool::new(false));
        let threads = executors.into_iter().enumerate().map(|(id, executor)| {
            let (driver, stop, ends) = (driver.take(), stop.clone(), ends.clone());
            let thread = thread::Builder::new().name(format!("vcpu {id}"));
            thread.spawn(move || executor.run_to_the_end(driver, &stop, &ends))
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { threads, stop })
    }

    /// The number of vCPUs.
    pub fn count(&self) -> u32 {
        self.threads.len() as u32
    }

    /// Stops the vCPUs, wherever they are. It may take long when one waits for the user's terminal: then
    /// `false`.
    pub fn stop(&self) -> bool {
        const TRIES: u32 = 100;
        self.stop.store(true, Ordering::SeqCst);
        for _ in 0..TRIES {
            // A signal that comes right before the thread goes into the Guest is lost, so more than
            // one is sent.
            let ended = |thread: &JoinHandle<()>| {
                thread.is_finished() || thread.kill(STOP_SIGNAL as i32).is_err()
            };
            // Each gets one.
            if self.threads.iter().filter(|thread| !ended(thread)).count() == 0 {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

/// A vCPU, and all that the Guest in it reaches.
pub struct Executor {
    /// The vCPU.
    pub vcpu: Vcpu,
    /// The devices that get its loads and stores which are not to RAM.
    pub devices: Devices,
    /// What a kernel of Xen's has besides.
    pub xen: Option<Arc<Xen>>,
    /// RAM.
    pub memory: Memory,
    /// Takes what the Guest prints by hypercall.
    pub printed: Output,
    /// Takes the record of what the vCPU does.
    pub recorder: Option<Recorder>,
    /// Where it stands still for those who look at it.
    pub pause: Arc<Pause>,
}

/// The outcome of one turn of the Guest's.
pub enum Step {
    /// Its request is done, and it can go on.
    Done,
    /// A debug exit, which only a debugger asks for.
    Debug {
        /// As in `struct lguest_run`.
        vector: u32,
    },
    /// It is over.
    End(End),
    /// It is over, as another vCPU has reported.
    Over,
}

impl Executor {
    /// Runs the vCPU, at first as `driver` wants it, and reports the end to `ends`.
    fn run_to_the_end(mut self, driver: Option<Driver>, stopped: &AtomicBool, ends: &Sender<End>) {
        let driven = match driver {
            Some(drive) => drive(&mut self, stopped),
            None => Ok(None),
        };
        let end = match driven {
            Ok(None) => self.run(stopped),
            driven => driven,
        };
        let recorded = self.recorder.as_mut().map_or(Ok(()), Recorder::end);
        let end = recorded.and(end);
        if let Some(end) = end.unwrap_or_else(|error| Some(End::Failed(error))) {
            self.pause.end();
            // When nobody listens any more, another end was first.
            let _ = ends.send(end);
        }
    }

    /// Runs the Guest to its end, or until `stopped` says that nobody wants it any more.
    fn run(&mut self, stopped: &AtomicBool) -> Result<Option<End>, Error> {
        while !stopped.load(Ordering::SeqCst) {
            match self.step()? {
                Step::End(end) => return Ok(Some(end)),
                Step::Over => break,
                Step::Done | Step::Debug { .. } => {}
            }
        }
        Ok(None)
    }

    /// Runs the vCPU up to its next exit, and does what that asks for.
    pub fn step(&mut self) -> Result<Step, Error> {
        let Self {
            vcpu,
            devices,
            xen,
            memory,
            printed,
            recorder,
            pause,
        } = self;
        match pause.enter(|| (vcpu.run(), vcpu.regs()))? {
            Exit::Mmio { gpa, insn } => {
                let mut regs = vcpu.regs();
                if let Err(unknown) = insn::emulate(&insn, &mut regs, &mut Bus::find(devices, gpa))
                {
                    let reason = format!("access to GPA {gpa:#x}, which is not RAM: {unknown}");
                    return Ok(Step::End(End::Death {
                        reason,
                        regs: Box::new(regs),
                    }));
                }
                vcpu.set_regs(regs);
            }
            // The queue has no eventfd.
            Exit::Notify { gpa, queue } => match xen {
                Some(xen) => xen.notify(gpa, queue),
                None => devices.notify(gpa, queue),
            },
            Exit::Console { gpa, len } => {
                let mut text = vec![0; len.min(LGUEST_CONSOLE_MAX.into()) as usize];
                if memory.read_slice(&mut text, GuestAddress(gpa)).is_ok() {
                    printed(&text);
                }
            }
            Exit::Shutdown { kind, arg } => return Ok(Step::End(shutdown(kind, arg, memory))),
            Exit::Interrupted => {}
            Exit::Over => return Ok(Step::Over),
            Exit::Trace => {
                if let Some(recorder) = recorder {
                    recorder.take()?;
                }
            }
            Exit::Death { reason } => {
                let reason = printable(reason.as_bytes());
                return Ok(Step::End(End::Death {
                    reason,
                    regs: Box::new(vcpu.regs()),
                }));
            }
            Exit::Debug { vector } => return Ok(Step::Debug { vector }),
        }
        Ok(Step::Done)
    }
}

fn shutdown(kind: u64, arg: u64, memory: &Memory) -> End {
    match u32::try_from(kind) {
        Ok(LGUEST_SHUTDOWN_POWEROFF) => End::PoweredOff(u8::try_from(arg).unwrap_or(u8::MAX)),
        Ok(LGUEST_SHUTDOWN_RESTART) => End::Restart,
        Ok(LGUEST_SHUTDOWN_PANIC) if arg == 0 => End::Panic("no message".into()),
        Ok(LGUEST_SHUTDOWN_PANIC) => End::Panic(message(arg, memory)),
        _ => End::Panic(format!("shutdown of unknown kind {kind}")),
    }
}

/// The NUL-terminated message at `gpa`.
fn message(gpa: u64, memory: &Memory) -> String {
    let mut bytes = [0; MESSAGE_MAX];
    // What lies behind the end of RAM stays 0.
    let _ = memory.read(&mut bytes, GuestAddress(gpa));
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    printable(text.trim_ascii_end())
}

/// The place that an instruction reached for: in a device's window, or nothing at all.
struct Bus<'a>(Option<(&'a dyn Window, u64)>);

impl<'a> Bus<'a> {
    fn find(devices: &'a Devices, gpa: u64) -> Self {
        Self(devices.at(gpa))
    }
}

impl Target for Bus<'_> {
    fn load(&mut self, data: &mut [u8]) {
        match &self.0 {
            Some((device, offset)) => device.load(*offset, data),
            // As on a bus where nobody answers.
            None => data.fill(0xff),
        }
    }

    fn store(&mut self, data: &[u8]) {
        if let Some((device, offset)) = &self.0 {
            device.store(*offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> Memory {
        crate::memory::create(4 << 20).unwrap()
    }

    #[test]
    fn shutdowns() {
        let memory = ram();
        memory
            .write_slice(b"VFS: no root\n\0rest", GuestAddress(0x1000))
            .unwrap();
        let end = |kind, arg| shutdown(kind, arg, &memory);
        assert!(matches!(end(0, 7), End::PoweredOff(7)));
        assert!(matches!(end(0, 256), End::PoweredOff(255)));
        assert!(matches!(end(1, 0), End::Restart));
        assert!(matches!(end(2, 0x1000), End::Panic(text) if text == "VFS: no root"));
        assert!(matches!(end(2, 0), End::Panic(_)));
        assert!(matches!(end(2, u64::MAX), End::Panic(text) if text.is_empty()));
        assert!(matches!(end(1 << 32, 0), End::Panic(_)));
    }

    #[test]
    fn a_message_at_the_end_of_ram_ends_there() {
        let memory = ram();
        memory
            .write_slice(b"oops", GuestAddress((4 << 20) - 4))
            .unwrap();
        assert_eq!(message((4 << 20) - 4, &memory), "oops");
    }

    #[test]
    fn nobody_answers_outside_of_windows() {
        let devices = Devices::default();
        let mut bus = Bus::find(&devices, 0xfec0_0000);
        let mut data = [0; 4];
        bus.load(&mut data);
        assert_eq!(data, [0xff; 4]);
        bus.store(&data);
    }
}
