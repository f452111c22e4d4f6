// SPDX-License-Identifier: GPL-2.0
//! Memory that fails under a Guest: found by the Host, or by the Guest itself.
//!
//! `memory_errors poison`: the Host finds the page bad. `memory_errors consume`: the Guest's CPU does, and
//! reports it by a machine check, which QEMU's monitor raises. `memory_errors told`: the Host finds page
//! after page of a Guest of `lg run` bad, and that tells its user.

use lguest_host_tests::{End, Result, Vm};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

const GUESTS: &str = "/usr/lib/lg/selftests";
const RAM: usize = 64 << 20;
/// The Guest's page tables as it begins, which nobody here reads: the root, and how much they take.
const PAGE: u64 = 0x30000;
const TABLES: usize = 8 * 4096;
const EHWPOISON: i32 = 133;
/// Codes of SIGBUS (asm-generic/siginfo.h).
const BUS_MCEERR_AR: i32 = 4;

/// The code of the last SIGBUS.
static SIGBUS: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_sigbus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's own, for the time of the handler.
    SIGBUS.store(unsafe { (*info).si_code }, SeqCst);
}

fn main() -> Result<()> {
    // SAFETY: a handler that only stores.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
    match std::env::args().nth(1).as_deref() {
        Some("poison") => poison(),
        Some("consume") => consume(),
        Some("told") => told(),
        _ => Err("poison, consume or told?".into()),
    }
}

/// The Host's memory scrubber finds an error in a page that the Guest has: neither Guest nor Host reads it from now on.
fn poison() -> Result<()> {
    let path = format!("{GUESTS}/hostile/events");
    let vm = Vm::load(Path::new(&path), RAM, "crime=system-calls-for-ever")?;
    // Until it says so. Its page tables are known by now, and it has more faults before it.
    if let Some(end) = vm.step()? {
        return Err(format!("the guest ended with {end:?}").into());
    }
    // SAFETY: pages of our own mapping, which nobody here reads any more.
    if unsafe { libc::madvise((vm.ram.hva() + PAGE) as *mut _, TABLES, libc::MADV_HWPOISON) } != 0 {
        println!("madvise: {}", std::io::Error::last_os_error());
    }
    let error = vm.run().err().ok_or("the guest went on")?;
    let errno = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error);
    if errno != Some(EHWPOISON) {
        return Err(format!("LGUEST_RUN: {error}").into());
    }
    Ok(())
}

/// The Guest reads what has gone bad. It dies of it, its Launcher hears of it as any process would, and
/// the Host takes the page away.
fn consume() -> Result<()> {
    let path = format!("{GUESTS}/hostile/events");
    let vm = Vm::load(
        Path::new(&path),
        RAM,
        "crime=tell-and-spin-with-interrupts-off",
    )?;
    let cpu = last_cpu();
    let before = poisoned_kib()?;
    let spinning = AtomicBool::new(false);
    let end = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            pin(cpu);
            loop {
                match vm.step() {
                    Ok(None) => spinning.store(true, SeqCst),
                    Ok(Some(end)) => return Ok(end),
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        pin(0);
        // It has said so, and then does nothing that makes it leave.
        while !spinning.load(SeqCst) && !guest.is_finished() {
            std::thread::yield_now();
        }
        let physical = physical(vm.ram.hva() + PAGE).map_err(|error| error.to_string())?;
        // An uncorrected error in a data load, which takes action (SDM 3B, 17.3.2.2 and 17.9.3.2), on this
        // CPU alone; and where the interrupted program may go on, it being at fault.
        let status = 0xbd80_0000_0000_0134u64;
        let (global, misc) = (0xf, 0x8c);
        monitor(&format!(
            "mce {cpu} 4 {status:#x} {global:#x} {physical:#x} {misc:#x}\n"
        ))?;
        guest.join().map_err(|_| "the guest's thread panicked")?
    })?;
    match end {
        End::Death(reason) if reason.starts_with("memory error") => {}
        end => return Err(format!("the guest ended with {end:?}").into()),
    }
    if SIGBUS.load(SeqCst) != BUS_MCEERR_AR {
        return Err(format!("SIGBUS with code {}", SIGBUS.load(SeqCst)).into());
    }
    if poisoned_kib()? != before + 4 {
        return Err(format!("{} KiB are bad, after {before}", poisoned_kib()?).into());
    }
    Ok(())
}

/// lg says what has become of its Guest, whether that or lg itself has used what is bad.
fn told() -> Result<()> {
    let mut lg = Command::new("lg")
        .args([
            "run",
            "-m",
            "64M",
            "--initrd",
            "busybox.cpio",
            "--",
            "sh",
            "-c",
        ])
        .arg("while :; do cat /bin/busybox >/tmp/copy; echo again; done")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(lg.stdout.take().ok_or("no output")?);
    // Its Guest runs, and has memory, when it says something. Each time it has been through all that it does.
    let mut goes_on = || -> Result<bool> { Ok(output.read_line(&mut String::new())? != 0) };
    let mut going = goes_on()?;
    let ram = ram_of(lg.id())?;
    // From the end, where Linux begins, and some at a time: each page is a line of the Host's log.
    let mut pages = (0..RAM as u64 / 4096).rev();
    while going {
        for page in pages.by_ref().take(32) {
            poison_page(&ram, page * 4096)?;
        }
        // What it was about to say comes first.
        going = goes_on()? && goes_on()?;
    }
    let ended = lg.wait_with_output()?;
    let text = String::from_utf8_lossy(&ended.stderr);
    print!("{text}");
    if ended.status.code() != Some(125) || !text.contains("error[LG0056]") {
        return Err(format!("lg ended with {}: {text}", ended.status).into());
    }
    Ok(())
}

/// The file behind the RAM of a running lg's Guest, which has no name, and for root alone is at
/// /proc/PID/map_files.
fn ram_of(lg: u32) -> Result<File> {
    let size_of = |range: &str| {
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16));
        Some(end.ok()? - start.ok()?)
    };
    for entry in fs::read_dir(format!("/proc/{lg}/map_files"))? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(size_of) == Some(RAM) {
            let mut file = File::options();
            return Ok(file.read(true).write(true).open(entry.path())?);
        }
    }
    Err("lg has no mapping of its guest's RAM".into())
}

/// Lets the Host find an error in one page of a file in memory.
fn poison_page(file: &File, offset: u64) -> Result<()> {
    // SAFETY: a new mapping, which nobody reads, and which goes again.
    unsafe {
        let (prot, fd) = (libc::PROT_READ, file.as_raw_fd());
        let null = std::ptr::null_mut();
        let page = libc::mmap(null, 4096, prot, libc::MAP_SHARED, fd, offset as i64);
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        // Whether it could be taken away from everybody or not, bad it is.
        libc::madvise(page, 4096, libc::MADV_HWPOISON);
        libc::munmap(page, 4096);
    }
    Ok(())
}

fn last_cpu() -> usize {
    // SAFETY: has no preconditions.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as usize - 1 }
}

fn pin(cpu: usize) {
    // SAFETY: a set of ours; zeros are an empty one.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

/// The amount of memory that the Host has given up.
fn poisoned_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("HardwareCorrupted:"))
        .ok_or("no HardwareCorrupted in /proc/meminfo")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The physical address behind one of ours (Documentation/admin-guide/mm/pagemap.rst).
fn physical(address: u64) -> Result<u64> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / 4096 * 8)?;
    let entry = u64::from_le_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    if entry >> 63 == 0 || frame == 0 {
        return Err(format!("{address:#x} is not in memory: {entry:#x}").into());
    }
    Ok(frame * 4096)
}

/// Says something to QEMU's monitor, which scripts/testhost has behind a port.
fn monitor(command: &str) -> std::result::Result<(), String> {
    let port = fs::read_dir("/sys/class/virtio-ports")
        .map_err(|error| error.to_string())?
        .flatten()
        .find(|port| {
            fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == "monitor")
        })
        .ok_or("there is no port \"monitor\"")?;
    File::options()
        .write(true)
        .open(Path::new("/dev").join(port.file_name()))
        .and_then(|mut port| port.write_all(command.as_bytes()))
        .map_err(|error| error.to_string())
}
