// SPDX-License-Identifier: GPL-2.0
//! The record of a vCPU: that it has every exit, in a ring that stops and in one that overwrites, and what a bad
//! Launcher tries with it.

use lguest_abi as abi;
use lguest_host_tests::{Device, End, Result, Vm};
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

const GUEST: &str = "/usr/lib/lg/selftests/guests/registers";
const RAM: usize = 64 << 20;
const PAGE: usize = 4096;
const SLOTS: u64 = (PAGE / size_of::<abi::lguest_trace_record>()) as u64;
const OVERWRITE: u32 = abi::LGUEST_TRACE_OVERWRITE;
const CALLS: u32 = abi::LGUEST_TRACE_CALLS;

fn main() -> Result<()> {
    refusals()?;
    every_exit(0)?;
    every_exit(CALLS)?;
    overwriting()?;
    interrupted()?;
    not_for_the_guest()?;
    many()?;
    println!("all recorded");
    Ok(())
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn set(device: &Device, vcpu: u32, flags: u32, pages: u32, pad: u32) -> io::Result<i32> {
    let mut trace = abi::lguest_trace {
        vcpu,
        flags,
        pages,
        pad,
    };
    device.ioctl_on(abi::LGUEST_IOCTL_SET_TRACE, &mut trace)
}

/// A mapping of a ring.
struct Ring {
    start: *mut libc::c_void,
    size: usize,
}

impl Ring {
    fn map(device: &Device, pages: usize) -> io::Result<Self> {
        Self::map_as(device, (1 + pages) * PAGE, libc::PROT_READ, 0)
    }

    fn map_as(device: &Device, size: usize, prot: i32, offset: i64) -> io::Result<Self> {
        let (null, fd) = (ptr::null_mut(), device.0.as_raw_fd());
        // SAFETY: a new mapping overlaps nothing.
        match unsafe { libc::mmap(null, size, prot, libc::MAP_SHARED, fd, offset) } {
            libc::MAP_FAILED => Err(Error::last_os_error()),
            start => Ok(Self { start, size }),
        }
    }

    fn head(&self) -> abi::lguest_trace_head {
        // SAFETY: the head is what the mapping begins with, and nothing but numbers.
        unsafe { self.start.cast::<abi::lguest_trace_head>().read_volatile() }
    }

    fn record(&self, number: u64) -> abi::lguest_trace_record {
        let slots = self.head().slots;
        let at = PAGE + (number % slots) as usize * size_of::<abi::lguest_trace_record>();
        assert!(at < self.size);
        // SAFETY: the slot is in the mapping, as was checked, and nothing but numbers.
        unsafe {
            self.start
                .byte_add(at)
                .cast::<abi::lguest_trace_record>()
                .read_volatile()
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: our own mapping, used by nothing after this.
        unsafe { libc::munmap(self.start, self.size) };
    }
}

fn load() -> Result<Vm> {
    Vm::load(Path::new(GUEST), RAM, "")
}

fn refusals() -> Result<()> {
    let empty = Device::open()?;
    assert_eq!(errno(set(&empty, 0, 0, 1, 0)), Some(libc::ENXIO), "no vCPU");
    assert_eq!(errno(Ring::map(&empty, 1)), Some(libc::ENXIO), "no vCPU");
    let vm = load()?;
    let device = &vm.device;
    assert_eq!(errno(Ring::map(device, 1)), Some(libc::ENXIO), "no ring");
    let too_many = abi::LGUEST_TRACE_MAX_PAGES + 1;
    for (vcpu, flags, pages, pad) in [
        (abi::LGUEST_MAX_VCPUS, 0, 1, 0),
        (u32::MAX, 0, 1, 0),
        (0, 4, 1, 0),
        (0, u32::MAX, 1, 0),
        (0, 0, too_many, 0),
        (0, 0, u32::MAX, 0),
        (0, 0, 1, 1),
    ] {
        let result = set(device, vcpu, flags, pages, pad);
        assert_eq!(
            errno(result),
            Some(libc::EINVAL),
            "{vcpu} {flags} {pages} {pad}"
        );
    }
    assert_eq!(
        errno(Ring::map(device, 1)),
        Some(libc::ENXIO),
        "refused, but made"
    );
    set(device, 0, 0, 2, 0)?;
    let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    for (size, prot, offset) in [
        (3 * PAGE, read | write, 0),
        (3 * PAGE, write, 0),
        (3 * PAGE, read | exec, 0),
        (2 * PAGE, read, 0),
        (4 * PAGE, read, 0),
        (2 * PAGE, read, PAGE as i64),
        (3 * PAGE, read, PAGE as i64),
    ] {
        let result = Ring::map_as(device, size, prot, offset);
        assert_eq!(errno(result), Some(libc::EINVAL), "{size} {prot} {offset}");
    }
    let ring = Ring::map(device, 2)?;
    for prot in [read | write, read | exec] {
        // SAFETY: our own mapping; nothing relies on what it may.
        let result = unsafe { libc::mprotect(ring.start, ring.size, prot) };
        assert_eq!(result, -1, "a ring with other rights: {prot}");
    }
    set(device, 0, 0, 0, 0)?;
    assert_eq!(
        errno(Ring::map(device, 2)),
        Some(libc::ENXIO),
        "no ring any more"
    );
    Ok(())
}

/// With the smallest ring, which is full again and again.
fn every_exit(flags: u32) -> Result<()> {
    let vm = load()?;
    set(&vm.device, 0, flags, 1, 0)?;
    let ring = Ring::map(&vm.device, 1)?;
    assert_eq!((ring.head().slots, ring.head().written), (SLOTS, 0));
    let (mut records, mut times_full) = (Vec::new(), 0);
    let mut take = || {
        let written = ring.head().written;
        let new = written - records.len() as u64;
        assert!(new <= SLOTS, "{new} at once");
        (records.len() as u64..written).for_each(|number| records.push(ring.record(number)));
    };
    loop {
        let run = vm.device.run();
        take();
        let run = match run {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            run => run?,
        };
        match run.exit {
            abi::LGUEST_EXIT_TRACE => times_full += 1,
            abi::LGUEST_EXIT_CONSOLE => {}
            abi::LGUEST_EXIT_SHUTDOWN => break,
            other => panic!("an exit of kind {other}"),
        }
    }
    assert!(times_full > 1, "it was full {times_full} times");
    assert_eq!(ring.head().lost, 0);
    let stats = vm.device.stats()?;
    let count = |test: &dyn Fn(&abi::lguest_trace_record) -> bool| {
        records.iter().filter(|record| test(record)).count() as u64
    };
    let is = |reason: u32| move |r: &abi::lguest_trace_record| u32::from(r.reason) == reason;
    let did = |what: u32| move |r: &abi::lguest_trace_record| u32::from(r.did) & what != 0;
    let entered = count(&|record| u32::from(record.reason) != abi::LGUEST_TRACE_LAUNCHER);
    assert_eq!(entered, stats.entries);
    assert_eq!(count(&is(abi::LGUEST_TRACE_PAGE_FAULT)), stats.page_faults);
    assert_eq!(count(&is(abi::LGUEST_TRACE_INTERRUPT)), stats.interrupts);
    assert_eq!(count(&did(abi::LGUEST_TRACE_FILLED)), stats.pf_filled);
    assert_eq!(count(&did(abi::LGUEST_TRACE_INJECTED)), stats.pf_injected);
    assert_eq!(
        count(&did(abi::LGUEST_TRACE_GAVE_EXCEPTION)),
        stats.exceptions
    );
    assert_eq!(count(&did(abi::LGUEST_TRACE_EMULATED)), stats.emulated);
    let calls = count(&is(abi::LGUEST_TRACE_SYSCALL));
    let direct = (stats.direct_syscalls, stats.direct_erets);
    if flags & CALLS == 0 {
        assert!(
            calls == 0 && direct.0 > 0 && direct.1 > 0,
            "{calls}, {direct:?}"
        );
    } else {
        assert!(calls > 0 && direct == (0, 0), "{calls}, {direct:?}");
    }
    for (number, record) in records.iter().enumerate() {
        assert_eq!(record.number, number as u64);
        assert!(
            record.entered <= record.left && record.left <= record.done,
            "{record:?}"
        );
    }
    for pair in records.windows(2) {
        assert!(pair[0].done <= pair[1].entered, "{pair:?}");
    }
    let last = records.last().unwrap();
    assert_eq!(u32::from(last.exit), abi::LGUEST_EXIT_SHUTDOWN, "{last:?}");
    assert_eq!(last.rax, u64::from(abi::LHCALL_SHUTDOWN), "{last:?}");
    Ok(())
}

/// The last records are there, also when the file is closed: a mapping holds the VM.
fn overwriting() -> Result<()> {
    let vm = load()?;
    set(&vm.device, 0, OVERWRITE, 1, 0)?;
    let ring = Ring::map(&vm.device, 1)?;
    // No exit is due to the record.
    assert_eq!(vm.run()?, End::PowerOff(0));
    let written = ring.head().written;
    assert!(written > 2 * SLOTS, "{written} records");
    let Vm { device, ram } = vm;
    drop(device);
    for number in written - SLOTS..written {
        assert_eq!(ring.record(number).number, number);
    }
    assert_eq!(ring.head().written, written);
    let exit = ring.record(written - 1).exit;
    assert_eq!(u32::from(exit), abi::LGUEST_EXIT_SHUTDOWN);
    drop((ring, ram));
    // A new ring is another one.
    let vm = load()?;
    set(&vm.device, 0, OVERWRITE, 1, 0)?;
    let new = Ring::map(&vm.device, 1)?;
    set(&vm.device, 0, OVERWRITE, 2, 0)?;
    assert_eq!(vm.run()?, End::PowerOff(0));
    assert_eq!(new.head().written, 0);
    Ok(())
}

/// The same while signals make RUN come back at any moment.
fn interrupted() -> Result<()> {
    extern "C" fn nothing(_: i32) {}
    let every = |us: i64| {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: us,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: a handler that does nothing, and a timer of ours.
        unsafe {
            let handler: extern "C" fn(i32) = nothing;
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            libc::sigaction(libc::SIGALRM, &action, ptr::null_mut());
            libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut())
        };
    };
    every(3000);
    let result = every_exit(0).and_then(|()| every_exit(CALLS));
    every(0);
    result
}

/// A ring in the place of RAM is no RAM: the Guest cannot write its own record, nor any page of the Host's.
fn not_for_the_guest() -> Result<()> {
    let vm = load()?;
    let pages = RAM / PAGE - 1;
    set(&vm.device, 0, 0, pages as u32, 0)?;
    let (start, fd) = (vm.ram.hva() as *mut libc::c_void, vm.device.0.as_raw_fd());
    let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: it replaces memory of ours, which nothing in this process reads after this.
    let map = unsafe { libc::mmap(start, RAM, libc::PROT_READ, fixed, fd, 0) };
    assert_eq!(map, start, "{}", Error::last_os_error());
    assert_eq!(
        errno(vm.device.run()),
        Some(libc::EFAULT),
        "a Guest in its ring"
    );
    Ok(())
}

/// More memory than there is, if it did not come back.
fn many() -> Result<()> {
    let vm = load()?;
    let pages = abi::LGUEST_TRACE_MAX_PAGES;
    for _ in 0..24 {
        set(&vm.device, 0, 0, pages, 0)?;
        let ring = Ring::map(&vm.device, pages as usize)?;
        set(&vm.device, 0, 0, 0, 0)?;
        assert_eq!(ring.head().slots, u64::from(pages) * SLOTS);
    }
    assert_eq!(vm.run()?, End::PowerOff(0));
    Ok(())
}
