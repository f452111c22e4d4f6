// SPDX-License-Identifier: GPL-2.0
//! A Launcher with selectors of its own in DS, ES, FS and GS, whose descriptors it may have taken away: the kernel
//! notices that only when it loads them again, which the switcher does on each way back.

use lguest_abi as abi;
use lguest_host_tests::{End, Result, Vm};
use std::arch::asm;
use std::io::Error;
use std::path::Path;

const GUEST: &str = "/usr/lib/lg/selftests/guests/flush";
const HOSTILE: &str = "/usr/lib/lg/selftests/hostile/instructions";
/// Entry 0 of the LDT, for CPL3.
const LDT: u16 = 7;
/// The first TLS entry of the GDT, as Linux does not spell it: with RPL 0 instead of 3.
const TLS: u16 = 12 << 3;
const ROUNDS: usize = 50;

fn main() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    // A RUN for each instruction; the first ones pin pages, which may sleep and so load the selectors anew.
    vm.device.set_debug(0, abi::LGUEST_DEBUG_STEP, [0; 2])?;
    for _ in 0..100 {
        step(&vm)?;
    }
    let calls = Calls::new()?;
    for register in [Register::Ds, Register::Es, Register::Fs, Register::Gs] {
        for (selector, set) in [(LDT, Calls::set_ldt as Set), (TLS, Calls::set_tls as Set)] {
            for _ in 0..ROUNDS {
                set(&calls, true)?;
                register.load(selector);
                step(&vm)?;
                assert_eq!(register.read(), selector, "{register:?} that is good");
                set(&calls, false)?;
                step(&vm)?;
                let left = register.read();
                assert!(
                    [0, selector].contains(&left),
                    "{register:?} is {left:#x} now"
                );
                register.load(0);
            }
        }
    }
    vm.device.set_debug(0, 0, [0; 2])?;
    assert_eq!(vm.run()?, End::PowerOff(0));
    // One address space has room for one VM.
    drop(vm);
    guests_have_no_ldt(&calls)?;
    println!("all came back");
    Ok(())
}

/// A Guest that tries selectors meets no descriptor of its Launcher's LDT, which could be a gate's.
fn guests_have_no_ldt(calls: &Calls) -> Result<()> {
    calls.set_ldt(true)?;
    let vm = Vm::load(Path::new(HOSTILE), 64 << 20, "crime=selectors")?;
    assert_eq!(vm.run()?, End::PowerOff(0));
    Ok(())
}

/// Lets the Guest do one instruction.
fn step(vm: &Vm) -> Result<()> {
    match vm.device.run() {
        Ok(run) if run.exit == abi::LGUEST_EXIT_DEBUG => Ok(()),
        Ok(run) => Err(format!("an exit of kind {}", run.exit).into()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the descriptor of a selector, or takes it away.
type Set = fn(&Calls, bool) -> Result<()>;

/// `struct user_desc` where system calls of 32-bit programs reach it.
struct Calls(*mut [u32; 4]);

impl Calls {
    fn new() -> Result<Self> {
        // SAFETY: a new mapping overlaps nothing.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        match page {
            libc::MAP_FAILED => Err(Error::last_os_error().into()),
            page => Ok(Self(page.cast())),
        }
    }

    /// Entry `number`: flat data, or an empty one.
    fn describe(&self, number: u32, present: bool) {
        const SEG_32BIT: u32 = 1 << 0;
        const READ_EXEC_ONLY: u32 = 1 << 3;
        const LIMIT_IN_PAGES: u32 = 1 << 4;
        const SEG_NOT_PRESENT: u32 = 1 << 5;
        let flags = match present {
            true => SEG_32BIT | LIMIT_IN_PAGES,
            false => READ_EXEC_ONLY | SEG_NOT_PRESENT,
        };
        let limit = if present { 0xfffff } else { 0 };
        // SAFETY: the page is ours.
        unsafe { self.0.write_volatile([number, 0, limit, flags]) };
    }

    fn set_ldt(&self, present: bool) -> Result<()> {
        const WRITE: libc::c_long = 0x11;
        self.describe(0, present);
        // SAFETY: nothing of this program uses the LDT but what loads its selectors.
        match unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, self.0, 16) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error().into()),
        }
    }

    /// By int 0x80: 64-bit programs have no set_thread_area.
    fn set_tls(&self, present: bool) -> Result<()> {
        const SET_THREAD_AREA: i64 = 243;
        self.describe(u32::from(TLS >> 3), present);
        let result: i64;
        // SAFETY: the call reads 16 bytes; nothing of this program uses the entry but what loads its selector.
        unsafe {
            asm!(
                "xchg rbx, {address}",
                "int 0x80",
                "xchg rbx, {address}",
                address = inout(reg) self.0 => _,
                inout("rax") SET_THREAD_AREA => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            )
        };
        match result as i32 {
            0 => Ok(()),
            errno => Err(Error::from_raw_os_error(-errno).into()),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Register {
    Ds,
    Es,
    Fs,
    Gs,
}

impl Register {
    fn load(self, selector: u16) {
        // SAFETY: 64-bit code does without DS, ES and GS; the base of FS, which is the thread's, is put back.
        unsafe {
            match self {
                Self::Ds => asm!("mov ds, {:e}", in(reg) u32::from(selector)),
                Self::Es => asm!("mov es, {:e}", in(reg) u32::from(selector)),
                Self::Gs => asm!("mov gs, {:e}", in(reg) u32::from(selector)),
                Self::Fs => asm!(
                    "rdfsbase {base}",
                    "mov fs, {selector:e}",
                    "wrfsbase {base}",
                    base = out(reg) _,
                    selector = in(reg) u32::from(selector),
                ),
            }
        }
    }

    fn read(self) -> u16 {
        let selector: u32;
        // SAFETY: reads a register.
        unsafe {
            match self {
                Self::Ds => asm!("mov {:e}, ds", out(reg) selector),
                Self::Es => asm!("mov {:e}, es", out(reg) selector),
                Self::Fs => asm!("mov {:e}, fs", out(reg) selector),
                Self::Gs => asm!("mov {:e}, gs", out(reg) selector),
            }
        }
        selector as u16
    }
}
