// SPDX-License-Identifier: GPL-2.0
//! Two Guests at a time on one disk, and one that is killed while it writes. (`selftests/disk` has the tests of
//! one Guest that ends by itself.)

use crate::command::{self, End, Finished};
use crate::test::{text, Outcome, Row};
use std::fs::{self, File};
use std::io::{self, Write};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Time for what is no Guest.
const TOOL: Duration = Duration::from_secs(30);

/// The rows of the table.
pub(crate) const TESTS: &[Row] = &[("two-guests", 180, two_guests), ("kill-9", 360, kill_9)];

/// Runs a program to its end, which must be a good one.
fn tool(argv: &[&str]) -> Result<Finished, String> {
    let finished = command::run(argv, TOOL).map_err(text)?;
    finished.expect(End::Exit(0))?;
    Ok(finished)
}

/// `lg run` with these disks, and a script for the Guest's shell.
fn guest<'a>(disks: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut argv = vec!["lg", "run", "-m", "128M", "-v"];
    disks.iter().for_each(|disk| argv.extend(["--disk", disk]));
    argv.extend(["--", "sh", "-exc", script]);
    argv
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

/// Does the Guest's log have this line, from its disk's driver?
fn says(finished: &Finished, what: &str) -> Outcome {
    match finished.output.contains(what) {
        true => Ok(()),
        false => Err(finished.report(&format!("did not print {what:?} but:"))),
    }
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

/// Two Guests at once: each has a disk to write, both an overlay of the same. A third gets neither.
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
        if read -r end; then exit 1; fi";
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

/// lg is killed while a Guest writes. What the Guest was told is on the disk, is on the disk.
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
