// SPDX-License-Identifier: GPL-2.0
//! Tests that run lg and look: GROUP/NAME is the script `selftests/GROUP/NAME.sh`.
//!
//! The Host's shell runs it, or in group `linux` a Guest's; group `stock` is the same once more, in a kernel as
//! Debian ships it: the one that the Host runs, if scripts/testhost was not told another. Lines at its head say how it must end:
//! `# expect: STATUS` if not with 0, `# prints: TEXT` that must be in its output, `# timeout: SECONDS` if
//! that takes long, `# memory: SIZE` of the Guest, `# cpus: N...` if that has several: the test is as many
//! then; and `# needs: nmi` if its kernel has to take NMIs, which by Xen's ABI nobody sends: it is none in group `stock`.

use crate::command::{self, End, Finished};
use crate::kernel_log::complaint_in;
use crate::test::{text, Outcome, Test, HERE};
use std::fs;
use std::io;
use std::time::Duration;

/// The group whose scripts are a Guest's, and that which has them, too.
const GUEST: &str = "linux";
const STOCK: &str = "stock";
/// The stock kernel of the tests: scripts/testhost has made that a link.
const STOCK_KERNEL: &str = "/boot/vmlinuz";
/// Memory that a stock kernel wants beside what a script asks for, in MiB.
const STOCK_MORE: u32 = 160;
/// The status of `lg run` when the Guest's kernel has panicked.
const PANICKED: i32 = 255;
/// Time for a script that asks for no more, in seconds.
const TIMEOUT: u64 = 180;

/// What the head of a script says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    status: i32,
    prints: Vec<String>,
    timeout: Duration,
    /// In MiB.
    memory: u32,
    /// Numbers of CPUs of the Guest, one after the other.
    cpus: Vec<u32>,
    /// The kernel has to take NMIs.
    nmi: bool,
}

impl Head {
    /// Reads the comment that a script begins with.
    fn of(source: &str) -> Result<Self, String> {
        let mut head = Self {
            status: 0,
            prints: Vec::new(),
            timeout: Duration::from_secs(TIMEOUT),
            memory: 256,
            cpus: vec![1],
            nmi: false,
        };
        for line in source.lines().take_while(|line| line.starts_with('#')) {
            let Some((key, value)) = line.trim_start_matches("# ").split_once(": ") else {
                continue;
            };
            match key {
                "expect" => head.status = value.parse().map_err(|_| line)?,
                "prints" => head.prints.push(value.to_owned()),
                "timeout" => head.timeout = Duration::from_secs(value.parse().map_err(|_| line)?),
                "memory" => {
                    let mib = value.strip_suffix('M').and_then(|mib| mib.parse().ok());
                    head.memory = mib.ok_or(line)?;
                }
                "cpus" => {
                    let cpus = value.split(' ').map(|cpus| cpus.parse().map_err(|_| line));
                    head.cpus = cpus.collect::<Result<_, _>>()?;
                }
                "needs" if value == "nmi" => head.nmi = true,
                "needs" => return Err(line.into()),
                _ => {}
            }
        }
        Ok(head)
    }
}

/// The scripts of a group, by name.
///
/// # Errors
///
/// When one cannot be read, or its head is not understood.
pub(crate) fn tests(group: &str) -> Result<Vec<Test>, String> {
    let of = if group == STOCK { GUEST } else { group };
    let directory = format!("{HERE}/selftests/{of}");
    let mut tests = Vec::new();
    for entry in fs::read_dir(&directory).map_err(|error| format!("{directory}: {error}"))? {
        let file = entry.map_err(text)?.file_name();
        let Some(name) = file.to_str().and_then(|name| name.strip_suffix(".sh")) else {
            continue;
        };
        // What the scripts of a group share is none.
        if name == "lib" {
            continue;
        }
        let path = format!("{directory}/{name}.sh");
        let mut head = Head::of(&fs::read_to_string(&path).map_err(text)?)?;
        let kernel = (group == STOCK).then_some(STOCK_KERNEL);
        if kernel.is_some() {
            if head.nmi {
                continue;
            }
            head.memory += STOCK_MORE;
            // It has more to do before its first program.
            head.timeout *= 2;
        }
        for cpus in head.cpus.clone() {
            let (path, head) = (path.clone(), head.clone());
            let file = (of == GUEST).then(|| format!("{name}.sh"));
            let name = match cpus {
                1 => format!("{group}/{name}"),
                cpus => format!("{group}/{name}-{cpus}-cpus"),
            };
            tests.push(Test::new(name, head.timeout, move |timeout| match &file {
                None => on_host(&path, &head, timeout),
                Some(file) => in_guest(kernel, cpus, file, &head, timeout),
            }));
        }
    }
    tests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tests)
}

/// Runs a script of the Host's, which finds the tests' initrd by `$LG_INITRD`.
fn on_host(path: &str, head: &Head, timeout: Duration) -> Outcome {
    let initrd = format!("LG_INITRD={}", initrd().map_err(text)?);
    let finished = command::run(&["env", &initrd, "sh", path], timeout).map_err(text)?;
    ends_well(&finished, head)
}

/// Runs a script as the Guest's command, in lg's own kernel or in `kernel`, with so many CPUs, and the Guest's log must
/// be clean.
fn in_guest(
    kernel: Option<&str>,
    cpus: u32,
    file: &str,
    head: &Head,
    timeout: Duration,
) -> Outcome {
    let initrd = initrd().map_err(text)?;
    let (path, memory) = (format!("/selftests/{file}"), format!("{}M", head.memory));
    let mut argv = vec!["lg", "run"];
    argv.extend(kernel);
    let smp = format!("--smp={cpus}");
    argv.extend([
        "-v", "-m", &memory, &smp, "--initrd", &initrd, "--", "sh", &path,
    ]);
    let finished = command::run(&argv, timeout).map_err(text)?;
    ends_well(&finished, head)?;
    match complaint_in(&finished.output).filter(|_| head.status != PANICKED) {
        Some(complaint) => Err(finished.report(&format!("the guest's log: {complaint}"))),
        None => Ok(()),
    }
}

fn ends_well(finished: &Finished, head: &Head) -> Outcome {
    finished.expect(End::Exit(head.status))?;
    let missing = |text: &&String| !finished.output.contains(text.as_str());
    match head.prints.iter().find(missing) {
        Some(text) => Err(finished.report(&format!("did not print {text:?} but:"))),
        None => Ok(()),
    }
}

/// The archive with busybox, and behind it the programs and scripts of the tests. (Linux unpacks archives
/// that follow one another, each at a multiple of four bytes.)
pub(crate) fn initrd() -> io::Result<String> {
    const PATH: &str = "/tmp/selftests.cpio";
    if !fs::exists(PATH)? {
        let mut archive = fs::read(format!("{HERE}/busybox.cpio"))?;
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(fs::read(format!("{HERE}/selftests/linux.cpio"))?);
        fs::write(PATH, archive)?;
    }
    Ok(PATH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_the_comment_at_the_top() {
        let head = Head::of(
            "#!/bin/sh\n# expect: 7\n# prints: a: b\n# prints: c\n# timeout: 9\nx\n# expect: 8\n",
        );
        let expected = Head {
            status: 7,
            prints: vec!["a: b".into(), "c".into()],
            timeout: Duration::from_secs(9),
            memory: 256,
            cpus: vec![1],
            nmi: false,
        };
        assert_eq!(head, Ok(expected));
        assert!(Head::of("# expect: none\n").is_err());
        assert_eq!(Head::of("# memory: 96M\n").map(|head| head.memory), Ok(96));
        assert!(Head::of("# memory: 1G\n").is_err());
        assert_eq!(
            Head::of("# cpus: 2 4\n").map(|head| head.cpus),
            Ok(vec![2, 4])
        );
        assert!(Head::of("# cpus: 2,4\n").is_err());
        assert_eq!(Head::of("# needs: nmi\n").map(|head| head.nmi), Ok(true));
        assert!(Head::of("# needs: more\n").is_err());
    }
}
