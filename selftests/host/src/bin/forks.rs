// SPDX-License-Identifier: GPL-2.0
//! A Launcher that forks: before it has a vCPU, with one, while that runs; children that use what they inherited, exec, or
//! just outlive their parent.

use lguest_host_tests::{Device, End, Ram, Result, Vm};
use std::path::Path;
use std::time::Duration;

const GUEST: &str = "/usr/lib/lg/selftests/guests/registers";

fn main() -> Result<()> {
    child_uses_the_vm()?;
    child_makes_its_own()?;
    fork_while_running()?;
    child_outlives_the_parent()?;
    execs()?;
    println!("all survived");
    Ok(())
}

/// Runs `child` in a child, and returns its exit status.
fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the process has one thread here, so the child may do as it likes; it leaves by `_exit`.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let status = child();
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(status) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: a child of ours.
            unsafe { libc::waitpid(pid, &mut status, 0) };
            assert!(
                libc::WIFEXITED(status),
                "the child died by status {status:#x}"
            );
            libc::WEXITSTATUS(status)
        }
    }
}

/// The switcher is mapped for the parent alone: the child's RUN is refused.
fn child_uses_the_vm() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    let status = in_child(|| match vm.device.run() {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(0),
    });
    assert_eq!(status, libc::EPERM, "RUN in a child");
    assert_eq!(
        vm.run()?,
        End::PowerOff(0),
        "the parent's guest after its children"
    );
    Ok(())
}

/// A VM opened by the parent, whose vCPU the child makes, is the child's.
fn child_makes_its_own() -> Result<()> {
    let device = Device::open()?;
    let ram = Ram::new(4 << 20)?;
    device.add_memory(0, ram.size(), ram.hva())?;
    let status = in_child(|| {
        let made = device.create_vcpu(0x1000, 0x1000, 0).is_ok();
        let died = device
            .run()
            .is_ok_and(|run| run.exit == lguest_abi::LGUEST_EXIT_DEATH);
        i32::from(!(made && died))
    });
    assert_eq!(status, 0, "a vCPU made and run by a child");
    assert_eq!(
        device.run().err().and_then(|error| error.raw_os_error()),
        Some(libc::ENXIO)
    );
    let status = in_child(
        || match Vm::load(Path::new(GUEST), 64 << 20, "").map(|vm| vm.run()) {
            Ok(Ok(End::PowerOff(0))) => 0,
            _ => 1,
        },
    );
    assert_eq!(status, 0, "a VM of a child's own");
    Ok(())
}

/// Forks mark the parent's pages copy-on-write while the Guest uses them.
fn fork_while_running() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    let end = std::thread::scope(|scope| {
        let runner = scope.spawn(|| vm.run().map_err(|error| error.to_string()));
        while !runner.is_finished() {
            // SAFETY: the child only exits.
            match unsafe { libc::fork() } {
                // SAFETY: as above.
                0 => unsafe { libc::_exit(0) },
                pid => {
                    // SAFETY: a child of ours.
                    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        runner.join().unwrap()
    });
    assert_eq!(end, Ok(End::PowerOff(0)));
    Ok(())
}

/// The parent of this one exits with a VM that its own child still has open.
fn child_outlives_the_parent() -> Result<()> {
    let status = in_child(|| {
        let Ok(vm) = Vm::load(Path::new(GUEST), 64 << 20, "") else {
            return 1;
        };
        // SAFETY: the grandchild sleeps, tries, and exits.
        match unsafe { libc::fork() } {
            0 => {
                std::thread::sleep(Duration::from_millis(300));
                let refused = vm
                    .device
                    .run()
                    .is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
                // SAFETY: ends the grandchild.
                unsafe { libc::_exit(i32::from(!refused)) }
            }
            _ => 0,
        }
    });
    assert_eq!(status, 0);
    std::thread::sleep(Duration::from_millis(600));
    Ok(())
}

/// exec replaces the address space under an open VM whose descriptor survives.
fn execs() -> Result<()> {
    let status = in_child(|| {
        use std::os::fd::AsRawFd;
        let Ok(vm) = Vm::load(Path::new(GUEST), 64 << 20, "") else {
            return 1;
        };
        // SAFETY: a descriptor of ours; then the process is another one.
        unsafe {
            libc::fcntl(vm.device.0.as_raw_fd(), libc::F_SETFD, 0);
            libc::execl(
                c"/bin/sleep".as_ptr(),
                c"sleep".as_ptr(),
                c"0.2".as_ptr(),
                std::ptr::null::<libc::c_char>(),
            );
        }
        1
    });
    assert_eq!(status, 0, "exec with an open VM");
    Ok(())
}
