// SPDX-License-Identifier: GPL-2.0
//! Several threads on one VM: two of them in RUN, one that closes the device, raises lines or takes signals while another
//! runs; two VMs in one process.

use lguest_abi::{lguest_trace, LGUEST_DEBUG_STEP, LGUEST_IOCTL_SET_TRACE};
use lguest_host_tests::{Device, End, Result, Vm};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

const GUEST: &str = "/usr/lib/lg/selftests/guests/registers";
const SPINNER: &str = "/usr/lib/lg/selftests/hostile/events";

fn main() -> Result<()> {
    handle_sigusr1();
    two_in_run()?;
    lines_from_everywhere()?;
    signals()?;
    two_vms()?;
    close_while_running()?;
    println!("all survived");
    Ok(())
}

fn raw_errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// The second thread in RUN gets EBUSY, and so does one that wants the counters, to debug or a record.
fn two_in_run() -> Result<()> {
    let vm = Vm::load(
        Path::new(SPINNER),
        64 << 20,
        "crime=spin-with-interrupts-off",
    )?;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| run_here(|| run_alone(&vm.device)));
        wait_for_run(&vm.device);
        for _ in 0..1000 {
            assert_eq!(
                raw_errno(vm.device.run()),
                Some(libc::EBUSY),
                "a second RUN"
            );
            assert_eq!(
                raw_errno(vm.device.stats()),
                Some(libc::EBUSY),
                "GET_STATS beside a RUN"
            );
            assert_eq!(
                raw_errno(vm.device.set_debug(0, LGUEST_DEBUG_STEP, [0; 2])),
                Some(libc::EBUSY),
                "SET_DEBUG beside a RUN"
            );
            let mut trace = lguest_trace::default();
            assert_eq!(
                raw_errno(vm.device.ioctl_on(LGUEST_IOCTL_SET_TRACE, &mut trace)),
                Some(libc::EBUSY),
                "SET_TRACE beside a RUN"
            );
        }
        interrupt(&first);
        assert_eq!(
            raw_errno(first.join().unwrap()),
            Some(libc::EINTR),
            "the first RUN"
        );
    });
    Ok(())
}

/// RUN, in which the look of `wait_for_run` may be in the way at first.
fn run_alone(device: &Device) -> std::io::Result<()> {
    loop {
        match device.run() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            result => return result.map(|_| ()),
        }
    }
}

/// Waits until another thread is in RUN.
fn wait_for_run(device: &Device) {
    let patience = Instant::now() + Duration::from_secs(10);
    while raw_errno(device.stats()) != Some(libc::EBUSY) {
        assert!(Instant::now() < patience, "nobody is in RUN");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The thread that is in RUN, as the kernel numbers it.
static RUNNER: AtomicI32 = AtomicI32::new(0);

/// One RUN in a thread that `signal` reaches.
fn run_here<T>(run: impl FnOnce() -> T) -> T {
    // SAFETY: takes nothing, returns a number.
    RUNNER.store(unsafe { libc::gettid() }, Relaxed);
    run()
}

/// Makes SIGUSR1 do nothing but interrupt.
fn handle_sigusr1() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a handler that does nothing; without SA_RESTART, so that RUN returns.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

/// Sends SIGUSR1 to the thread in RUN.
fn signal() {
    // SAFETY: a number of this process's, or of nobody if the thread has just ended.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            RUNNER.load(Relaxed),
            libc::SIGUSR1,
        )
    };
}

/// Signals `thread` until it has ended.
fn interrupt<T>(thread: &ScopedJoinHandle<'_, T>) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !thread.is_finished() {
        assert!(Instant::now() < patience, "a signal does not end RUN");
        signal();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lines are raised by the thousand while the Guest runs; nobody there asked for them.
fn lines_from_everywhere() -> Result<()> {
    let vm = Vm::load(
        Path::new(SPINNER),
        64 << 20,
        "crime=spin-with-interrupts-off",
    )?;
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| run_here(|| vm.device.run().map(|_| ())));
        let raisers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for n in 0..20_000 {
                        vm.device.irq_line(n % 64).expect("IRQ_LINE");
                    }
                })
            })
            .collect();
        raisers
            .into_iter()
            .for_each(|raiser| raiser.join().unwrap());
        interrupt(&runner);
        assert_eq!(raw_errno(runner.join().unwrap()), Some(libc::EINTR));
    });
    Ok(())
}

/// Signals at any time: RUN returns EINTR, is called again, and the Guest's registers come through.
fn signals() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| run_here(|| vm.run().map_err(|error| error.to_string())));
        interrupt_often(&runner);
        assert_eq!(runner.join().unwrap(), Ok(End::PowerOff(0)));
    });
    Ok(())
}

fn interrupt_often<T>(thread: &ScopedJoinHandle<'_, T>) {
    let patience = Instant::now() + Duration::from_secs(30);
    for n in 0.. {
        if thread.is_finished() {
            assert!(n > 10, "only {n} signals were sent");
            return;
        }
        assert!(
            Instant::now() < patience,
            "the guest gets nowhere under signals"
        );
        signal();
        std::thread::sleep(Duration::from_micros(n % 7 * 300));
    }
}

/// One address space has room for one switcher; when the first VM is gone, the second may come, and finds nothing of what
/// the first one left.
fn two_vms() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    let error = Vm::load(Path::new(GUEST), 64 << 20, "")
        .map(|_| ())
        .expect_err("a second VM")
        .to_string();
    assert!(
        error.contains(&format!("os error {}", libc::EBUSY)),
        "{error}"
    );
    assert_eq!(vm.run()?, End::PowerOff(0));
    drop(vm);
    // It dies with an event that it has not taken.
    let end = Vm::load(Path::new(SPINNER), 64 << 20, "crime=event-not-taken")?.run()?;
    assert!(matches!(end, End::Death(_)), "{end:?}");
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    assert_eq!(vm.run()?, End::PowerOff(0), "after a dead one");
    drop(vm);
    for _ in 0..20 {
        let vm = Vm::load(Path::new("/usr/lib/lg/guests/hello"), 64 << 20, "")?;
        assert_eq!(vm.run()?, End::PowerOff(0), "one VM after the other");
    }
    Ok(())
}

/// Closing the descriptor under a RUN changes nothing until the RUN is over.
fn close_while_running() -> Result<()> {
    let vm = Vm::load(
        Path::new(SPINNER),
        64 << 20,
        "crime=spin-with-interrupts-off",
    )?;
    let fd = vm.device.0.as_raw_fd();
    let Vm { device, ram } = vm;
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| run_here(|| run_alone(&device)));
        wait_for_run(&device);
        // SAFETY: closed here, and never used again: `device` is forgotten below.
        unsafe { libc::close(fd) };
        std::thread::sleep(Duration::from_millis(100));
        interrupt(&runner);
        assert_eq!(raw_errno(runner.join().unwrap()), Some(libc::EINTR));
    });
    std::mem::forget(device);
    drop(ram);
    let device = Device::open()?;
    assert_eq!(raw_errno(device.run()), Some(libc::ENXIO), "a new VM");
    Ok(())
}
