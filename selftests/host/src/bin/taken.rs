// SPDX-License-Identifier: GPL-2.0
//! The Host takes pages of a Guest's RAM while that runs: it writes them out to swap, makes huge ones of them, merges them
//! with others, copies them for a child, or the Launcher has no use for them any more. The Guest finds all of it as it was,
//! and what is the Launcher's is the Guest's. Several vCPUs, and the Launcher itself, get on with it; and a Guest runs in
//! a control group that is smaller than what it uses.

use lguest_host_tests::{End, Ram, Result, Vm};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{channel, Receiver};
use std::time::Duration;

const GUEST: &str = "/usr/lib/lg/selftests/guests/kept";
const RAM: usize = 32 << 20;
/// The pages that the Guest keeps, and the page by which it is told to stop.
const FIRST: u64 = 8 << 20;
const STOP: u64 = FIRST - 4096;
/// How often each is done: the Guest has to be in the middle of something once.
const TIMES: usize = 3;
/// A Guest that has not told a round in this time does not get any further.
const PATIENCE: Duration = Duration::from_secs(120);

/// Something that takes pages, and what shows that it has: a number that grows.
struct Way {
    name: &'static str,
    take: fn(&Ram) -> Result<()>,
    taken: fn() -> Result<u64>,
}

fn main() -> Result<()> {
    let _swap = Swap::on()?;
    // Before there is RAM, whose address has to be a multiple of a huge page's size for that.
    fs::write(
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "advise",
    )?;
    let shared = [
        Way {
            name: "swapped out",
            take: |ram| advise(ram, libc::MADV_PAGEOUT),
            taken: || vmstat("pswpout"),
        },
        Way {
            name: "in huge pages",
            take: collapse,
            taken: || kilobytes("ShmemHugePages:"),
        },
    ];
    let private = [
        Way {
            name: "merged",
            take: merge,
            taken: || number("/sys/kernel/mm/ksm/full_scans"),
        },
        Way {
            name: "copied for a child",
            take: fork,
            taken: || vmstat("pgfault"),
        },
    ];
    for (ram, ways) in [
        (Ram::new(RAM)?, &shared[..]),
        (Ram::private(RAM)?, &private[..]),
    ] {
        kept(ram, ways)?;
    }
    given_up()?;
    several_vcpus()?;
    small_group()?;
    Ok(())
}

/// A place for pages that are written out, as long as this lives.
struct Swap;

impl Swap {
    fn on() -> Result<Self> {
        run("insmod /usr/lib/modules/brd.ko rd_nr=1 rd_size=262144")?;
        let swap = Self;
        run("mkswap /dev/ram0")?;
        run("swapon /dev/ram0")?;
        Ok(swap)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        for command in ["swapoff /dev/ram0", "rmmod brd"] {
            if let Err(error) = run(command) {
                println!("{error}");
            }
        }
    }
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    match Command::new(program).args(words).status()? {
        status if status.success() => Ok(()),
        status => Err(format!("{command}: {status}").into()),
    }
}

/// The Guest keeps what is in its RAM while pages are taken in all these ways.
fn kept(ram: Ram, ways: &[Way]) -> Result<()> {
    let (told, rounds) = channel();
    let vm = Vm::load_into(ram, Path::new(GUEST), "")?;
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| -> std::result::Result<End, String> {
            loop {
                match vm.step_with(|text| told.send(text).unwrap_or(())) {
                    Ok(Some(end)) => return Ok(end),
                    Ok(None) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        let result = take(&vm.ram, ways, &rounds);
        vm.ram.write(STOP, &[1]);
        let end = guest.join().map_err(|_| "the thread of the guest")??;
        result?;
        match end {
            End::PowerOff(0) => Ok(()),
            end => Err(format!("the guest ended with {end:?}").into()),
        }
    })
}

/// Takes pages in all these ways, between rounds of the Guest's and in the middle of one.
fn take(ram: &Ram, ways: &[Way], rounds: &Receiver<String>) -> Result<()> {
    let round = || {
        let text = rounds
            .recv_timeout(PATIENCE)
            .map_err(|_| "the guest does not get on")?;
        match text.starts_with("round ") {
            true => Ok(()),
            false => Err(format!("the guest says: {text}")),
        }
    };
    round()?;
    for way in ways {
        let before = (way.taken)()?;
        for _ in 0..TIMES {
            (way.take)(ram)?;
            round()?;
        }
        let taken = (way.taken)()? - before;
        if taken == 0 {
            return Err(format!("no page was {}", way.name).into());
        }
        println!("{}: {taken}", way.name);
    }
    Ok(())
}

/// What the Launcher gives up is gone for the Guest as well; and the Launcher's and the Guest's are one.
fn given_up() -> Result<()> {
    let (told, rounds) = channel();
    let vm = Vm::load_into(Ram::new(RAM)?, Path::new(GUEST), "")?;
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| loop {
            match vm.step_with(|text| told.send(text).unwrap_or(())) {
                Ok(Some(end)) => return format!("{end:?}"),
                Ok(None) => {}
                Err(error) => return error.to_string(),
            }
        });
        rounds
            .recv_timeout(PATIENCE)
            .map_err(|_| "the guest does not get on")?;
        // It finds zeroes where it has left something, and panics.
        advise(&vm.ram, libc::MADV_REMOVE)?;
        let end = guest.join().map_err(|_| "the thread of the guest")?;
        if !end.starts_with("Panic") || !end.contains("left: 0") {
            return Err(format!("its memory was gone, and it ended with {end}").into());
        }
        Ok(())
    })
}

/// All that `lg run` has is swapped out, again and again, while its vCPUs flush each other's translations.
fn several_vcpus() -> Result<()> {
    let before = vmstat("pswpin")?;
    let guest = "/usr/lib/lg/selftests/guests/shootdown";
    let mut lg = Command::new("lg")
        .args(["run", "--smp", "4", guest])
        .spawn()?;
    let status = loop {
        if let Some(status) = lg.try_wait()? {
            break status;
        }
        page_out(lg.id())?;
    };
    match (status.success(), vmstat("pswpin")? - before) {
        (true, back) if back > 0 => println!("of lg run, back from swap: {back}"),
        (true, _) => return Err("nothing of lg run was swapped out".into()),
        _ => return Err(format!("lg run: {status}").into()),
    }
    Ok(())
}

/// Has the kernel swap out a process, if it is still there.
fn page_out(pid: u32) -> Result<()> {
    let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else {
        return Ok(());
    };
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16).ok());
        let (start, end) = (start?, end?);
        Some(libc::iovec {
            iov_base: start as *mut _,
            iov_len: end - start,
        })
    });
    // SAFETY: takes a number.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        return Ok(());
    }
    for range in ranges {
        // What cannot be swapped out is an error of its own, and none of ours.
        // SAFETY: a descriptor and a range; it is the other process's memory, and stays what it is.
        unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd,
                &range,
                1,
                libc::MADV_PAGEOUT,
                0,
            )
        };
    }
    // SAFETY: a descriptor of ours.
    unsafe { libc::close(pidfd as i32) };
    Ok(())
}

/// A Guest uses more than its control group has, and the rest is in swap.
fn small_group() -> Result<()> {
    const GROUP: &str = "/sys/fs/cgroup/lg-taken";
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    fs::create_dir_all(GROUP)?;
    fs::write(format!("{GROUP}/memory.max"), "104M")?;
    let before = vmstat("pswpout")?;
    let fill = "dd if=/dev/urandom of=/dev/shm/a bs=1M count=90 2>/dev/null && sum=$(md5sum /dev/shm/a) && \
                [ \"$sum\" = \"$(md5sum /dev/shm/a)\" ]";
    let lg = format!("echo 0 >{GROUP}/cgroup.procs && exec lg run -m 256M -- sh -c '{fill}'");
    let status = Command::new("sh").args(["-c", &lg]).status()?;
    fs::remove_dir(GROUP)?;
    match (status.success(), vmstat("pswpout")? - before) {
        (true, out) if out > 0 => println!("of a small group, swapped out: {out}"),
        (true, _) => return Err("the group was not too small".into()),
        _ => return Err(format!("lg run in a small group: {status}").into()),
    }
    Ok(())
}

/// Advises the kernel about what the Guest keeps.
fn advise(ram: &Ram, advice: i32) -> Result<()> {
    let (start, length) = (ram.hva() + FIRST, (ram.size() - FIRST) as usize);
    // SAFETY: a part of our own mapping, in which nothing of Rust's is.
    match unsafe { libc::madvise(start as *mut _, length, advice) } {
        0 => Ok(()),
        _ => Err(format!("madvise {advice}: {}", std::io::Error::last_os_error()).into()),
    }
}

/// Has the kernel make huge pages of as much as it can: not where somebody has a page at that moment.
fn collapse(ram: &Ram) -> Result<()> {
    let busy = std::io::Error::from_raw_os_error(libc::EAGAIN).to_string();
    match advise(ram, libc::MADV_COLLAPSE) {
        Err(error) if error.to_string().ends_with(&busy) => Ok(()),
        result => result,
    }
}

/// Has the kernel merge pages, until it has looked at all of them twice.
fn merge(ram: &Ram) -> Result<()> {
    const KSM: &str = "/sys/kernel/mm/ksm";
    advise(ram, libc::MADV_MERGEABLE)?;
    fs::write(format!("{KSM}/pages_to_scan"), "100000")?;
    fs::write(format!("{KSM}/sleep_millisecs"), "1")?;
    let scans = number(&format!("{KSM}/full_scans"))?;
    fs::write(format!("{KSM}/run"), "1")?;
    while number(&format!("{KSM}/full_scans"))? < scans + 2 {
        std::thread::yield_now();
    }
    fs::write(format!("{KSM}/run"), "0")?;
    Ok(())
}

/// A child that has a copy of everything, and ends.
fn fork(_: &Ram) -> Result<()> {
    // SAFETY: the child does nothing but end.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: waits for the child of ours.
    match unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } == child {
        true => Ok(()),
        false => Err(std::io::Error::last_os_error().into()),
    }
}

/// A counter of the kernel's.
fn vmstat(name: &str) -> Result<u64> {
    field("/proc/vmstat", name)
}

fn kilobytes(name: &str) -> Result<u64> {
    field("/proc/meminfo", name)
}

/// The number behind a name in a list of them.
fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines().map(str::split_whitespace);
    let line = lines.find_map(|mut words| (words.next()? == name).then(|| words.next())?);
    Ok(line
        .ok_or_else(|| format!("no {name} in {path}"))?
        .parse()?)
}

fn number(path: &str) -> Result<u64> {
    Ok(fs::read_to_string(path)?.trim().parse()?)
}
