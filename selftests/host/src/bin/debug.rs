// SPDX-License-Identifier: GPL-2.0
//! A debugger for selftests/guests/src/bin/debugged.rs, instruction by instruction; and what a bad one tries.

use lguest_abi as abi;
use lguest_host_tests::{Device, End, Ram, Result, Vm};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const GUEST: &str = "/usr/lib/lg/selftests/guests/debugged";
/// A Guest with a monitor.
const MONITOR: &str = "/usr/lib/lg/selftests/guests/monitor";
const HOSTILE: &str = "/usr/lib/lg/selftests/hostile";
/// The address of a bare Guest's image in its address space, from GPA 0.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// The address at which the Guest's programs begin.
const CODE: u64 = 0x40_0000;
const TF: u64 = 1 << 8;
const STEP: u32 = abi::LGUEST_DEBUG_STEP;
const BREAKPOINTS: u32 = abi::LGUEST_DEBUG_BREAKPOINTS;
const INJECT: u32 = abi::LGUEST_DEBUG_INJECT_BP;
/// Vectors that a debug exit may have.
const DB: u32 = 1;
const BP: u32 = 3;
/// No part of the Guest takes as many steps.
const MANY: usize = 100_000;

fn main() -> Result<()> {
    refusals()?;
    let mut debugger = Debugger::start("stepped")?;
    debugger.user_mode()?;
    debugger.kernel_mode()?;
    debugger.kernel_breakpoint()?;
    debugger.user_breakpoint()?;
    debugger.breakpoints_of_the_guest()?;
    debugger.steps_of_the_guest()?;
    debugger.interrupt()?;
    assert_eq!(debugger.vm.run()?, End::PowerOff(0));
    let over = debugger.vm.device.set_debug(0, STEP, [0; 2]);
    assert_eq!(errno(over), Some(libc::ENXIO), "SET_DEBUG after the end");
    // One address space has room for one VM.
    drop(debugger);

    Debugger::start("stepped")?.breakpoints_for_ever()?;
    monitor()?;
    hostile_guests()?;
    println!("all seen");
    Ok(())
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// A Guest, and what its last RUN came back with.
struct Debugger {
    vm: Vm,
    run: abi::lguest_run,
}

impl Debugger {
    fn start(command_line: &str) -> Result<Self> {
        Self::of(GUEST, command_line)
    }

    fn of(guest: &str, command_line: &str) -> Result<Self> {
        let vm = Vm::load(Path::new(guest), 64 << 20, command_line)?;
        let run = abi::lguest_run::default();
        Ok(Self { vm, run })
    }

    fn ask(&self, flags: u32) -> io::Result<i32> {
        self.vm.device.set_debug(0, flags, [0; 2])
    }

    /// Runs up to the next exit and returns its kind. The Guest's own TF may show.
    fn go(&mut self) -> Result<u32> {
        let run = &mut self.run;
        self.vm
            .device
            .ioctl_on(abi::LGUEST_IOCTL_RUN, run)
            .map_err(|error| format!("RUN at {:#x}: {error}", run.regs.rip))?;
        // SAFETY: all members of the union are plain numbers.
        let (shutdown, reason) = unsafe {
            let exits = &self.run.__bindgen_anon_1;
            (exits.shutdown, exits.death.reason)
        };
        match self.run.exit {
            abi::LGUEST_EXIT_SHUTDOWN if shutdown.kind == u64::from(abi::LGUEST_SHUTDOWN_PANIC) => {
                Err(format!("the guest: {}", self.vm.text_at(shutdown.arg)).into())
            }
            abi::LGUEST_EXIT_DEATH => {
                let text: String = reason.iter().map(|&c| c as u8 as char).collect();
                Err(format!("the guest died: {text}").into())
            }
            exit => Ok(exit),
        }
    }

    /// Runs up to a debug exit and returns its vector.
    fn stop(&mut self) -> Result<u32> {
        let (exit, regs) = (self.go()?, self.run.regs);
        let rip = regs.rip;
        assert_eq!(exit, abi::LGUEST_EXIT_DEBUG, "the exit at {rip:#x}");
        assert_eq!(regs.rflags & TF, 0, "TF shows at {rip:#x}");
        // SAFETY: the exit says that it was written.
        Ok(unsafe { self.run.__bindgen_anon_1.debug }.vector)
    }

    /// Takes one step and returns where it led: RIP, and whether that is in user mode.
    fn step(&mut self) -> Result<(u64, bool)> {
        assert_eq!(self.stop()?, DB, "a step to {:#x}", self.run.regs.rip);
        Ok((self.run.regs.rip, self.run.regs.user_mode != 0))
    }

    /// Runs until the Guest says that `part` begins; returns what it tells about it.
    fn wait_for(&mut self, part: u64) -> Result<[u64; 3]> {
        let exit = self.go()?;
        let regs = self.run.regs;
        assert_eq!((exit, regs.rdi), (abi::LGUEST_EXIT_NOTIFY, part));
        Ok([regs.rsi, regs.rdx, regs.r10])
    }

    fn set_rip(&mut self, rip: u64) {
        self.run.regs.rip = rip;
        self.run.set_regs = 1;
    }

    /// Every step of a program: each instruction once, and each event leads to the first instruction of its handler.
    fn user_mode(&mut self) -> Result<()> {
        let [syscall, event, _] = self.wait_for(1)?;
        self.ask(STEP)?;
        let (mut seen, mut entries) = (Vec::new(), Vec::new());
        let mut from = None;
        for n in 0.. {
            assert!(n < MANY, "the program does not end: {seen:x?}");
            let (rip, user) = self.step()?;
            match from {
                Some(from) if !user => entries.push((from, rip)),
                _ => {}
            }
            from = user.then_some(rip - CODE);
            seen.extend(from);
            if entries.last().is_some_and(|&(from, _)| from == LAST) {
                break;
            }
        }
        const LAST: u64 = 33;
        let loop_of_two = [18, 20, 18, 20];
        let steps = [
            &[0, 1, 6, 8, 10, 11, 13][..],
            &loop_of_two,
            &[22, 29, 30, 31, 32, LAST],
        ]
        .concat();
        assert_eq!(seen, steps, "offsets in the program");
        let expected = [
            (6, syscall),
            (8, event),
            (10, event),
            (11, event),
            (LAST, event),
        ];
        assert_eq!(entries, expected, "ways into the kernel");
        self.ask(0)?;
        Ok(())
    }

    /// The same in kernel mode, with an emulated instruction, a hypercall, and a load from a device.
    fn kernel_mode(&mut self) -> Result<()> {
        let [start, event, device] = self.wait_for(2)?;
        self.ask(STEP)?;
        let mut seen = Vec::new();
        let mut last = 0;
        for n in 0.. {
            assert!(n < MANY, "the function does not end: {seen:x?}");
            if self.go()? == abi::LGUEST_EXIT_MMIO {
                // SAFETY: the exit says that it was written.
                let mmio = unsafe { self.run.__bindgen_anon_1.mmio };
                assert_eq!((self.run.regs.rip - start, mmio.gpa), (14, device));
                // The debugger's half of the step; the other half executes nothing.
                self.run.regs.rax = 0x1234_5678;
                self.set_rip(start + 16);
                self.go()?;
                assert_eq!(self.run.regs.rip, start + 16, "after the device was read");
            }
            assert_eq!(self.run.exit, abi::LGUEST_EXIT_DEBUG);
            let rip = self.run.regs.rip;
            if rip == event {
                assert!([11, 12].contains(&last), "an event at {last}");
            }
            last = rip.wrapping_sub(start);
            if last < 22 {
                seen.push(last);
            }
            if last == 21 {
                break;
            }
        }
        assert_eq!(seen, [0, 1, 4, 9, 11, 12, 14, 16, 17, 18, 19, 20, 21]);
        self.ask(0)?;
        Ok(())
    }

    /// A breakpoint on a function that is called three times.
    fn kernel_breakpoint(&mut self) -> Result<()> {
        let [function, ..] = self.wait_for(3)?;
        for number in 0..3 {
            let byte = self.insert(function - IMAGE);
            self.ask(BREAKPOINTS)?;
            assert_eq!(self.stop()?, BP);
            let regs = self.run.regs;
            assert_eq!((regs.rip, regs.user_mode), (function + 1, 0));
            assert_eq!(regs.rdi, number, "the function's argument");
            self.vm.ram.write(function - IMAGE, &byte);
            self.set_rip(function);
            self.ask(BREAKPOINTS | STEP)?;
            assert_eq!(self.step()?, (function + 4, false));
            assert_eq!(self.run.regs.rax, number + 1);
        }
        self.ask(0)?;
        Ok(())
    }

    /// Writes an INT3; returns what was there.
    fn insert(&self, gpa: u64) -> Vec<u8> {
        let byte = self.vm.ram.read(gpa, 1);
        self.vm.ram.write(gpa, &[0xcc]);
        byte
    }

    fn user_breakpoint(&mut self) -> Result<()> {
        let [code, ..] = self.wait_for(4)?;
        let byte = self.insert(code + 1);
        self.ask(BREAKPOINTS)?;
        assert_eq!(self.stop()?, BP);
        assert_eq!((self.run.regs.rip, self.run.regs.user_mode), (CODE + 2, 1));
        self.vm.ram.write(code + 1, &byte);
        self.set_rip(CODE + 1);
        self.ask(0)?;
        Ok(())
    }

    /// INT3s that are not ours go back to the Guest: one in its program, one in its kernel.
    fn breakpoints_of_the_guest(&mut self) -> Result<()> {
        self.wait_for(5)?;
        self.ask(BREAKPOINTS)?;
        for (user_mode, next) in [(1, BREAKPOINTS), (0, 0)] {
            assert_eq!(self.stop()?, BP);
            assert_eq!(self.run.regs.user_mode, user_mode);
            self.ask(next | INJECT)?;
        }
        Ok(())
    }

    /// A Guest that steps its own programs while it is stepped itself.
    fn steps_of_the_guest(&mut self) -> Result<()> {
        self.wait_for(6)?;
        self.ask(STEP)?;
        for n in 0.. {
            assert!(n < MANY, "it does not end");
            let exit = self.go()?;
            if exit == abi::LGUEST_EXIT_NOTIFY {
                break;
            }
            assert_eq!(exit, abi::LGUEST_EXIT_DEBUG);
        }
        assert_eq!(self.run.regs.rdi, 7, "the next part");
        Ok(())
    }

    /// A timer's interrupt waits as long as there are steps, and comes right after; then through its handler to the program.
    fn interrupt(&mut self) -> Result<()> {
        // Its part has begun.
        let handler = self.run.regs.rsi;
        self.ask(STEP)?;
        let mut steps = 0;
        let patience = Instant::now();
        while steps < 500 || patience.elapsed() < Duration::from_millis(100) {
            let (rip, user) = self.step()?;
            if steps > 0 {
                assert!(user && rip < CODE + 5, "an interrupt: {rip:#x}");
            }
            steps += usize::from(user);
        }
        let byte = self.insert(handler - IMAGE);
        self.ask(BREAKPOINTS)?;
        assert_eq!(self.stop()?, BP);
        assert_eq!(self.run.regs.rip, handler + 1);
        self.vm.ram.write(handler - IMAGE, &byte);
        self.set_rip(handler);
        self.ask(STEP)?;
        for n in 0.. {
            assert!(n < MANY, "the handler does not end");
            if let (rip, true) = self.step()? {
                assert_eq!(rip, CODE + 5, "where the handler leads to");
                break;
            }
        }
        self.ask(0)?;
        Ok(())
    }

    /// A program that hits breakpoints for ever, with a debugger that goes on for ever: only this process is busy.
    fn breakpoints_for_ever(&mut self) -> Result<()> {
        let [code, ..] = self
            .wait_for(1)
            .and_then(|_| (2..=4).try_fold([0; 3], |_, part| self.skip_to(part)))?;
        // int3; jmp .-1
        self.vm.ram.write(code, &[0xcc, 0xeb, 0xfd]);
        self.ask(BREAKPOINTS)?;
        let mut hits = 0;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            assert_eq!(self.stop()?, BP);
            assert_eq!(self.run.regs.rip, CODE + 1);
            hits += 1;
        }
        assert!(hits > 100, "only {hits} breakpoints in a second");
        Ok(())
    }

    /// Lets the Guest run to `part`, and answers for the device on the way.
    fn skip_to(&mut self, part: u64) -> Result<[u64; 3]> {
        loop {
            match self.go()? {
                abi::LGUEST_EXIT_MMIO => {
                    self.run.regs.rax = 0x1234_5678;
                    self.set_rip(self.run.regs.rip + 2);
                }
                exit => {
                    let regs = self.run.regs;
                    assert_eq!((exit, regs.rdi), (abi::LGUEST_EXIT_NOTIFY, part));
                    return Ok([regs.rsi, regs.rdx, regs.r10]);
                }
            }
        }
    }
}

/// The same calls of a monitor, each of them a step from the kernel's SYSCALL to the entry point. The Guest sees to the
/// registers.
fn monitor() -> Result<()> {
    let slot = u64::from(abi::LGUEST_MONITOR_CODE);
    let is_monitor = |rip: u64| (rip >> 39) & 0x1ff == slot && rip >> 48 == 0xffff;
    let mut debugger = Debugger::of(MONITOR, "stepped")?;
    debugger.ask(STEP)?;
    let (mut calls, mut entry) = (0, None);
    let mut last = debugger.run.regs.rip;
    for n in 0.. {
        assert!(n < 5 * MANY, "it does not end, after {calls} calls");
        let exit = debugger.go()?;
        match exit {
            abi::LGUEST_EXIT_SHUTDOWN => break,
            abi::LGUEST_EXIT_CONSOLE => continue,
            _ => assert_eq!(exit, abi::LGUEST_EXIT_DEBUG),
        }
        let regs = debugger.run.regs;
        assert_eq!(regs.rflags & TF, 0, "TF shows at {:#x}", regs.rip);
        if is_monitor(regs.rip) && !is_monitor(last) {
            assert_eq!(regs.rip, *entry.get_or_insert(regs.rip), "where it begins");
            calls += 1;
        }
        last = regs.rip;
    }
    // Four that note registers, three that are forwarded, the line, and the end.
    assert_eq!(calls, 9);
    Ok(())
}

fn refusals() -> Result<()> {
    let device = Device::open()?;
    let early = device.set_debug(0, STEP, [0; 2]);
    assert_eq!(errno(early), Some(libc::ENXIO), "without a vCPU");
    let ram = Ram::new(4 << 20)?;
    device.add_memory(0, ram.size(), ram.hva())?;
    device.create_vcpu(0x1000, 0x1000, 0)?;
    for (vcpu, flags, reserved) in [
        (abi::LGUEST_MAX_VCPUS, 0, [0; 2]),
        (u32::MAX, 0, [0; 2]),
        (0, 8, [0; 2]),
        (0, 1 << 31, [0; 2]),
        (0, u32::MAX, [0; 2]),
        (0, STEP, [1, 0]),
        (0, STEP, [0, 1 << 63]),
    ] {
        let result = device.set_debug(vcpu, flags, reserved);
        assert_eq!(
            errno(result),
            Some(libc::EINVAL),
            "{vcpu} {flags:#x} {reserved:?}"
        );
    }
    // A #BP before the Guest has an entry point for it ends it, and nobody else.
    device.set_debug(0, STEP | INJECT, [0; 2])?;
    let run = device.run()?;
    assert_eq!(run.exit, abi::LGUEST_EXIT_DEATH);
    Ok(())
}

/// Guests which play with TF, with stacks and returns, with garbage, stepped for a while: the Host never minds.
fn hostile_guests() -> Result<()> {
    for (program, crime) in [
        ("instructions", "trap-flag"),
        ("instructions", "mov-ss"),
        ("instructions", "popf"),
        ("instructions", "32-bit"),
        ("instructions", "random-bytes"),
        ("events", "eret-flags"),
        ("events", "eret-garbage"),
        ("events", "stack-overflow"),
        ("hypercalls", "from-the-end-of-the-lower-half"),
        ("hypercalls", "random-arguments"),
        ("shared_page", "garbage-everywhere"),
        ("switcher", "entries-in-the-slot"),
    ] {
        let vm = Vm::load(
            &Path::new(HOSTILE).join(program),
            64 << 20,
            &format!("crime={crime}"),
        )?;
        vm.device.set_debug(0, STEP | BREAKPOINTS, [0; 2])?;
        let (start, mut steps) = (Instant::now(), 0);
        while steps <= 100 || start.elapsed() < Duration::from_millis(500) {
            match vm.device.run()?.exit {
                abi::LGUEST_EXIT_SHUTDOWN => break,
                abi::LGUEST_EXIT_DEATH => break,
                _ => steps += 1,
            }
        }
        assert!(steps > 100, "{program}:{crime} took {steps} steps");
    }
    Ok(())
}
