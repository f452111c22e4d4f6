// SPDX-License-Identifier: GPL-2.0
//! The command line.

pub mod file;
pub mod place;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueHint};

use crate::devices::blk::disk;
use crate::devices::fs::attributes;
use crate::devices::fs::share::Share;
use crate::devices::net::options as net;
use crate::devices::vsock::hub as vsock;

/// Run Linux and bare guests without VT-x or SVM.
#[derive(Debug, Parser)]
#[command(name = "lg", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest
    Run(Box<Run>),
    /// Check whether this machine has what lg needs
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain an error, an exit status or the death of a guest
    Explain {
        /// A code such as LG0010, or 124, 125 or 255; or the file that lg run has named when its guest died
        ///
        /// Without one, all codes are listed.
        #[arg(value_hint = ValueHint::FilePath)]
        subject: Option<OsString>,
        /// Print the explanations of all, in Markdown
        #[arg(long, conflicts_with = "subject")]
        all: bool,
    },
    /// Show what `lg run --trace` has written
    Trace(Trace),
    /// Show what an address is in the page tables of a running guest
    #[command(name = "pagetable")]
    PageTable(PageTable),
    /// Show what your guests do, as long as you look
    ///
    /// A line for each: its process, age, share of a CPU, memory; exits, page faults, hypercalls, interrupts
    /// of the host, halts and direct system calls per second. q leaves. Where it is no terminal, it prints
    /// once, with rates since each guest's start.
    Top(Top),
    /// Give a kernel tree's .config what a guest needs
    Config {
        /// The tree; the .config is in $KBUILD_OUTPUT, if that is set
        #[arg(default_value = ".")]
        tree: PathBuf,
        /// What a kernel without lg's patches needs, which is a guest by Xen's interface
        #[arg(long)]
        xen: bool,
        /// Change nothing; exit with 1 if something is not as it should be
        #[arg(long)]
        check: bool,
    },
    /// Tell what a kernel is, how lg would run it, and what it lacks
    ///
    /// The exit status is 1 if lg would not run it.
    Inspect {
        /// vmlinux, bzImage or bare guest
        file: PathBuf,
        /// Its modules [default: /lib/modules/RELEASE]
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script
    Completions {
        /// The shell that it is for
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory
        directory: PathBuf,
    },
    /// A process that `lg run` starts for itself, see
    /// [`attributes`](crate::devices::fs::attributes).
    #[command(name = attributes::SUBCOMMAND, hide = true)]
    Attributes,
}

/// The options of `lg trace`.
#[derive(Args, Debug)]
pub struct Trace {
    /// The file
    pub file: PathBuf,
    /// Print what each kind of exit costs, and the counters
    #[arg(long)]
    pub summary: bool,
    /// Print JSON: an object for each record, or one for the summary
    #[arg(long)]
    pub json: bool,
    /// Print a trace for https://ui.perfetto.dev
    #[arg(long, conflicts_with_all = ["summary", "json"])]
    pub perfetto: bool,
    /// The vmlinux that ran, for the names of its functions
    ///
    /// Default: what lg run would run, if it is that one.
    #[arg(long, value_name = "VMLINUX")]
    pub kernel: Option<PathBuf>,
}

/// The options of `lg pagetable`.
#[derive(Args, Debug)]
pub struct PageTable {
    /// In hexadecimal, or a name of the kernel's
    ///
    /// It is looked up in the tables that the guest is on at that moment, whatever it does.
    pub address: String,
    /// The lg run that has the guest; it need not be named if there is one
    #[arg(long, value_name = "PID")]
    pub guest: Option<u32>,
    /// The vmlinux that runs, for names
    ///
    /// Default: the file that lg run has been given.
    #[arg(long, value_name = "VMLINUX")]
    pub kernel: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `lg top`.
#[derive(Args, Debug)]
pub struct Top {
    /// Print once
    #[arg(long)]
    pub once: bool,
    /// Print JSON once: an array with the counters of each
    #[arg(long)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Exit status: that of COMMAND, or of the guest's power-off; and
  124  time-out
  125  lg failed, before or while the guest ran
  255  the guest's kernel panicked, or the guest did what it may not

Keys, on a terminal (Ctrl-a h helps):
  Ctrl-a x  end the guest   Ctrl-a z  stop lg   Ctrl-a Ctrl-a  send Ctrl-a";

const GUEST: &str = "Guest";
const DEVICES: &str = "Devices";
const COMMAND: &str = "Command";
const DIAGNOSIS: &str = "Diagnosis";

/// The options of `lg run`. A file that `--config` names has the same ones, see
/// [`options_file`](crate::cli::file), so there is nothing to add there for a new one; but one
/// whose value begins with a path must say so by its `value_hint`, if its type does not.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP, args_override_self = true)]
pub struct Run {
    /// vmlinux, bzImage or bare guest
    ///
    /// Default: the first of ./vmlinux, ./arch/x86/boot/bzImage, both of these below
    /// $KBUILD_OUTPUT, /usr/lib/lg/vmlinux, and the one that the host runs, in /boot.
    pub kernel: Option<PathBuf>,

    /// Take options from a file, such as lg.toml
    ///
    /// It has a line NAME = VALUE for each, in TOML: memory = "1G", rw = true, share = ["src:src"],
    /// also kernel = "vmlinux" and command = ["make", "check"]. Paths in it begin at its own
    /// directory. What is said here counts more: options that may be repeated are added to those of
    /// the file, others replace them.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Memory, with suffix K, M or G
    ///
    /// Without one, it is in MiB. It is rounded up to 2 MiB.
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    #[arg(help_heading = GUEST)]
    pub memory: u64,

    /// Number of CPUs
    ///
    /// Each is a thread of lg's.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = GUEST)]
    pub smp: u32,

    /// The guest's root directory [default: /]
    ///
    /// The command runs there as you, in your current directory. What it writes stays in the guest's
    /// memory.
    #[arg(long, value_name = "DIR", help_heading = GUEST)]
    pub root: Option<PathBuf>,

    /// Let the guest write to its root what you may
    ///
    /// /tmp, /run and /dev stay the guest's own, and what is written there is gone afterwards.
    #[arg(long, help_heading = GUEST)]
    pub rw: bool,

    /// Initial RAM disk, and the root if none is named
    ///
    /// Default: /usr/lib/lg/initramfs.cpio, which goes to the root.
    #[arg(long, value_name = "FILE", help_heading = GUEST)]
    pub initrd: Option<PathBuf>,

    /// The kernel's modules [default: /lib/modules/RELEASE]
    ///
    /// Those that a kernel without lguest support needs for its devices, and has not built in, are
    /// loaded before anything else. It is the directory that has modules.dep.
    #[arg(long, value_name = "DIR", help_heading = GUEST)]
    pub modules: Option<PathBuf>,

    /// Add to the kernel's command line; repeatable
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = GUEST)]
    pub append: Vec<String>,

    /// Raw image or block device; repeatable
    ///
    /// The first is /dev/vda, the next /dev/vdb and so on.
    ///
    /// With ",ro" the guest may only read it. With ",overlay" the file stays as it is, and what the
    /// guest writes goes to a temporary file in $TMPDIR or /var/tmp, and is gone at the end.
    #[arg(long, value_name = "FILE[,ro][,overlay]", value_parser = disk_parser())]
    #[arg(value_hint = ValueHint::FilePath, help_heading = DEVICES)]
    pub disk: Vec<disk::Spec>,

    /// Directory, at /mnt/TAG; repeatable
    ///
    /// With ":ro" the guest cannot change it. Without, it may do there what you may.
    #[arg(long, value_name = "DIR:TAG[:ro]")]
    #[arg(value_hint = ValueHint::DirPath, help_heading = DEVICES)]
    pub share: Vec<Share>,

    /// Network: user or tap=INTERFACE
    ///
    /// All of it is user[,forward=PORT:GUESTPORT[/udp]] or tap=INTERFACE, and then [,mac=ADDRESS].
    ///
    /// user: by passt, without any rights. The guest has a configured eth0, and reaches what the
    /// user reaches; the loopback interface here is 10.0.2.2 there. Each forward= lets a port of the
    /// loopback interface here be one of the guest's.
    ///
    /// tap: by an interface that exists and is the user's; addresses are up to both sides.
    #[arg(long, value_name = "NETWORK", value_parser = net::Options::parse)]
    #[arg(help_heading = DEVICES)]
    pub net: Option<net::Options>,

    /// Connect AF_VSOCK to UNIX sockets
    ///
    /// Who connects to PATH and writes "CONNECT PORT" and a newline reads "OK ..." and speaks with
    /// whoever listens on that port in the guest. Who connects to port PORT of CID 2 in the guest
    /// speaks with whoever listens on PATH_PORT here. The guest's own CID is 3 unless named.
    #[arg(long, value_name = "PATH[,cid=N]", value_parser = vsock_parser())]
    #[arg(value_hint = ValueHint::AnyPath, help_heading = DEVICES)]
    pub vsock: Option<vsock::Spec>,

    /// A variable for the command; repeatable
    ///
    /// Without =VALUE it is yours, if you have it. The command has TERM in any case, and in the
    /// Host's files HOME, USER, LOGNAME, SHELL and PATH as you have them. The last of a name counts.
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = variable_parser())]
    #[arg(help_heading = COMMAND)]
    pub env: Vec<OsString>,

    /// Leave standard input alone: it is empty
    ///
    /// For terminals, sockets and devices, of which what is read ahead is gone. Of a file or a pipe,
    /// only what the command reads is used up anyway.
    #[arg(short, long, help_heading = COMMAND)]
    pub no_stdin: bool,

    /// End the guest after this time, such as 30s
    ///
    /// Suffixes are ms, s, m and h. Without one, it is in seconds. All that lg does counts, from its
    /// start: waiting for gdb, too.
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = COMMAND)]
    pub timeout: Option<Duration>,

    /// Wait for gdb, and let it drive the guest
    ///
    /// At a UNIX socket, which only you can connect to: target remote SOCKET.
    #[arg(long, value_name = "SOCKET", value_parser = gdb_parser())]
    #[arg(value_hint = ValueHint::AnyPath, help_heading = DIAGNOSIS)]
    pub gdb: Option<PathBuf>,

    /// Print the host's event counters at the end
    #[arg(long, help_heading = DIAGNOSIS)]
    pub stats: bool,

    /// Write what each vCPU does to a file, for lg trace
    ///
    /// Every entry of the guest, and what came of the exit that ended it, with times: 128 bytes each,
    /// some ten thousand for a boot. The guest waits while they are written.
    #[arg(long, value_name = "FILE", help_heading = DIAGNOSIS)]
    pub trace: Option<PathBuf>,

    /// Have the trace show each system call, and the return from it
    ///
    /// By itself, a system call of the guest's leaves it only for lg's switcher, and is counted. With
    /// this each is an exit, which costs a few times as much.
    #[arg(long, requires = "trace", help_heading = DIAGNOSIS, hide_short_help = true)]
    pub trace_calls: bool,

    /// Write a page about the run to a file, for a browser
    ///
    /// What lg and the guest's kernel did when, exits over time, where the time went, the slowest
    /// initcalls, the pages touched. It adds initcall_debug and loglevel=8 to the kernel's command line,
    /// and records the vCPUs as --trace does.
    #[arg(long, value_name = "FILE", help_heading = DIAGNOSIS)]
    pub report: Option<PathBuf>,

    /// Have the page tell what changed since this one
    ///
    /// A page that an earlier --report has written; it may be the same file.
    #[arg(long, value_name = "FILE", help_heading = DIAGNOSIS, hide_short_help = true)]
    pub report_since: Option<PathBuf>,

    /// Show the kernel's whole log, and what lg does
    #[arg(short, long, help_heading = DIAGNOSIS)]
    pub verbose: bool,

    /// Only check, and print what would run
    ///
    /// It needs no /dev/lguest, and changes nothing.
    #[arg(long, help_heading = DIAGNOSIS)]
    pub dry_run: bool,

    /// Write to a file how the run ended
    ///
    /// It is one JSON object: status, reason, message, the code of an error, the kernel, times and,
    /// with --stats, the counters; with --dry-run what would run. It is empty until the end.
    #[arg(long, value_name = "FILE", help_heading = DIAGNOSIS)]
    pub json: Option<PathBuf>,

    /// Run this in the guest instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn vsock_parser() -> impl TypedValueParser<Value = vsock::Spec> {
    OsStringValueParser::new().try_map(vsock::Spec::parse)
}

fn disk_parser() -> impl TypedValueParser<Value = disk::Spec> {
    OsStringValueParser::new().try_map(disk::Spec::parse)
}

fn gdb_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(place::parse)
}

fn variable_parser() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(parse_variable)
}

/// What Linux takes for one word of a program's arguments or environment, its NUL included:
/// `MAX_ARG_STRLEN`. With a longer one, no program starts.
const WORD_MAX: usize = 128 << 10;

/// NAME or NAME=VALUE.
fn parse_variable(text: OsString) -> Result<OsString, String> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || bytes[0] == b'=' {
        return Err("it has no name; examples are LANG and LANG=C".into());
    }
    if bytes.contains(&0) {
        return Err("there can be no NUL in it".into());
    }
    if bytes.len() >= WORD_MAX {
        return Err(format!("Linux takes {} KiB for one", WORD_MAX >> 10));
    }
    Ok(text)
}

/// RAM is mapped in large pages.
const RAM_UNIT: u64 = 2 << 20;
/// The launcher's boot data and the smallest kernel want this much.
const RAM_MIN: u64 = 4 << 20;

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "K" => 10,
        "" | "M" => 20,
        "G" => 30,
        _ => return Err("not a size; examples are 512M and 2G".into()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size; examples are 512M and 2G".to_string())?;
    let size = number
        .checked_mul(1 << shift)
        .and_then(|size| size.checked_next_multiple_of(RAM_UNIT));
    match size {
        Some(size) if size > lguest_abi::LGUEST_MAX_GPA => Err(format!(
            "at most {}G are possible",
            lguest_abi::LGUEST_MAX_GPA >> 30
        )),
        Some(size) if size >= RAM_MIN => Ok(size),
        Some(_) => Err(format!("at least {}M are needed", RAM_MIN >> 20)),
        None => Err("that is too much".into()),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let bad = || "not a time; examples are 30s, 1.5m and 500ms".to_string();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    let number: f64 = digits.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| bad())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The options of `lg run` with these arguments.
    pub(crate) fn run(arguments: &[&str]) -> Result<Run, clap::Error> {
        match Cli::try_parse_from(["lg", "run"].iter().chain(arguments))?.command {
            Command::Run(run) => Ok(*run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn short_help_fits_on_a_screen() {
        let help = run(&["-h"]).unwrap_err().to_string();
        assert!(help.lines().count() <= 48, "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn defaults() {
        let run = run(&[]).unwrap();
        assert_eq!(run.kernel, None);
        assert_eq!(run.memory, 512 << 20);
        assert!(run.command.is_empty() && !run.stats && run.timeout.is_none());
    }

    #[test]
    fn the_command_is_left_alone() {
        let run = run(&["k", "-m", "1G", "--append", "-x y", "--", "sh", "-c", "-m"]).unwrap();
        assert_eq!(run.kernel, Some("k".into()));
        assert_eq!(
            (run.memory, &run.append[..]),
            (1 << 30, &["-x y".into()][..])
        );
        assert_eq!(run.command, ["sh", "-c", "-m"]);
        assert!(super::tests::run(&["k", "extra"]).is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("256"), Ok(256 << 20));
        assert_eq!(parse_size("4096k"), Ok(4 << 20));
        assert_eq!(parse_size("5M"), Ok(6 << 20));
        assert_eq!(parse_size("3G"), Ok(3 << 30));
        assert_eq!(parse_size("256G"), Ok(256 << 30));
        for bad in [
            "",
            "M",
            "-1",
            "1T",
            "1.5G",
            "1 G",
            "G1",
            "0",
            "1M",
            "257G",
            "99999999999999999G",
            "9µ",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "-1s", "1d", "1e999", "inf", "nan", "9µ"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables() {
        let env = run(&["--env", "A", "--env", "B=c=d", "--env=C="])
            .unwrap()
            .env;
        assert_eq!(env, ["A", "B=c=d", "C="]);
        let long = "x".repeat(WORD_MAX);
        for bad in ["", "=", "=x", "A=\0", &long] {
            assert!(parse_variable(bad.into()).is_err(), "{bad}");
        }
        assert!(parse_variable(long[1..].into()).is_ok());
    }

    #[test]
    fn places_for_gdb() {
        let gdb = |place| run(&["--gdb", place]).map(|run| run.gdb.unwrap());
        for path in ["./1234", "/tmp/gdb", "gdb1"] {
            assert_eq!(gdb(path).unwrap(), PathBuf::from(path));
        }
        for port in [
            "1234",
            ":1234",
            "localhost:1234",
            "127.0.0.1:1",
            "tcp:host:1",
            "99999",
        ] {
            let error = gdb(port).unwrap_err().to_string();
            assert!(error.contains("target remote /tmp/gdb"), "{error}");
        }
        gdb("").unwrap_err();
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_not(text in ".*") {
            if let Ok(size) = parse_size(&text) {
                prop_assert!(size >= RAM_MIN && size % RAM_UNIT == 0);
            }
            let _ = parse_time(&text);
        }
    }
}
