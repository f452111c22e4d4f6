// SPDX-License-Identifier: GPL-2.0
//! The codes of all errors, each with its explanation: what `lg explain` prints, and what
//! `Documentation/errors.md` is made of.
//!
//! A code, once given, keeps its meaning for ever: scripts and web pages know it. A new error gets
//! the next number.
//!
//! The message of one occurrence, and its own cause, are where the error is: in the module whose type
//! `Explain`s itself. `git grep Code::NAME` finds it.

use std::fmt::{self, Write};
use std::str::FromStr;

/// The explanation of an error.
#[derive(Debug)]
pub struct Explanation {
    /// The error in a few words.
    pub title: &'static str,
    /// The cause.
    pub cause: &'static str,
    /// The way to find out more.
    pub check: &'static str,
    /// What to do.
    pub fix: &'static str,
}

macro_rules! codes {
    ($($number:literal $name:ident: $title:literal, $cause:literal, $check:literal, $fix:literal;)*) => {
        /// The code of an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // the titles say it
        pub enum Code {
            $($name = $number,)*
        }

        impl Code {
            /// The error in a few words.
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)*
                }
            }

            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The explanation.
            pub fn explanation(self) -> Explanation {
                match self {
                    $(Self::$name => Explanation {
                        title: $title,
                        cause: $cause,
                        check: $check,
                        fix: $fix,
                    },)*
                }
            }
        }
    };
}

codes! {
    1 NoKernel: "there is no kernel to run",
        "No kernel was named, and none is where one is looked for: ./vmlinux, ./arch/x86/boot/bzImage, the same \
         below $KBUILD_OUTPUT, and the installed default. The host's own kernel is never taken: it lacks the \
         guest's support for lg.",
        "The error lists every path that was tried.",
        "Name a kernel, lg run KERNEL, or start lg in the tree of a kernel that is built.";
    2 NoInitrd: "there is no initrd",
        "Linux needs an initial root, none was named, and the default one is not installed.",
        "ls /usr/lib/lg",
        "Name one with --initrd FILE; /dev/null will do when the kernel has one built in. `make install` installs \
         the default.";
    3 Read: "a file cannot be read",
        "It does not exist, is a directory, or may not be read by you.",
        "ls -l FILE",
        "Name a file that exists and that you may read.";
    4 NotAKernel: "the file is no kernel",
        "It is neither an ELF executable nor a bzImage.",
        "file KERNEL",
        "Name the vmlinux or the arch/x86/boot/bzImage of an x86-64 kernel tree.";
    5 DamagedKernel: "the kernel is damaged",
        "Its headers contradict themselves, or it is cut short; or its segments are where no guest can have them.",
        "readelf -lW vmlinux",
        "Build or copy the file again.";
    6 ForeignKernel: "the kernel is for another machine",
        "lg runs its guests on this very CPU, so they must be x86-64.",
        "file KERNEL",
        "Build the kernel with ARCH=x86_64, or name another.";
    7 Kernel32Bit: "the kernel is a 32-bit one",
        "lg's guests are 64-bit. (Programs in them may be 32-bit.)",
        "file KERNEL",
        "Build the kernel with CONFIG_64BIT=y.";
    8 OldBzImage: "the bzImage is too old",
        "Its boot protocol is older than the one that tells where the kernel proper is in the file.",
        "file KERNEL",
        "Name the vmlinux of the same kernel tree instead.";
    9 Unpack: "the kernel cannot be unpacked",
        "The kernel inside a bzImage is compressed, in a way that lg does not know or with damaged data.",
        "grep CONFIG_KERNEL_ .config",
        "Build it with another CONFIG_KERNEL_ option, or name the vmlinux of the same kernel tree.";
    10 NoNote: "the kernel cannot run as a guest of lg",
        "A kernel must know how to run without rights, and says so in its ELF notes: \"Lguest\" if it knows lg's own \
         contract, \"Xen\" with an entry point if it was built with CONFIG_XEN_PV=y, as those of nearly all \
         distributions are. This one has neither, and would crash at its first privileged instruction.",
        "lg inspect KERNEL",
        "Build it with CONFIG_XEN_PV=y, or apply the series of guest-kernel-patch/ to the tree, `lg config` it, and \
         build it again.";
    11 GuestAbi: "the kernel speaks another version of the guest ABI",
        "The contract between guest and lg.ko (include/uapi/linux/lguest.h) has a version; kernel and lg were built \
         from different ones.",
        "readelf -n vmlinux",
        "Build the older of the two again, from the source of the newer.";
    12 GuestFeatures: "the kernel needs features that lg does not know",
        "It was built for a newer lg.",
        "readelf -n vmlinux",
        "Install the lg that belongs to this guest.";
    13 CommandForBareGuest: "a bare guest runs no commands",
        "Behind \"--\" stands a command for Linux, but the kernel is a program without an operating system.",
        "lg run -v KERNEL says what it is.",
        "Leave out \"-- COMMAND\".";
    14 CommandLine: "there can be no such command line for the kernel",
        "Linux takes 2047 bytes, and lg needs some of them to announce its devices; and they must be plain text.",
        "lg run -v prints the command line.",
        "Shorten --append, and leave out what is no plain text.";
    15 TooLittleMemory: "too little memory",
        "Kernel and initrd alone fill what -m gives, or more.",
        "ls -l of both; the error says how much they need.",
        "Give more with -m.";
    16 TooMuchMemory: "too much memory",
        "The guest's first page tables lie in its first MiB, and map no more.",
        "The error says how much was asked for.",
        "Give less with -m.";
    17 InitrdTooLarge: "the initrd is too large",
        "It must fit between the kernel and the end of RAM or the 2 GiB below which Linux wants it.",
        "ls -l INITRD",
        "Make it smaller, or put the files into a directory and --share it.";
    18 Memory: "the memory for the guest cannot be made",
        "The host refuses a mapping of this size: not enough memory, or a limit of yours.",
        "free -m; ulimit -a; cat /sys/fs/cgroup/memory.max",
        "Give less with -m, or free some memory.";
    19 NoDevice: "there is no /dev/lguest",
        "The module lg.ko is not loaded.",
        "lsmod | grep lg; dmesg | grep lg:",
        "sudo modprobe lg, or sudo insmod lg.ko. A module that refuses to load says why in dmesg.";
    20 DevicePermission: "you may not use /dev/lguest",
        "It belongs to a group (usually \"lguest\") that you are not in.",
        "ls -l /dev/lguest; id",
        "sudo usermod -aG lguest $USER, then log in again.";
    21 OpenDevice: "/dev/lguest cannot be opened",
        "The node is there and you may use it, but the module behind it is not or refuses.",
        "lsmod | grep lg; dmesg | tail",
        "Load the module again: sudo rmmod lg, sudo modprobe lg.";
    22 ModuleAbi: "the lg module does not fit this lg",
        "Module and launcher were built from different versions of their contract.",
        "lg doctor",
        "Build and install both from the same source, then load the module again.";
    23 Module: "the lg module refuses a call",
        "What was asked for is not possible now: too many VMs of this process, no memory, a limit.",
        "dmesg | tail; lg doctor",
        "What dmesg says; a second VM needs a process of its own.";
    24 Output: "the output cannot be written",
        "Standard output or error is a file or a device that takes no more.",
        "df; where standard output goes.",
        "Free space, or send the output elsewhere.";
    25 Setup: "the machine cannot be set up",
        "A thread, an eventfd or the like could not be made: a limit of the system was reached.",
        "ulimit -a",
        "Close other programs, or raise the limit.";
    26 Sandbox: "a system call was stopped",
        "While a guest runs, lg allows itself only the system calls that it needs. Another one was made: by somebody \
         who found a hole in a device, or because lg's list is too short for this C library.",
        "The error says the call's number; `ausyscall NUMBER` its name.",
        "Trust this guest no further, and report it.";
    27 NoPasst: "there is no passt",
        "--net user lets the program passt speak for the guest, and no directory in PATH has it.",
        "command -v passt",
        "sudo apt install passt, or leave out --net user.";
    28 Passt: "passt does not start",
        "It refused what it was asked for, such as a port that is forwarded already, or could not make its own \
         sandbox.",
        "The error has its own words; passt(1) explains them.",
        "Forward other ports, if it is about one.";
    29 NoInterface: "there is no such network interface",
        "--net tap=NAME uses an interface that exists, and makes none.",
        "ip link",
        "Make one of your own: sudo ip tuntap add NAME mode tap user $USER, sudo ip link set NAME up.";
    30 OpenTun: "/dev/net/tun cannot be opened",
        "The module tun is not loaded, or you may not use the device.",
        "ls -l /dev/net/tun; lsmod | grep tun",
        "sudo modprobe tun.";
    31 Tap: "a network interface cannot be used",
        "It belongs to another user or is in use, or it is no tap interface.",
        "ip -d tuntap",
        "Make one of your own: sudo ip tuntap add NAME mode tap user $USER, sudo ip link set NAME up.";
    32 Share: "a directory cannot be shared",
        "It does not exist, is no directory, or is one of the kernel's own, such as /proc, which the guest has too.",
        "ls -ld DIR",
        "Name a directory that exists and that you may read.";
    33 TagTwice: "two shares have the same tag",
        "The guest tells shares apart by their tags, and mounts each in a directory that is called like it.",
        "The error says the tag.",
        "Choose another for one of them.";
    34 Gdb: "lg cannot wait for gdb",
        "The socket of --gdb cannot be made. lg never replaces a file, not even a socket that an earlier lg has left \
         behind.",
        "ls -l SOCKET",
        "Remove the file, or name another socket.";
    35 Vsock: "the socket of --vsock cannot be made",
        "Something is at its path already: another guest's socket, one that is left from a lg that was killed, or a \
         file; or there can be no file.",
        "ls -l PATH; ss -xlp",
        "Name another path, or remove what is left: rm PATH.";
    36 OpenDisk: "a disk cannot be opened",
        "The file does not exist, or you may not read it, or reading it fails.",
        "ls -l FILE; dmesg | tail",
        "Name a file or a block device that you may read.";
    37 DiskNotWritable: "a disk cannot be written",
        "You may read the file but not write it, and the guest was to do both.",
        "ls -l FILE; id",
        "Let the guest only read it, --disk FILE,ro, or write to a temporary file, --disk FILE,overlay.";
    38 NoDisk: "it is no disk",
        "A disk is a file or a block device, not a directory or a character device.",
        "ls -ld FILE",
        "Name a raw image or a block device. For a directory: --share.";
    39 DiskSize: "a disk has an impossible size",
        "Disks consist of sectors of 512 bytes, at least one. The file is empty or ends within a sector.",
        "ls -l FILE",
        "Make it larger: truncate -s SIZE FILE.";
    40 DiskFormat: "a disk image is not a raw one",
        "The file begins like a qcow2, QED, VMDK, VDI, VHD or VHDX image. The guest would see the image's own tables \
         instead of the disk in it.",
        "qemu-img info FILE",
        "Make a raw one of it: qemu-img convert -O raw FILE disk.raw.";
    41 DiskInUse: "a disk is in use",
        "Who writes to a disk is alone with it: no other guest has it, not even to read it, and the host has not \
         mounted it.",
        "lslocks; findmnt -S FILE",
        "Unmount it, or end the other guest; several guests can have the same disk with ,ro or ,overlay.";
    42 DiskOverlay: "no temporary file can be made for an overlay",
        "What the guest writes goes to a file without a name in $TMPDIR or /var/tmp. There is no such directory, or it \
         is not on a file system that has such files (O_TMPFILE), or it is full.",
        "df $TMPDIR /var/tmp",
        "Name a directory on a local file system with room: export TMPDIR=DIR.";
    43 TooManyDisks: "too many disks",
        "A guest has at most 26, /dev/vda to /dev/vdz.",
        "Count --disk.",
        "Leave out some, or put several file systems on one.";
    44 Root: "a directory cannot be the guest's root",
        "It does not exist, is no directory, or you may not read it.",
        "ls -ld DIR",
        "Name another, --root DIR, or leave that out: the root is then what yours is.";
    45 Write: "a file cannot be written",
        "You may not write there, the directory does not exist, or the disk is full.",
        "ls -ld DIRECTORY; df DIRECTORY",
        "See who may write there, and whether the disk is full.";
    46 NoTree: "it is no kernel tree",
        "lg config works on the source of a kernel, and there is no Kconfig in that directory.",
        "ls TREE",
        "Name one: lg config TREE.";
    47 NoConfig: "the kernel tree has no configuration",
        "There is no .config yet, neither in the tree nor where it is built.",
        "ls -l .config; echo $KBUILD_OUTPUT",
        "Make one first, such as: make tinyconfig.";
    48 TooManyDevices: "too many devices",
        "Each device has an interrupt of its own, and a guest has 64; the console and random numbers take some.",
        "Count --disk and --share.",
        "Leave out some: one directory can hold what several shares do.";
    49 HostMemory: "the host has too little free memory for the guest",
        "What a guest has touched of its RAM stays until it ends, in memory or in swap, so all guests and programs \
         together must fit there: there is room for the first, and not for another.",
        "free -m; ps -C lg -o pid,rss,args",
        "Give less with -m, or end another guest.";
    50 ConfigSyntax: "the file of --config is not TOML",
        "It has lines NAME = VALUE, with quotes around strings, brackets around several of them, and each name once.",
        "The error says the line; https://toml.io has the rules.",
        "Write it as Documentation/command.md shows.";
    51 ConfigKey: "the file of --config has an unknown option",
        "The names in it are the long options of lg run without their hyphens, and kernel and command.",
        "The error says the line, and which option is meant, if one is like it; lg run --help has all.",
        "Correct the name, or leave the line out.";
    52 ConfigValue: "an option in the file of --config has an impossible value",
        "It is of the wrong type, or what the same option on the command line would not take either.",
        "The error says the line and what is wanted; lg run --help says more.",
        "Correct the value.";
    53 GroupMemory: "the control group has too little memory for the guest",
        "A container, a service or a batch job has a limit, which is that of its control group or of one around \
         that. Who needs more is killed (status 137), and can say nothing, so lg looks first.",
        "cat /proc/self/cgroup; the error names the group: cat GROUP/memory.max GROUP/memory.current",
        "Give less with -m, or raise the limit: it must hold the guest's memory, and some for lg.";
    54 CommandNotRun: "the guest has ended without running the command",
        "lg's own init runs the command. With an initrd that has another, or init= or rdinit= in --append, the guest \
         has done something else.",
        "lg run -v prints the kernel's whole log, which says what it starts as init.",
        "Leave out --initrd, name a root beside it (--root), or leave out the command.";
    55 OptionForBareGuest: "a bare guest has no use for an option",
        "The kernel is a program without an operating system: no init of lg's gives it a root, or variables to a \
         command.",
        "lg run -v KERNEL says what it is.",
        "Leave the option out.";
    56 BadMemory: "the host's memory has failed under the guest",
        "A page of the host's memory that the guest had has lost what was in it. The guest cannot go on; the host \
         uses that page no more.",
        "sudo dmesg says more of it: \"Machine check\" or \"Memory failure\". grep HardwareCorrupted /proc/meminfo",
        "Run the guest again. If this comes again, test the host's memory, and replace it.";
    57 NoShim: "there is no shim for kernels that know Xen",
        "A kernel without lguest support runs by Xen's ABI, which a program beside it in the guest answers: the shim, \
         /usr/lib/lg/xen-shim.",
        "ls -l /usr/lib/lg",
        "Install lg again, with `sudo make install`.";
    58 Modules: "the kernel's modules cannot be read",
        "What a kernel without lguest support needs for lg's devices, and has not built in, lg hands to the guest's \
         init: from /lib/modules/RELEASE, or the directory of --modules. There is none, or something in it is damaged.",
        "ls /lib/modules; lg inspect KERNEL",
        "Name the kernel's own tree with --modules DIR; if it has no modules.dep, run depmod.";
    59 NoModule: "the kernel lacks a driver",
        "lg's devices come as virtio devices on Xen's PCI bus. Drivers may be built in or modules, but there must be \
         some.",
        "grep -E 'XEN_PCIDEV_FRONTEND|VIRTIO' .config",
        "Build the kernel with the option that the message names, or leave out the device.";
    60 Trace: "the file is no trace that can be read",
        "lg run --trace has not written it, or another version of lg has; or the kernel that was named for its symbols \
         is another than the one that ran.",
        "head -c 8 FILE prints lgtrace, if it is one; readelf -n vmlinux prints a kernel's build ID.",
        "Name a file that this lg has written, and the kernel that ran.";
    61 NoAnswer: "no guest answers",
        "The lg run that has a guest answers questions about it, to its own user only. There is none, or it is not \
         said which of several, or it has no answer.",
        "grep @lg/ /proc/net/unix lists them: user and process.",
        "Start a guest, with lg run, as the same user and on the same machine or in the same container.";
    62 Address: "there is no such address",
        "An address is in hexadecimal, with or without 0x, or a name of the kernel that runs; names are in its vmlinux, \
         and not in a bzImage.",
        "nm vmlinux",
        "Name the vmlinux that runs with --kernel, or the address itself.";
    63 Smp: "there can be no guest with so many CPUs",
        "A guest has 1 CPU at least, and 32 at most; a kernel that is built for fewer, as without CONFIG_SMP, has no more \
         than these. --gdb is for one.",
        "The error says which of them it is.",
        "Give --smp another number, or leave it out.";
    64 Report: "there is no earlier report to compare with",
        "lg run --report-since names the page that an earlier lg run --report has written, and whose data it holds; \
         --report names the new one. The file is another, or of another version of lg, or there is no new one.",
        "grep -c 'id=\"lg-report\"' FILE prints 1, if it is one.",
        "Name a page that this lg has written, and a new one; or leave out --report-since.";
}

impl Code {
    /// The fix, as the end of a line.
    pub fn fix(self) -> impl fmt::Display {
        EndOfLine(self.explanation().fix)
    }
}

/// A sentence without its capital letter and its full stop. (A signal handler prints some, so this
/// makes no string.)
struct EndOfLine(&'static str);

impl fmt::Display for EndOfLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.trim_end_matches('.');
        let mut rest = text.chars();
        match rest.next() {
            Some(first) => write!(f, "{}{}", first.to_ascii_lowercase(), rest.as_str()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LG{:04}", *self as u16)
    }
}

impl FromStr for Code {
    type Err = String;

    /// `LG0007`, and what somebody types for it: `lg7`, `7`.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_start_matches(['L', 'l', 'G', 'g']);
        let number: Result<u16, _> = digits.parse();
        Self::ALL
            .iter()
            .copied()
            .find(|&code| number == Ok(code as u16))
            .ok_or_else(|| format!("there is no code {text}; `lg explain` lists them all"))
    }
}

/// All codes with their explanations, in Markdown: `Documentation/errors.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Errors\n\n*Printed by `lg explain --all` from `launcher/src/report/codes.rs`. To change it, change that, and say\n\
         `lg explain --all > Documentation/errors.md`.*\n\nA code keeps its meaning for ever. \
         `lg explain CODE` prints the same, offline.\n",
    );
    for &code in Code::ALL {
        let Explanation {
            title,
            cause,
            check,
            fix,
        } = code.explanation();
        let _ = write!(
            text,
            "\n## {code}: {title}\n\n**Cause:** {cause}\n\n**Check:** {check}\n\n**Fix:** {fix}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_in_order_and_once() {
        for (index, &code) in Code::ALL.iter().enumerate() {
            assert_eq!(code as usize, index + 1, "{code}");
            assert_eq!(code.to_string().parse(), Ok(code));
        }
    }

    #[test]
    fn everything_is_explained() {
        for code in Code::ALL {
            let Explanation {
                title,
                cause,
                check,
                fix,
            } = code.explanation();
            for text in [title, cause, check, fix] {
                assert!(text.len() > 4 && !text.contains('\n'), "{code}: {text:?}");
            }
            assert!(
                cause.ends_with(['.', ')']) && fix.ends_with(['.', ')']),
                "{code}"
            );
        }
    }

    #[test]
    fn codes_as_they_are_typed() {
        assert_eq!("LG0010".parse(), Ok(Code::NoNote));
        assert_eq!("lg10".parse(), Ok(Code::NoNote));
        assert_eq!("10".parse(), Ok(Code::NoNote));
        for bad in ["", "LG", "LG0000", "LG9999", "LGx", "-1"] {
            bad.parse::<Code>().unwrap_err();
        }
    }

    #[test]
    fn the_reference_in_the_book_is_this_one() {
        let book = include_str!("../../../Documentation/errors.md");
        assert!(
            book == reference(),
            "say: lg explain --all > Documentation/errors.md"
        );
    }
}
