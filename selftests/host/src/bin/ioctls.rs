// SPDX-License-Identifier: GPL-2.0
//! Every ioctl of /dev/lguest with arguments that make no sense, and ioctls that do not exist: an errno each, nothing else.

use lguest_abi as abi;
use lguest_host_tests::{Device, End, Ram, Result, Vm};
use std::io;
use std::path::Path;

const GUEST: &str = "/usr/lib/lg/selftests/guests/registers";

/// Fails unless `result` is `errno`.
fn expect<T>(what: &str, result: io::Result<T>, errno: i32) {
    let found = result.err().and_then(|error| error.raw_os_error());
    assert_eq!(found, Some(errno), "{what}");
}

const STRUCTURES: [u64; 10] = [
    abi::LGUEST_IOCTL_GET_EXIT,
    abi::LGUEST_IOCTL_GET_INFO,
    abi::LGUEST_IOCTL_ADD_MEMORY,
    abi::LGUEST_IOCTL_CREATE_VCPU,
    abi::LGUEST_IOCTL_RUN,
    abi::LGUEST_IOCTL_SET_NOTIFYFD,
    abi::LGUEST_IOCTL_GET_STATS,
    abi::LGUEST_IOCTL_SET_DEBUG,
    abi::LGUEST_IOCTL_SET_TRACE,
    abi::LGUEST_IOCTL_GET_WALK,
];
/// Addresses where this process has nothing, and where it may have nothing.
const BAD_ADDRESSES: [u64; 6] = [
    0,
    8,
    1 << 47,
    0xffff_8000_0000_0000,
    0xffff_ffff_8100_0000,
    u64::MAX - 7,
];

fn main() -> Result<()> {
    pointers()?;
    unknown()?;
    order()?;
    vcpus()?;
    runs()?;
    lines()?;
    notify()?;
    walks()?;
    println!("all refused");
    Ok(())
}

fn pointers() -> Result<()> {
    let device = Device::open()?;
    for request in STRUCTURES {
        for address in BAD_ADDRESSES {
            let error = device
                .ioctl(request, address)
                .expect_err("a bad address was accepted");
            let errno = error.raw_os_error();
            // Where there is no vCPU yet, that may be what it complains about.
            assert!(
                [Some(libc::EFAULT), Some(libc::ENXIO)].contains(&errno),
                "{request:#x} {address:#x}: {error}"
            );
        }
    }
    Ok(())
}

/// Other numbers, sizes, directions and types.
fn unknown() -> Result<()> {
    let device = Device::open()?;
    let mut buffer = [0u64; 1024];
    for known in STRUCTURES.into_iter().chain([abi::LGUEST_IOCTL_IRQ_LINE]) {
        for request in [
            known ^ 0x8_0000,
            known ^ 0x4000_0000,
            known ^ 0x8000_0000,
            known ^ 0x100,
            known | 0x40,
        ] {
            if STRUCTURES.contains(&request) {
                continue;
            }
            expect(
                &format!("ioctl {request:#x}"),
                device.ioctl_on(request, &mut buffer),
                libc::ENOTTY,
            );
        }
    }
    for number in 10..256 {
        expect(
            "an unknown number",
            device.ioctl((u64::from(abi::LGUEST_IOC) << 8) | number, 0),
            libc::ENOTTY,
        );
    }
    Ok(())
}

/// Things before their time.
fn order() -> Result<()> {
    let device = Device::open()?;
    expect("RUN without a vCPU", device.run().map(|_| 0), libc::ENXIO);
    expect(
        "GET_STATS without a vCPU",
        device.stats().map(|_| 0),
        libc::ENXIO,
    );
    expect(
        "CREATE_VCPU without RAM",
        device.create_vcpu(0, 0x1000, 0),
        libc::EINVAL,
    );
    let ram = Ram::new(4 << 20)?;
    device.add_memory(0, ram.size(), ram.hva())?;
    device.create_vcpu(0x1000, 0x1000, 0)?;
    expect(
        "a second vCPU",
        device.create_vcpu(0x1000, 0x1000, 0),
        libc::EEXIST,
    );
    expect(
        "RAM after the vCPU",
        device.add_memory(1 << 30, 4096, ram.hva()),
        libc::EBUSY,
    );
    Ok(())
}

fn vcpus() -> Result<()> {
    let ram = Ram::new(4 << 20)?;
    let with_ram = || -> Result<Device> {
        let device = Device::open()?;
        device.add_memory(0, ram.size(), ram.hva())?;
        Ok(device)
    };
    for (what, cr3, rip) in [
        ("CR3 that is not page aligned", 0x1001, 0x1000),
        ("CR3 with a PCID", 0x1fff, 0x1000),
        ("CR3 outside RAM", 4 << 20, 0x1000),
        ("CR3 far outside RAM", u64::MAX & !0xfff, 0x1000),
        ("RIP that is not canonical", 0x1000, 1 << 47),
        (
            "RIP that is far from canonical",
            0x1000,
            0x8000_0000_0000_0000,
        ),
    ] {
        let device = with_ram()?;
        expect(what, device.create_vcpu(cr3, rip, 0), libc::EINVAL);
        // A refusal takes nothing away: what makes sense still works.
        device.create_vcpu(0x1000, 0x1000, 0)?;
    }
    for (id, pad) in [(1, 0), (u32::MAX, 0), (0, 1)] {
        let mut vcpu = abi::lguest_vcpu {
            id,
            pad,
            cr3: 0x1000,
            rip: 0x1000,
            rsi: 0,
        };
        let result = with_ram()?.ioctl_on(abi::LGUEST_IOCTL_CREATE_VCPU, &mut vcpu);
        expect("a bad id", result, libc::EINVAL);
    }
    several_vcpus(&with_ram()?)
}

/// One after the other, and those behind the first without an entry point.
fn several_vcpus(device: &Device) -> Result<()> {
    let create = |id, rip, rsi| {
        let mut vcpu = abi::lguest_vcpu {
            id,
            pad: 0,
            cr3: 0x1000,
            rip,
            rsi,
        };
        device.ioctl_on(abi::LGUEST_IOCTL_CREATE_VCPU, &mut vcpu)
    };
    create(0, 0x1000, 0)?;
    for id in 1..abi::LGUEST_MAX_VCPUS {
        expect("one that is there", create(id - 1, 0, 0), libc::EEXIST);
        expect("one too far", create(id + 1, 0, 0), libc::EINVAL);
        expect("an entry point", create(id, 0x1000, 0), libc::EINVAL);
        expect("boot_params", create(id, 0, 0x1000), libc::EINVAL);
        create(id, 0, 0)?;
    }
    let none = create(abi::LGUEST_MAX_VCPUS, 0, 0);
    expect("more than there can be", none, libc::EINVAL);
    for (vcpu, pad, errno) in [
        (abi::LGUEST_MAX_VCPUS, 0, libc::EINVAL),
        (u32::MAX, 0, libc::EINVAL),
        (0, 1, libc::EINVAL),
    ] {
        let mut stats = abi::lguest_vcpu_stats {
            vcpu,
            pad,
            ..Default::default()
        };
        let result = device.ioctl_on(abi::LGUEST_IOCTL_GET_VCPU_STATS, &mut stats);
        expect("GET_VCPU_STATS", result, errno);
    }
    let exit = |vcpu, back| {
        let mut exit = abi::lguest_exit {
            vcpu,
            back,
            ..Default::default()
        };
        device.ioctl_on(abi::LGUEST_IOCTL_GET_EXIT, &mut exit)?;
        Ok(exit.record)
    };
    for (vcpu, errno) in [
        (abi::LGUEST_MAX_VCPUS, libc::EINVAL),
        (u32::MAX, libc::EINVAL),
        (0, libc::ENOENT),
    ] {
        expect("GET_EXIT", exit(vcpu, 0), errno);
    }
    // The Guest dies on its first vCPU, and that ends the others, which were never on.
    assert_eq!(device.run()?.exit, abi::LGUEST_EXIT_DEATH);
    assert_eq!(exit(0, 0)?.rip, 0x1000);
    for back in [32, u32::MAX] {
        expect("an exit that is not kept", exit(0, back), libc::ENOENT);
    }
    expect("an exit of one that never ran", exit(1, 0), libc::ENOENT);
    let mut run = abi::lguest_run {
        vcpu: 1,
        ..Default::default()
    };
    let result = device.ioctl_on(abi::LGUEST_IOCTL_RUN, &mut run);
    expect("RUN of another, when all is over", result, libc::ENXIO);
    Ok(())
}

fn runs() -> Result<()> {
    let device = Device::open()?;
    let ram = Ram::new(4 << 20)?;
    device.add_memory(0, ram.size(), ram.hva())?;
    // Tables full of zeros: the first instruction faults, and there is no entry point for the event.
    device.create_vcpu(0x1000, 0x1000, 0)?;
    for (vcpu, errno) in [
        (1, libc::ENXIO),
        (abi::LGUEST_MAX_VCPUS - 1, libc::ENXIO),
        (abi::LGUEST_MAX_VCPUS, libc::EINVAL),
        (u32::MAX, libc::EINVAL),
    ] {
        let mut run = abi::lguest_run {
            vcpu,
            ..Default::default()
        };
        expect(
            "RUN of an unknown vCPU",
            device.ioctl_on(abi::LGUEST_IOCTL_RUN, &mut run),
            errno,
        );
    }
    for rip in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff] {
        let mut run = abi::lguest_run {
            set_regs: 1,
            ..Default::default()
        };
        run.regs.rip = rip;
        expect(
            "RUN at a bad RIP",
            device.ioctl_on(abi::LGUEST_IOCTL_RUN, &mut run),
            libc::EINVAL,
        );
    }
    // Registers no Guest could have are made harmless, or refused.
    let mut run = abi::lguest_run {
        set_regs: u32::MAX,
        ..Default::default()
    };
    run.regs = abi::lguest_regs {
        rflags: u64::MAX,
        rsp: 1 << 63,
        rip: 0x1000,
        ..Default::default()
    };
    run.regs.user_mode = u64::MAX;
    device.ioctl_on(abi::LGUEST_IOCTL_RUN, &mut run)?;
    assert_eq!(
        run.exit,
        abi::LGUEST_EXIT_DEATH,
        "a guest whose tables are empty dies"
    );
    // SAFETY: the exit says that this member was written.
    let reason = unsafe { run.__bindgen_anon_1.death.reason }.map(|c| c as u8);
    let reason = String::from_utf8_lossy(&reason).into_owned();
    assert!(reason.contains("before hypercall SET_ENTRIES"), "{reason}");
    expect("RUN of a dead guest", device.run().map(|_| 0), libc::ENXIO);
    Ok(())
}

fn lines() -> Result<()> {
    let device = Device::open()?;
    for line in [
        u64::from(abi::LGUEST_LINES),
        255,
        256,
        1 << 32,
        u64::MAX,
        1 << 63,
    ] {
        expect(
            &format!("line {line:#x}"),
            device.irq_line(line),
            libc::EINVAL,
        );
    }
    Ok(())
}

fn notify() -> Result<()> {
    let device = Device::open()?;
    let set = |gpa, queue, fd| {
        device.ioctl_on(
            abi::LGUEST_IOCTL_SET_NOTIFYFD,
            &mut abi::lguest_notifyfd { gpa, queue, fd },
        )
    };
    for fd in [-1, i32::MAX, i32::MIN, 1000] {
        expect("a descriptor that is none", set(0, 0, fd), libc::EBADF);
    }
    expect("a descriptor of something else", set(0, 0, 0), libc::EINVAL);
    // SAFETY: makes a descriptor.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    for n in 0..abi::LGUEST_MAX_NOTIFYFDS {
        set(u64::from(n), 0, eventfd)?;
    }
    expect("one too many", set(u64::MAX, 0, eventfd), libc::ENOSPC);
    set(0, 0, eventfd)?;
    // SAFETY: ours; the Host keeps its own reference.
    unsafe { libc::close(eventfd) };
    Ok(())
}

/// The shadow is looked at without its addresses, and the switcher's slot not at all.
fn walks() -> Result<()> {
    let walk = |device: &Device, vcpu, user_mode, gva| {
        let mut walk = abi::lguest_walk {
            vcpu,
            user_mode,
            gva,
            entries: [!0; 5],
        };
        let result = device.ioctl_on(abi::LGUEST_IOCTL_GET_WALK, &mut walk);
        result.map(|_| walk.entries)
    };
    let none = Device::open()?;
    expect(
        "GET_WALK without a vCPU",
        walk(&none, 0, 0, 0).map(|_| 0),
        libc::ENXIO,
    );
    let vm = Vm::load(Path::new(GUEST), 64 << 20, "")?;
    for (vcpu, user_mode) in [
        (abi::LGUEST_MAX_VCPUS, 0),
        (u32::MAX, 1),
        (0, 2),
        (0, u32::MAX),
    ] {
        let result = walk(&vm.device, vcpu, user_mode, 0).map(|_| 0);
        expect("GET_WALK of nothing", result, libc::EINVAL);
    }
    // Nothing has been touched yet.
    let code = 0xffff_ffff_8010_0000;
    assert_eq!(walk(&vm.device, 0, 0, code)?[4] & 1, 0);
    assert_eq!(vm.run()?, End::PowerOff(0));
    let present = |way: [u64; 5]| way.iter().filter(|entry| **entry & 1 != 0).count();
    let mut deepest = 0;
    for gva in (0..1u64 << 12).map(|page| 0xffff_ffff_8000_0000 + (page << 12)) {
        deepest = deepest.max(present(walk(&vm.device, 0, 0, gva)?));
    }
    assert!(
        deepest >= 4,
        "nothing of the Guest is in the shadow: {deepest}"
    );
    // All top-level entries of both sizes, and what is not canonical.
    for gva in (0..512).flat_map(|slot| [slot << 39, slot << 48, (slot << 39) | (0xffff << 48)]) {
        for user_mode in [0, 1] {
            for entry in walk(&vm.device, 0, user_mode, gva)? {
                assert_eq!(
                    entry & 0x000f_ffff_ffff_f000,
                    0,
                    "an address of the Host's at {gva:#x}"
                );
            }
        }
    }
    let mut info = abi::lguest_info::default();
    vm.device.ioctl_on(abi::LGUEST_IOCTL_GET_INFO, &mut info)?;
    let slot = match info.paging_levels {
        5 => (271 << 48) | (0xfe00 << 48),
        _ => (271 << 39) | (0xffff << 48),
    };
    assert_eq!(walk(&vm.device, 0, 0, slot)?, [0; 5], "the switcher's slot");
    Ok(())
}
