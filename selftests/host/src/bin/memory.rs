// SPDX-License-Identifier: GPL-2.0
//! Guest RAM that is silly, overlaps, is not there, or goes away while the Guest runs.

use lguest_host_tests::{Device, Ram, Result, Vm};
use std::io;
use std::path::Path;
use std::time::Duration;

const GUEST: &str = "/usr/lib/lg/selftests/guests/flush";

fn errno(result: io::Result<i32>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn main() -> Result<()> {
    regions()?;
    not_mapped()?;
    read_only()?;
    unmapped_while_running()?;
    discarded_while_running()?;
    println!("all survived");
    Ok(())
}

fn regions() -> Result<()> {
    let ram = Ram::new(1 << 20)?;
    let hva = ram.hva();
    let einval = Some(libc::EINVAL);
    let device = Device::open()?;
    for (what, gpa, size, hva) in [
        ("nothing", 0, 0, hva),
        ("half a page", 0, 2048, hva),
        ("a GPA that is not aligned", 1, 4096, hva),
        ("an address that is not aligned", 0, 4096, hva + 1),
        ("a GPA past the largest", 1 << 38, 4096, hva),
        ("an end past the largest GPA", (1 << 38) - 4096, 8192, hva),
        ("a size that wraps the GPA", 4096, u64::MAX & !4095, hva),
        (
            "a GPA at the end of everything",
            u64::MAX & !4095,
            4096,
            hva,
        ),
        (
            "a size that wraps the address",
            0,
            1 << 37,
            u64::MAX & !4095,
        ),
        ("the Host's memory", 0, 4096, 0xffff_8880_0000_0000),
        ("the Host's text", 0, 4096, 0xffff_ffff_8100_0000),
        ("the end of user memory", 0, 8192, (1 << 47) - 4096),
    ] {
        let result = device.add_memory(gpa, size, hva);
        let error = errno(result);
        assert!(
            error == einval || error == Some(libc::EFAULT),
            "{what}: {error:?}"
        );
    }
    device.add_memory(0x10_000, 0x10_000, hva)?;
    for (gpa, size) in [
        (0x10_000, 0x1000),
        (0x1f_000, 0x1000),
        (0xf000, 0x2000),
        (0x1f_000, 0x10_000),
        (0, 0x40_000),
    ] {
        let error = errno(device.add_memory(gpa, size, hva));
        assert!(
            error == einval || error == Some(libc::EEXIST),
            "an overlap at {gpa:#x}: {error:?}"
        );
    }
    // Neighbours, and the same memory at two places, are allowed; eight regions are.
    for n in 1..8 {
        device.add_memory(0x10_000 + n * 0x10_000, 0x10_000, hva)?;
    }
    assert!(
        errno(device.add_memory(0x100_000, 0x1000, hva)).is_some(),
        "a ninth region"
    );
    Ok(())
}

/// RAM where the process has nothing: the Guest cannot even begin, and RUN says so.
fn not_mapped() -> Result<()> {
    let ram = Ram::new(4 << 20)?;
    let device = Device::open()?;
    let added = device.add_memory(0, ram.size(), ram.hva());
    ram.unmap(0, 4 << 20);
    std::mem::forget(ram);
    if added.is_ok() && device.create_vcpu(0x1000, 0x1000, 0).is_ok() {
        match device.run() {
            Err(error) => assert_eq!(
                error.raw_os_error(),
                Some(libc::EFAULT),
                "RUN without memory"
            ),
            Ok(run) => assert_ne!(run.exit, 0),
        }
    }
    Ok(())
}

/// The Guest's RAM is a file that this process may only read.
fn read_only() -> Result<()> {
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    // SAFETY: our own mapping; nothing writes to it from here on.
    unsafe {
        libc::mprotect(
            vm.ram.hva() as *mut libc::c_void,
            vm.ram.size() as usize,
            libc::PROT_READ,
        )
    };
    match vm.run() {
        Err(error) => assert!(error.to_string().contains("os error 14"), "{error}"),
        // Its first page table cannot be had, which is no crime of its own.
        Ok(end) => panic!("the guest is blamed: {end:?}"),
    }
    Ok(())
}

/// RAM goes while the Guest uses it. It may keep the pages it has, die, or make RUN fail; the Host must not care.
fn unmapped_while_running() -> Result<()> {
    for (delay, gpa) in [
        (1, 0x100_000),
        (5, 0),
        (20, 0x100_000),
        (50, 0x200_000),
        (100, 0),
    ] {
        let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(delay));
                vm.ram.unmap(gpa, (62 << 20) - gpa as usize);
            });
            while let Ok(None) = run_quietly(&vm) {}
        });
        std::mem::forget(vm.ram);
    }
    Ok(())
}

/// One RUN, whose console text may no longer be there.
fn run_quietly(vm: &Vm) -> Result<Option<()>> {
    let run = vm.device.run()?;
    Ok((run.exit != lguest_abi::LGUEST_EXIT_CONSOLE).then_some(()))
}

/// The pages are thrown away under the Guest, which then sees zeros, its old pages, or its end.
fn discarded_while_running() -> Result<()> {
    for delay in [1, 10, 50] {
        let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    std::thread::sleep(Duration::from_millis(delay));
                    // SAFETY: our own mapping; its contents do not matter to us.
                    unsafe {
                        libc::madvise(
                            vm.ram.hva() as *mut libc::c_void,
                            64 << 20,
                            libc::MADV_REMOVE,
                        )
                    };
                }
            });
            while let Ok(None) = run_quietly(&vm) {}
        });
    }
    Ok(())
}
