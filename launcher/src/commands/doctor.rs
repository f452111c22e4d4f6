// SPDX-License-Identifier: GPL-2.0
//! `lg doctor`: one line for each thing that lg needs or would like, and what to do where it is
//! missing.
//!
//! [`Facts::gather`] looks, [`examine`] judges: the judgements are tested with facts of machines that
//! nobody has at hand.

use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use nix::sys::resource::{getrlimit, Resource};
use nix::sys::utsname::uname;
use serde::Serialize;

use crate::boot::xen::INSTALLED_SHIM;
use crate::devices::net::passt;
use crate::machine::module as vm;
use crate::machine::speculation::{self, Told};
use crate::plan::guest;
use crate::report::Explain;
use crate::sandbox;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something will be missing, but Guests run.
    Warn,
    /// No Guest runs.
    Fail,
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Check {
    /// The thing that was looked at.
    pub name: &'static str,
    /// Its state.
    pub verdict: Verdict,
    /// The observation.
    pub seen: String,
    /// The fix, if not all is well.
    pub fix: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{mark}  {:<12} {}", self.name, self.seen)?;
        match &self.fix {
            Some(fix) => write!(f, "\n      fix: {fix}"),
            None => Ok(()),
        }
    }
}

/// All findings about this machine.
pub struct Facts {
    /// The CPU's flags, as /proc/cpuinfo names them.
    cpu: Vec<String>,
    /// `uname -r`
    release: String,
    /// A hypervisor that the kernel is a paravirtual Guest of, from /sys/hypervisor.
    hypervisor: Option<String>,
    /// The kernel's configuration, if it can be read.
    config: Option<String>,
    /// /sys/kernel/security/lockdown
    lockdown: Option<String>,
    /// Is the module loaded?
    module: bool,
    /// The result of opening the device: the number of paging levels, or the error.
    device: Result<u32, vm::ModuleError>,
    /// Mode, owner and group of the device's node.
    node: Option<(u32, u32, u32)>,
    /// The kernel that would be taken.
    kernel: Option<PathBuf>,
    initrd: bool,
    shim: bool,
    /// Limit of open files.
    files: u64,
    io_uring: bool,
    landlock: bool,
    passt: Option<PathBuf>,
    /// The findings on what the kernel and the module do about the CPU's bugs.
    speculation: Option<Told>,
}

impl Facts {
    /// Looks at this machine.
    pub fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let release = uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        let words = flags.and_then(|line| line.split_once(':'));
        let config = read(&format!("/boot/config-{release}"))
            .or_else(|| read(&format!("/lib/modules/{release}/build/.config")));
        Self {
            cpu: words
                .map(|(_, words)| words.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            hypervisor: read("/sys/hypervisor/type"),
            config,
            lockdown: read("/sys/kernel/security/lockdown"),
            module: fs::exists("/sys/module/lg").unwrap_or(false),
            device: vm::probe().map(|info| info.paging_levels),
            node: fs::metadata(vm::DEVICE)
                .ok()
                .map(|node| (node.permissions().mode() & 0o777, node.uid(), node.gid())),
            kernel: guest::find_kernel(None).ok(),
            initrd: fs::exists(guest::INSTALLED_INITRD).unwrap_or(false),
            shim: fs::exists(INSTALLED_SHIM).unwrap_or(false),
            files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard),
            // Kernels that do not know the switch have it on, if they have io_uring at all.
            io_uring: read("/proc/sys/kernel/io_uring_disabled")
                .is_none_or(|text| text.trim() == "0"),
            landlock: sandbox::landlock_version() != 0,
            passt: passt::find(),
            speculation: Told::gather(),
            release,
        }
    }
}

/// The flags of the CPU without which lg.ko refuses to load, and what each is for.
const CPU_NEEDS: [(&str, &str); 6] = [
    ("lm", "64-bit mode"),
    ("nx", "pages that are not executable"),
    ("syscall", "SYSCALL"),
    ("fsgsbase", "RDFSBASE and its like"),
    ("xsave", "XSAVE"),
    ("apic", "the local APIC"),
];
/// Fewer open files are too few for a shared directory.
const FILES_MIN: u64 = 4096;

/// Judges.
pub fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        cpu(facts),
        hypervisor(facts),
        kernel_fit(facts),
        module(facts),
        device(facts),
        guest_kernel(facts),
        guest_root(facts),
        guest_shim(facts),
        open_files(facts),
        io_uring(facts),
        landlock(facts),
        passt(facts),
    ];
    checks.extend(facts.speculation.iter().flat_map(cpu_bugs));
    checks
}

fn check(name: &'static str, verdict: Verdict, seen: impl Into<String>, fix: &str) -> Check {
    Check {
        name,
        verdict,
        seen: seen.into(),
        fix: (verdict != Verdict::Ok).then(|| fix.into()),
    }
}

fn ok(name: &'static str, seen: impl Into<String>) -> Check {
    check(name, Verdict::Ok, seen, "")
}

fn cpu(facts: &Facts) -> Check {
    let has = |flag: &str| facts.cpu.iter().any(|have| have == flag);
    let missing: Vec<_> = CPU_NEEDS
        .iter()
        .filter(|(flag, _)| !has(flag))
        .map(|(flag, what)| format!("{flag} ({what})"))
        .collect();
    if !missing.is_empty() {
        let seen = format!("lacks {}", missing.join(", "));
        return check(
            "cpu",
            Verdict::Fail,
            seen,
            "use a CPU, or a virtual CPU model, that has them",
        );
    }
    if has("fred") {
        let seen = "has FRED; when Linux uses it, lg.ko does not load";
        return check(
            "cpu",
            Verdict::Warn,
            seen,
            "boot with fred=off, should the module refuse",
        );
    }
    ok(
        "cpu",
        "x86-64 with all that lg needs; VT-x or SVM is not needed",
    )
}

fn hypervisor(facts: &Facts) -> Check {
    let guest = |flag: &str| facts.cpu.iter().any(|have| have == flag);
    if facts.hypervisor.as_deref().map(str::trim) == Some("xen") && guest("xenpv") {
        let fix = "use a Xen HVM or PVH domain";
        return check(
            "hypervisor",
            Verdict::Fail,
            "a Xen PV domain: Linux itself is not at CPL0",
            fix,
        );
    }
    if guest("tdx_guest") {
        let fix = "use an ordinary VM";
        return check("hypervisor", Verdict::Fail, "a confidential VM", fix);
    }
    ok("hypervisor", "nothing in the way")
}

fn kernel_fit(facts: &Facts) -> Check {
    let release = &facts.release;
    if let Some(lockdown) = &facts.lockdown {
        if !lockdown.contains("[none]") && !facts.module {
            let seen = format!("{release} is locked down: {}", lockdown.trim());
            let fix =
                "sign lg.ko with a key that the machine's owner has enrolled (mokutil), or turn \
                       Secure Boot off";
            return check("kernel", Verdict::Warn, seen, fix);
        }
    }
    match &facts.config {
        Some(config) if config.lines().any(|line| line == "CONFIG_RUST=y") => {
            ok("kernel", format!("{release}, with Rust"))
        }
        Some(_) => {
            let fix = "boot a kernel with CONFIG_RUST=y, such as Debian's newest cloud kernel";
            check(
                "kernel",
                Verdict::Fail,
                format!("{release} is built without CONFIG_RUST"),
                fix,
            )
        }
        // A module that is loaded fits.
        None if facts.module => ok("kernel", format!("{release}, and lg.ko fits it")),
        None => {
            let fix = "scripts/probe-kernel tells whether lg.ko can be built for it";
            check(
                "kernel",
                Verdict::Warn,
                format!("{release}; its configuration cannot be read"),
                fix,
            )
        }
    }
}

fn module(facts: &Facts) -> Check {
    match facts.module {
        true => ok("module", "lg.ko is loaded"),
        false => check(
            "module",
            Verdict::Fail,
            "lg.ko is not loaded",
            "sudo modprobe lg, or sudo insmod lg.ko",
        ),
    }
}

fn device(facts: &Facts) -> Check {
    let node = match facts.node {
        Some((mode, owner, group)) => format!("mode {mode:o}, user {owner}, group {group}"),
        None => "no node".into(),
    };
    match &facts.device {
        Ok(levels) => ok(
            "device",
            format!("/dev/lguest opens ({node}); {levels}-level paging"),
        ),
        Err(error) => {
            let seen = format!("{error} ({node}): {}", error.why());
            check("device", Verdict::Fail, seen, &error.fix())
        }
    }
}

fn guest_kernel(facts: &Facts) -> Check {
    match &facts.kernel {
        Some(path) => ok(
            "guest",
            format!("{} is what runs by default", path.display()),
        ),
        None => check(
            "guest",
            Verdict::Warn,
            "there is no default kernel",
            "name one, lg run KERNEL, or install one: make install",
        ),
    }
}

fn guest_root(facts: &Facts) -> Check {
    match facts.initrd {
        true => ok("initrd", guest::INSTALLED_INITRD),
        false => check(
            "initrd",
            Verdict::Warn,
            format!("{} is missing", guest::INSTALLED_INITRD),
            "name one with --initrd, or install it: make install",
        ),
    }
}

fn guest_shim(facts: &Facts) -> Check {
    match facts.shim {
        true => ok("shim", INSTALLED_SHIM),
        false => check(
            "shim",
            Verdict::Warn,
            format!("{INSTALLED_SHIM} is missing, and kernels without lg's patches cannot run"),
            "install it: make install",
        ),
    }
}

fn open_files(facts: &Facts) -> Check {
    let seen = format!("up to {}", facts.files);
    match facts.files >= FILES_MIN {
        true => ok("open files", seen),
        false => check(
            "open files",
            Verdict::Warn,
            seen,
            "shared directories want more: ulimit -Hn, /etc/security/limits.conf",
        ),
    }
}

fn io_uring(facts: &Facts) -> Check {
    match facts.io_uring {
        true => ok("io_uring", "there for disks"),
        false => check(
            "io_uring",
            Verdict::Warn,
            "switched off: disks do one request at a time",
            "sudo sysctl kernel.io_uring_disabled=0",
        ),
    }
}

fn landlock(facts: &Facts) -> Check {
    match facts.landlock {
        true => ok("landlock", "lg confines itself to the shared directories"),
        false => check(
            "landlock",
            Verdict::Warn,
            "not there: lg itself can reach all files that you can",
            "boot a kernel with CONFIG_SECURITY_LANDLOCK, and with landlock in its list lsm=",
        ),
    }
}

fn passt(facts: &Facts) -> Check {
    match &facts.passt {
        Some(path) => ok("passt", path.display().to_string()),
        None => check(
            "passt",
            Verdict::Warn,
            "not found: no --net user",
            "install it, such as: sudo apt install passt",
        ),
    }
}

/// One line for each bug that the CPU has, and one for the rest.
fn cpu_bugs(told: &Told) -> Vec<Check> {
    let (rows, spared) = speculation::rows(told);
    let mut checks = vec![ok(
        "cpu bugs",
        format!("{spared} that Linux knows this CPU has not"),
    )];
    checks.extend(rows.into_iter().map(|row| match row.fix {
        None => ok(row.bug, row.seen),
        Some(fix) => check(row.bug, Verdict::Warn, row.seen, fix),
    }));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            cpu: "lm nx syscall fsgsbase xsave apic"
                .split(' ')
                .map(str::to_owned)
                .collect(),
            release: "7.3.4".into(),
            config: Some("CONFIG_RUST=y\n".into()),
            lockdown: Some("[none] integrity confidentiality\n".into()),
            module: true,
            device: Ok(5),
            node: Some((0o660, 0, 100)),
            kernel: Some("/usr/lib/lg/vmlinux".into()),
            initrd: true,
            shim: true,
            files: 1 << 20,
            io_uring: true,
            landlock: true,
            passt: Some("/usr/bin/passt".into()),
            hypervisor: None,
            speculation: Some(bugs("Mitigation: Clear CPU buffers")),
        }
    }

    fn bugs(mds: &str) -> Told {
        Told {
            bugs: vec![
                ("mds".into(), mds.into()),
                ("meltdown".into(), "Not affected".into()),
            ],
            words: vec!["buffers".into(), "rsb".into()],
        }
    }

    /// The only check that is not ok.
    fn only_complaint(facts: &Facts) -> Check {
        let mut bad: Vec<_> = examine(facts)
            .into_iter()
            .filter(|check| check.verdict != Verdict::Ok)
            .collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        let check = bad.remove(0);
        assert!(check.fix.is_some());
        check
    }

    #[test]
    fn a_healthy_machine() {
        assert!(examine(&healthy())
            .iter()
            .all(|check| check.verdict == Verdict::Ok && check.fix.is_none()));
    }

    #[test]
    fn each_lack_is_one_line() {
        use Verdict::{Fail, Warn};
        type Spoil = fn(&mut Facts);
        let table: [(Spoil, &str, Verdict); 14] = [
            (|f| f.cpu.retain(|flag| flag != "fsgsbase"), "cpu", Fail),
            (|f| f.cpu.push("fred".into()), "cpu", Warn),
            (|f| f.cpu.push("tdx_guest".into()), "hypervisor", Fail),
            (
                |f| f.config = Some("# CONFIG_RUST is not set\n".into()),
                "kernel",
                Fail,
            ),
            (
                |f| f.device = Err(vm::ModuleError::NoDevice),
                "device",
                Fail,
            ),
            (|f| f.kernel = None, "guest", Warn),
            (|f| f.initrd = false, "initrd", Warn),
            (|f| f.shim = false, "shim", Warn),
            (|f| f.files = 256, "open files", Warn),
            (|f| f.io_uring = false, "io_uring", Warn),
            (|f| f.landlock = false, "landlock", Warn),
            (|f| f.passt = None, "passt", Warn),
            (|f| f.module = false, "module", Fail),
            (|f| f.speculation = Some(bugs("Vulnerable")), "mds", Warn),
        ];
        for (spoil, name, verdict) in table {
            let mut facts = healthy();
            spoil(&mut facts);
            let check = only_complaint(&facts);
            assert_eq!((check.name, check.verdict), (name, verdict));
        }
    }

    #[test]
    fn a_module_that_is_loaded_fits_its_kernel() {
        let mut facts = healthy();
        facts.config = None;
        assert!(examine(&facts)
            .iter()
            .all(|check| check.verdict == Verdict::Ok));
        facts.lockdown = Some("none [integrity] confidentiality".into());
        assert!(examine(&facts)
            .iter()
            .all(|check| check.verdict == Verdict::Ok));
    }

    #[test]
    fn lines() {
        let check = check("module", Verdict::Fail, "gone", "load it");
        assert_eq!(
            check.to_string(),
            "FAIL  module       gone\n      fix: load it"
        );
    }
}
