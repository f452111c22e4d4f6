// SPDX-License-Identifier: GPL-2.0
//! One VM after the other in one process, where the second is entered on a CPU that knows the first one's slot by heart.
//!
//! A thread on CPU 1 has run the first VM, so that CPU has translations of the slot. A thread on CPU 0 closes that VM;
//! the one on CPU 1 makes the next as soon as it may, and enters. Were the pages behind the slot given back before
//! every CPU has forgotten them, it would enter a freed root at CPL0, and the Host would be gone. A kprobe makes the
//! time between the two long: what asks all CPUs to flush is held up for some milliseconds.
//!
//! The CPU must keep its TLB until it enters. QEMU's do, but for those with protection keys, whose TLB QEMU empties at
//! each change of PKRU: it takes a `--cpu EPYC` or the like to see this fail.

use lguest_host_tests::{pin_to_cpu, Device, Result, Vm};
use std::fs;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;

const GUEST: &str = "/usr/lib/lg/guests/hello";
const ROUNDS: usize = 30;

fn main() -> Result<()> {
    let _probe = hold_up(c"on_each_cpu_cond_mask")?;
    for _ in 0..ROUNDS {
        one_after_the_other()?;
    }
    println!("all survived");
    Ok(())
}

fn one_after_the_other() -> Result<()> {
    let first = Vm::load(Path::new(GUEST), 4 << 20, "")?;
    let (second, start) = Vm::prepare(Path::new(GUEST), 4 << 20, "")?;
    let Vm { device, ram: _ram } = first;
    let (close, closing) = mpsc::channel::<Device>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pin_to_cpu(0).expect("CPU 0");
            drop(closing.recv().expect("a device to close"));
        });
        let runner = scope.spawn(move || {
            pin_to_cpu(1).expect("CPU 1");
            device.run().expect("a guest that prints something");
            close.send(device).expect("a thread that closes it");
            while let Err(error) = second.create_vcpu(start) {
                assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
            }
            let run = second.device.run().expect("the second guest");
            assert_eq!(run.exit, lguest_abi::LGUEST_EXIT_CONSOLE, "it says hello");
        });
        runner.join().unwrap();
    });
    Ok(())
}

/// Makes every call of this kernel function by this process take milliseconds, until the result is dropped.
fn hold_up(function: &std::ffi::CStr) -> Result<OwnedFd> {
    const TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";
    const SET_BPF: libc::c_ulong = 0x4004_2408;
    const ENABLE: libc::c_ulong = 0x2400;
    /// `struct perf_event_attr` as far as a kprobe needs it (PERF_ATTR_SIZE_VER1).
    #[repr(C)]
    #[derive(Default)]
    struct Event {
        kind: u32,
        size: u32,
        config: [u64; 6],
        name: u64,
        offset: u64,
    }
    let event = Event {
        kind: fs::read_to_string(TYPE)?.trim().parse()?,
        size: size_of::<Event>() as u32,
        name: function.as_ptr() as u64,
        ..Event::default()
    };
    let program = waste_time()?;
    // SAFETY: the kernel reads the structure and the string; what it returns is a descriptor of ours.
    unsafe {
        let event = descriptor(libc::syscall(
            libc::SYS_perf_event_open,
            &event,
            -1,
            0,
            -1,
            0,
        ))?;
        for (request, argument) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
            if libc::ioctl(event.as_raw_fd(), request, argument) != 0 {
                return Err(Error::last_os_error().into());
            }
        }
        Ok(event)
    }
}

/// A BPF program for a kprobe that loops if it is this process that came by.
fn waste_time() -> Result<OwnedFd> {
    const LOAD: libc::c_long = 5;
    const KPROBE: u32 = 2;
    const ROUNDS: u64 = 50_000;
    const CURRENT_PID_TGID: u64 = 14;
    const KTIME_GET_NS: u64 = 5;
    let instruction = |code: u64, register: u64, offset: i16, immediate: u64| {
        code | (register << 8) | (u64::from(offset as u16) << 16) | (immediate << 32)
    };
    let process = u64::from(std::process::id());
    let instructions = [
        instruction(0x85, 0, 0, CURRENT_PID_TGID),
        // r0 >>= 32; if r0 != process, go to the end.
        instruction(0x77, 0, 0, 32),
        instruction(0x55, 0, 4, process),
        // r6 = 0; again: r6 += 1; if r6 < ROUNDS, again. The call is there to take its time.
        instruction(0xb7, 6, 0, 0),
        instruction(0x85, 0, 0, KTIME_GET_NS),
        instruction(0x07, 6, 0, 1),
        instruction(0xa5, 6, -3, ROUNDS),
        instruction(0xb7, 0, 0, 0),
        instruction(0x95, 0, 0, 0),
    ];
    /// `union bpf_attr` as far as BPF_PROG_LOAD needs it.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        kernel_and_flags: [u32; 2],
    }
    let load = Load {
        kind: KPROBE,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        kernel_and_flags: [0; 2],
    };
    // SAFETY: the kernel reads the structure and what it points to; what it returns is a descriptor of ours.
    unsafe { descriptor(libc::syscall(libc::SYS_bpf, LOAD, &load, size_of::<Load>())) }
}

/// # Safety
///
/// A result that is not negative is a descriptor that nobody else has.
unsafe fn descriptor(result: libc::c_long) -> Result<OwnedFd> {
    if result < 0 {
        return Err(Error::last_os_error().into());
    }
    // SAFETY: as the caller promises.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
