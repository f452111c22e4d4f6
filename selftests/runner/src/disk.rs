// SPDX-License-Identifier: GPL-2.0
//! Are disks what a guest takes them for? Its real driver and ext4 use them; e2fsck, the Host's own
//! ext4 and the files behind them tell what came of it.

use crate::command::{self, End, Finished};
use crate::Outcome;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Time for what is no guest.
const TOOL: Duration = Duration::from_secs(30);

/// Name, time limit in seconds, test.
type Row = (&'static str, u64, fn(Duration) -> Outcome);

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[
    ("ext4", 120, ext4),
    ("read-only", 60, read_only),
    ("overlay", 60, overlay),
    ("discard", 60, discard),
    ("without-io-uring", 60, without_io_uring),
    ("block-device", 120, block_device),
    ("two-guests", 120, two_guests),
    ("kill-9", 180, kill_9),
];

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Runs a program to its end, which must be a good one.
fn tool(argv: &[&str]) -> Result<Finished, String> {
    let finished = command::run(argv, TOOL).map_err(text)?;
    finished.expect(End::Exit(0))?;
    Ok(finished)
}

/// `lg run` with these disks, and a script for the guest's shell.
fn guest<'a>(disks: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut argv = vec!["lg", "run", "-m", "128M", "-v"];
    disks.iter().for_each(|disk| argv.extend(["--disk", disk]));
    argv.extend(["--", "sh", "-exc", script]);
    argv
}

/// Runs a guest that must succeed.
fn succeed(disks: &[&str], script: &str, timeout: Duration) -> Result<Finished, String> {
    let finished = command::run(&guest(disks, script), timeout).map_err(text)?;
    finished.expect(End::Exit(0))?;
    Ok(finished)
}

/// A file of SIZE at `path`, of nothing or of noise.
fn make(path: &str, noise: bool) -> Outcome {
    let mut file = File::create(path).map_err(text)?;
    if noise {
        let random = File::open("/dev/urandom").map_err(text)?;
        io::copy(&mut io::Read::take(random, SIZE), &mut file).map_err(text)?;
    }
    file.set_len(SIZE).map_err(text)
}

/// A file with an ext4 file system.
fn make_ext4(path: &str) -> Outcome {
    make(path, false)?;
    tool(&["mke2fs", "-q", "-t", "ext4", path]).map(drop)
}

/// The file system is consistent, and was unmounted.
fn is_clean(path: &str) -> Outcome {
    let finished = tool(&["e2fsck", "-fn", path])?;
    match finished.output.contains("recovery") {
        true => Err(finished.report("the journal is not empty:")),
        false => Ok(()),
    }
}

/// Does the guest's log have this line, from its disk's driver?
fn says(finished: &Finished, what: &str) -> Outcome {
    match finished.output.contains(what) {
        true => Ok(()),
        false => Err(finished.report(&format!("did not print {what:?} but:"))),
    }
}

/// Files on ext4, read back from the disk; a second disk as it is; clean after power-off.
fn ext4(timeout: Duration) -> Outcome {
    let (first, second) = ("/tmp/first.img", "/tmp/second.img");
    make_ext4(first)?;
    make(second, true)?;
    let script = "
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        cd /mnt
        # Many small ones, and one of many requests at a time.
        mkdir small
        for n in $(seq 100); do dd if=/dev/urandom of=small/$n bs=1000 count=$n 2>/dev/null; done
        dd if=/dev/vdb of=large bs=64k count=240 conv=fsync
        rm small/*5
        find . -type f | xargs md5sum >/tmp/sums
        cp /tmp/sums .
        cd /
        umount /mnt
        mount -t ext4 /dev/vda /mnt
        cd /mnt
        md5sum -c /tmp/sums >/dev/null
        cmp -n $((240 << 16)) large /dev/vdb
        dd if=large of=/dev/vdb bs=4k seek=1000 conv=fsync,notrunc
        cd /
        umount /mnt
        cat /sys/block/vda/serial; echo
        cat /sys/block/vda/cache_type";
    let before = fs::read(second).map_err(text)?;
    let finished = succeed(&[first, second], script, timeout)?;
    says(&finished, "first.img")?;
    says(&finished, "write back")?;
    is_clean(first)?;
    let mut expected = before.clone();
    let place = 1000 * 4096;
    expected[place..][..240 << 16].copy_from_slice(&before[..240 << 16]);
    if fs::read(second).map_err(text)? != expected {
        return Err("the second disk is not what was written".into());
    }
    on_host(
        first,
        "md5sum -c sums >/dev/null && [ $(ls small | wc -l) = 90 ]",
    )?;
    fs::remove_file(first)
        .and(fs::remove_file(second))
        .map_err(text)
}

/// Mounts a file system on the Host, and runs a script there.
fn on_host(path: &str, script: &str) -> Outcome {
    load_loop()?;
    fs::create_dir_all("/tmp/mnt").map_err(text)?;
    tool(&["mount", "-t", "ext4", "-o", "loop,ro", path, "/tmp/mnt"])?;
    let result = tool(&["sh", "-exc", &format!("cd /tmp/mnt; {script}")]);
    tool(&["umount", "-d", "/tmp/mnt"])?;
    result.map(drop)
}

fn load_loop() -> Outcome {
    if fs::exists("/dev/loop-control").map_err(text)? {
        return Ok(());
    }
    tool(&["insmod", "/usr/lib/modules/loop.ko"]).map(drop)
}

/// Runs a guest that must leave `path` as it is.
fn unchanged(path: &str, disk: &str, script: &str, timeout: Duration) -> Outcome {
    let before = fs::read(path).map_err(text)?;
    succeed(&[disk], script, timeout)?;
    if fs::read(path).map_err(text)? != before {
        return Err(format!("{path} has changed"));
    }
    fs::remove_file(path).map_err(text)
}

/// A disk that may only be read is read, and refuses writes, whoever owns the file.
fn read_only(timeout: Duration) -> Outcome {
    let path = "/tmp/read-only.img";
    make_ext4(path)?;
    let script = "
        [ $(cat /sys/block/vda/ro) = 1 ]
        ! dd if=/dev/zero of=/dev/vda bs=4k count=1
        mkdir /mnt
        mount -t ext4 -o ro /dev/vda /mnt
        ls /mnt/lost+found";
    unchanged(path, "/tmp/read-only.img,ro", script, timeout)
}

/// What is written to an overlay is there, and only there.
fn overlay(timeout: Duration) -> Outcome {
    let path = "/tmp/overlay.img";
    make_ext4(path)?;
    let script = "
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/file bs=64k count=200
        md5sum /mnt/file >/tmp/sum
        umount /mnt
        mount -t ext4 /dev/vda /mnt
        md5sum -c /tmp/sum
        rm /mnt/file
        fstrim /mnt
        umount /mnt";
    unchanged(path, "/tmp/overlay.img,overlay", script, timeout)
}

/// What a guest discards, the Host has again; what it zeroes, is zero.
fn discard(timeout: Duration) -> Outcome {
    let path = "/tmp/discard.img";
    make(path, true)?;
    let before = fs::metadata(path).map_err(text)?.blocks();
    let script = "
        blkdiscard -o 0 -l $((24 << 20)) /dev/vda
        dd if=/dev/zero of=/dev/vda bs=1M seek=24 count=2 conv=fsync,notrunc";
    let kept = fs::read(path).map_err(text)?;
    succeed(&[path], script, timeout)?;
    let after = fs::metadata(path).map_err(text)?.blocks();
    if after > before / 4 + 64 {
        return Err(format!("of {before} blocks there are still {after}"));
    }
    let now = fs::read(path).map_err(text)?;
    let end = 26 << 20;
    if now[..end].iter().any(|&byte| byte != 0) || now[end..] != kept[end..] {
        return Err("something else was discarded".into());
    }
    fs::remove_file(path).map_err(text)
}

/// Where the Host does not allow io_uring, disks work all the same, and -v tells.
fn without_io_uring(timeout: Duration) -> Outcome {
    const ALLOWED: &str = "/proc/sys/kernel/io_uring_disabled";
    const TELLS: &str = "without io_uring";
    let path = "/tmp/plain.img";
    make_ext4(path)?;
    let script = "
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/file bs=64k count=200 conv=fsync
        cd /mnt
        md5sum file >sum
        cd /
        umount /mnt";
    fs::write(ALLOWED, "2").map_err(text)?;
    let finished = succeed(&[path], script, timeout);
    fs::write(ALLOWED, "0").map_err(text)?;
    says(&finished?, TELLS)?;
    is_clean(path)?;
    on_host(path, "md5sum -c sum")?;
    let finished = succeed(&[path], "cat /dev/vda >/dev/null", timeout)?;
    if finished.output.contains(TELLS) {
        return Err(finished.report("nobody forbids io_uring, but:"));
    }
    fs::remove_file(path).map_err(text)
}

/// A block device of the Host: flushes get there, and nobody takes it while it is mounted.
fn block_device(timeout: Duration) -> Outcome {
    const DEVICE: &str = "/dev/loop7";
    let path = "/tmp/device.img";
    make_ext4(path)?;
    load_loop()?;
    tool(&["mknod", DEVICE, "b", "7", "7"]).ok();
    tool(&["losetup", DEVICE, path])?;
    // The 16th number is that of the flushes that were done.
    let flushes = || -> Result<u64, String> {
        let stat = fs::read_to_string("/sys/block/loop7/stat").map_err(text)?;
        let number = stat
            .split_whitespace()
            .nth(15)
            .ok_or("no flushes in stat")?;
        number.parse().map_err(text)
    };
    let script = "
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        for n in $(seq 20); do dd if=/dev/zero of=/mnt/$n bs=4k count=1 conv=fsync; done
        rm /mnt/1?
        fstrim /mnt
        umount /mnt";
    let before = flushes()?;
    succeed(&[DEVICE], script, timeout)?;
    let done = flushes()? - before;
    if done < 20 {
        return Err(format!("of 20 fsyncs, {done} flushes reached the device"));
    }
    fs::create_dir_all("/tmp/mnt").map_err(text)?;
    tool(&["mount", "-t", "ext4", DEVICE, "/tmp/mnt"])?;
    let refused = command::run(&guest(&[DEVICE], "true"), timeout).map_err(text)?;
    tool(&["umount", "/tmp/mnt"])?;
    refused.expect(End::Exit(125))?;
    says(&refused, "it is in use")?;
    tool(&["losetup", "-d", DEVICE])?;
    fs::remove_file(path).map_err(text)
}

/// Two guests at once: each has a disk to write, both an overlay of the same. A third gets neither.
fn two_guests(timeout: Duration) -> Outcome {
    let (common, own) = (
        "/tmp/common.img,overlay",
        ["/tmp/own0.img", "/tmp/own1.img"],
    );
    make("/tmp/common.img", true)?;
    let script = "
        dd if=/dev/vda of=/dev/vdb bs=64k conv=fsync
        dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync
        cmp -n $((1 << 20)) /dev/zero /dev/vda
        echo ready
        ! read -r end";
    let go = "/tmp/go";
    tool(&["mkfifo", go])?;
    let mut guests = Vec::new();
    for path in own {
        make(path, false)?;
        let mut argv = vec!["sh", "-c", "exec \"$@\" </tmp/go", "sh"];
        argv.extend(guest(&[common, path], script));
        guests.push(command::start(&argv).map_err(text)?);
    }
    // They run until this is closed, which is where their input ends.
    let input = File::create(go).map_err(text)?;
    for guest in &guests {
        guest.prints(timeout, |output| output.contains("\nready"))?;
    }
    for taken in ["/tmp/common.img", own[0], "/tmp/own0.img,ro"] {
        let refused = command::run(&guest(&[taken], "true"), timeout).map_err(text)?;
        refused.expect(End::Exit(125))?;
        says(&refused, "it is in use")?;
    }
    drop(input);
    for guest in guests {
        guest.finish(timeout).map_err(text)?.expect(End::Exit(0))?;
    }
    let original = fs::read("/tmp/common.img").map_err(text)?;
    for path in own {
        if fs::read(path).map_err(text)? != original {
            return Err(format!("{path} is no copy"));
        }
        fs::remove_file(path).map_err(text)?;
    }
    fs::remove_file(go).map_err(text)?;
    fs::remove_file("/tmp/common.img").map_err(text)
}

/// lg is killed while a guest writes. What the guest was told is on the disk, is on the disk.
fn kill_9(timeout: Duration) -> Outcome {
    let path = "/tmp/killed.img";
    let script = "
        set +x
        mkdir /mnt
        mount -t ext4 /dev/vda /mnt
        cd /mnt
        n=0
        while :; do
            n=$((n + 1))
            dd if=/dev/urandom of=$n bs=3000 count=7 conv=fsync 2>/dev/null
            echo \"sum $(md5sum $n)\"
            rm -f -- $((n - 150))
        done";
    for files in [40, 97, 160] {
        make_ext4(path)?;
        let launcher = command::start(&guest(&[path], script)).map_err(text)?;
        let written = |output: &str| output.matches("\nsum ").count();
        launcher.prints(timeout / 3, |output| written(output) >= files)?;
        launcher.signal(libc::SIGKILL);
        let finished = launcher.finish(TOOL).map_err(text)?;
        finished.expect(End::Signal(libc::SIGKILL))?;
        // Mends by replaying the journal: 1 is for that.
        let mended = command::run(&["e2fsck", "-fy", path], TOOL).map_err(text)?;
        mended
            .expect(End::Exit(1))
            .or(mended.expect(End::Exit(0)))?;
        is_clean(path)?;
        let sums: Vec<_> = finished
            .output
            .lines()
            .filter_map(|line| line.strip_prefix("sum "))
            .collect();
        // The last may be half a line; the oldest are removed by and by.
        let whole = &sums[..sums.len() - 1];
        let kept = &whole[whole.len().saturating_sub(140)..];
        let mut list = File::create("/tmp/sums").map_err(text)?;
        for sum in kept {
            writeln!(list, "{sum}").map_err(text)?;
        }
        on_host(path, "md5sum -c /tmp/sums >/dev/null")?;
    }
    fs::remove_file(path).map_err(text)
}
