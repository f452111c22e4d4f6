# SPDX-License-Identifier: GPL-2.0
"""Run a command on the test machine.

Boots the Host kernel, as Debian packaged it, in an emulated PC with a small initramfs that holds
busybox and the files of build/ (at /usr/lib/lg, in PATH, and the working directory), loads lg.ko,
runs CMD as root and exits with its status. Only CMD's own output is printed; the Host kernel's
console goes to a log. Without CMD: a shell. On a terminal, Ctrl-] pulls the plug.

Statuses that are not CMD's:
  121  the Host died (panic, triple fault, power-off); its log from the first complaint is printed
  122  CMD ended, but the Host's log has a warning, an oops or the like; these lines are printed
  123  the test machine could not be started, or lg.ko does not load
  124  time-out; the end of the Host's log is printed
"""

import argparse
import fcntl
import glob
import lzma
import os
import re
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty

HOST_DIED, HOST_COMPLAINS, NO_MACHINE, TIMED_OUT = 121, 122, 123, 124
ESCAPE = b"\x1d"  # Ctrl-]

CACHE = "/cache"
BUILD = "/lg/build"
CMDLINE = "console=ttyS0,115200 panic=-1 printk.devkmsg=on"
# What of build/ goes into the test machine: the module, the launcher, its default guest, the tests.
PAYLOAD = ["lg.ko", "lg", "vmlinux", "initramfs.cpio", "busybox.cpio", "guests", "selftests"]
# Programs of other people that the tests use: what a Guest's network and disks are made and tried
# with, and a terminal with a shell.
PROGRAMS = ["bin/passt", "bin/passt.avx2", "bin/iperf3", "bin/curl", "sbin/mke2fs", "sbin/e2fsck",
    "bin/tmux", "bin/dash"]  # fmt: skip
# A locale that tmux takes.
TMUX_DATA = ["/usr/lib/locale/C.utf8/LC_CTYPE"]
# What they load when they run, and so is not found by its being needed: pthread_cancel() does.
LIBRARIES = ["libgcc_s.so.1"]
# Modules of the Host kernel's that are not built in, for who loads them.
MODULES = ["drivers/net/tun", "drivers/block/loop"]

# What guests run from a share of the Host's.
SHARED_PROGRAMS = ["/usr/bin/git", "/usr/bin/make"]

# A line of the Host's log that makes a run fail. Lines about user processes ("traps: …") do not.
COMPLAINT = re.compile(
    r"WARNING: |BUG: |\bOops\b|Kernel panic|kernel BUG at|UBSAN:|KASAN:|KFENCE:|refcount_t:"
    r"|possible (recursive|circular) locking|inconsistent lock state|suspicious RCU usage"
    r"|rcu:? .*(self-detected stall|detected stall|detected expedited stall)|soft lockup|hard LOCKUP"
    r"|hung_task|blocked for more than|scheduling while atomic|sleeping function called"
    r"|unable to handle|nobody cared|NMI received for unknown reason|Bad page"
    # A process is told so when a test has made a memory error.
    r"|(?<!hardware memory )corruption"
)


class Failure(Exception):
    """The run has no status of CMD's to give: ours instead, and what to print."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Initramfs:
    """Writes a cpio archive in the format the kernel unpacks (newc)."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.inode = 0
        self.seen = {""}

    def _entry(self, name, mode, data=b"", rdev=(0, 0)):
        parent = os.path.dirname(name)
        if parent not in self.seen:
            self._entry(parent, stat.S_IFDIR | 0o755)
        if name in self.seen:
            return
        self.seen.add(name)
        self.inode += 1
        raw = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0)
        self._padded(b"070701" + b"".join(b"%08x" % field for field in fields) + raw)
        self._padded(data)

    def _padded(self, data):
        self.file.write(data + b"\0" * (-len(data) % 4))

    def data(self, name, data, mode=0o644):
        self._entry(name, stat.S_IFREG | mode, data)

    def text(self, name, text, mode=0o644):
        self.data(name, text.encode(), mode)

    def link(self, name, target):
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, name):
        self._entry(name, stat.S_IFDIR | 0o755)

    def node(self, name, major, minor):
        self._entry(name, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def copy(self, path, name):
        """Copies a file or a whole directory, and the shared libraries of programs."""
        if os.path.isdir(path):
            for child in sorted(os.listdir(path)):
                self.copy(f"{path}/{child}", f"{name}/{child}")
            return
        with open(path, "rb") as file:
            data = file.read()
        # For everybody there, whatever the umask here was when it was built.
        program = os.stat(path).st_mode & stat.S_IXUSR
        self.data(name, data, 0o755 if program else 0o644)
        if data[:4] == b"\x7fELF" and b"/ld-linux" in data[:4096]:
            for library in re.findall(r"(/\S+) \(0x", output_of(["ldd", path])):
                self.copy(library, "usr" + library.removeprefix("/usr"))

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.file.close()


def output_of(argv):
    # With the descriptors of `callers`: ldd opens what it is to look at.
    return subprocess.run(argv, check=True, capture_output=True, text=True, close_fds=False).stdout


def callers(path):
    """The caller's PATH, seen from inside the toolchain root (the descriptors are from scripts/vm)."""
    return f"/proc/self/fd/{8 if path.startswith('/') else 9}/{path}"


def pack(path, options, interactive, channel):
    """Packs the Host's initramfs: busybox, init, what was built, and the command."""
    archive = Initramfs(path)
    for directory in ("bin", "sbin", "lib", "lib64"):
        archive.link(directory, f"usr/{directory}")
        archive.directory(f"usr/{directory}")
    for directory in ("dev", "proc", "root", "run", "sys", "tmp", "usr/lib/lg"):
        archive.directory(directory)
    archive.node("dev/console", 5, 1)
    archive.copy("/usr/bin/busybox", "usr/bin/busybox")
    archive.copy("/lg/scripts/vm-init", "init")
    archive.text(
        "etc/passwd",
        "root::0:0:root:/root:/bin/sh\nuser::1000:1000:user:/tmp:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n",
    )
    archive.text("etc/group", "root:x:0:\nlguest:x:100:user\nuser:x:1000:\nnogroup:x:65534:\n")
    archive.text("etc/hosts", "127.0.0.1 localhost host\n")
    for program in SHARED_PROGRAMS:
        archive.copy(program, program.lstrip("/"))
    for name in PAYLOAD:
        if os.path.exists(f"{BUILD}/{name}"):
            archive.copy(f"{BUILD}/{name}", f"usr/lib/lg/{name}")
    for data in TMUX_DATA:
        archive.copy(data, data.lstrip("/"))
    for name in PROGRAMS:
        archive.copy(f"/usr/{name}", f"usr/{name}")
    for name in LIBRARIES:
        archive.copy(f"/usr/lib/x86_64-linux-gnu/{name}", f"usr/lib/x86_64-linux-gnu/{name}")
    for name in MODULES:
        [path] = glob.glob(f"{CACHE}/packages/usr/lib/modules/*/kernel/{name}.ko.xz")
        with lzma.open(path) as module:
            archive.data(f"usr/lib/modules/{os.path.basename(name)}.ko", module.read())
    for file in options.add:
        archive.copy(callers(file), f"usr/lib/lg/{os.path.basename(file.rstrip('/'))}")
    archive.link("usr/bin/lg", "../lib/lg/lg")
    archive.text(
        "etc/vm.conf",
        f"channel={channel} interactive={'y' if interactive else ''}\n"
        f"toolchain={'y' if options.toolchain else ''}\n"
        f"term={shlex.quote(os.environ.get('TERM', 'dumb'))}\n"
        f"set -- {shlex.join(options.command)}\n",
    )
    archive.close()


def window_size():
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
    return rows or 24, columns or 80


def qemu(options, scratch, interactive):
    """What starts QEMU, and our ends of the machine's ports by name, and QEMU's ends."""
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:
        # A /dev/kvm can be there without hardware virtualization, and then it is of no use.
        hardware = re.search(r"^flags.* (vmx|svm)\b", cpuinfo.read(), re.M)
    if hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) and not options.icount:
        accelerator = "kvm"
    else:
        accelerator = f"tcg,thread={'single' if options.icount else 'multi'}"
    argv = (
        ["qemu-system-x86_64"]
        + ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        + ["-machine", f"{options.machine},vmport=off", "-accel", accelerator]
        + ["-cpu", options.cpu, "-smp", str(options.smp), "-m", f"{options.mem}M"]
        + ["-kernel", f"{CACHE}/host/vmlinuz", "-initrd", f"{scratch}/initramfs"]
        + ["-append", f"{CMDLINE} {options.cmdline}"]
        + ["-chardev", f"file,id=console,path={scratch}/console", "-serial", "chardev:console"]
        + ["-device", "virtio-serial-pci,max_ports=8"]
    )
    if options.icount:
        argv += ["-icount", "shift=0,sleep=off"]
    if options.toolchain:
        # virtiofsd reaches the machine's memory.
        argv += ["-object", f"memory-backend-memfd,id=ram,size={options.mem}M,share=on"]
        argv += ["-machine", "memory-backend=ram"]
        argv += ["-chardev", f"socket,id=toolchain,path={scratch}/virtiofsd"]
        argv += ["-device", "vhost-user-fs-pci,chardev=toolchain,tag=toolchain"]
    ports, theirs = {}, []
    for name in ("ctl", "tty") if interactive else ("ctl", "in", "out", "err"):
        ports[name], peer = socket.socketpair()
        theirs.append(peer)
        device = "virtconsole" if name == "tty" else f"virtserialport,name={name}"
        argv += ["-chardev", f"socket,id={name},fd={peer.fileno()}"]
        argv += ["-device", f"{device},chardev={name}"]
    # QEMU's monitor is behind a port too, for what only hardware can do: machine checks.
    monitor = socket.socketpair()
    theirs += monitor
    argv += ["-chardev", f"socket,id=hmp,fd={monitor[0].fileno()}", "-mon", "chardev=hmp"]
    argv += ["-chardev", f"socket,id=monitor,fd={monitor[1].fileno()}"]
    argv += ["-device", "virtserialport,name=monitor,chardev=monitor"]
    return argv, ports, theirs


def serve_toolchain(path):
    """The socket, and what serves the toolchain root there, with the cache in it."""
    # Without what else is mounted in it, in this mount namespace, which is ours alone: files of two
    # file systems could have the same numbers.
    output_of(["mount", "--bind", "/", "/mnt"])
    output_of(["mount", "--bind", CACHE, f"/mnt{CACHE}"])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    # Before QEMU connects, which does not try again.
    listener.listen()
    argv = ["/usr/libexec/virtiofsd", f"--fd={listener.fileno()}", "--shared-dir=/mnt"]
    argv += ["--readonly", "--sandbox=none", "--inode-file-handles=prefer", "--cache=always"]
    return listener, argv


# Debian's Bochs 3.0 models more of the TLB and of CET than QEMU does. What its CPU models need:
BOCHS_QUIRKS = {
    # The set-up of AMX state faults; the return from SMM checks CR4 without knowing LA57.
    "sapphire_rapids": {"exclude": " amx amx_int8 amx_bf16", "pci": ", advopts=noacpi"},
}
BOCHSRC = """
config_interface: textconfig
display_library: rfb, options="timeout=0"
cpu: model={model}, exclude_features="rdrand rdseed{exclude}", count={smp}, ips=50000000
cpu: reset_on_triple_fault=0
memory: guest={megabytes}, host={megabytes}
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
pci: enabled=1, chipset=i440fx{pci}
clock: sync=none, time0=1767225600
vga: extension=vbe, update_freq=1, realtime=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={scratch}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={scratch}/console
com2: enabled=1, mode=file, dev=/proc/self/fd/{out}
com3: enabled=1, mode=file, dev=/proc/self/fd/{err}
com4: enabled=1, mode=file, dev=/proc/self/fd/{ctl}
log: {scratch}/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
mouse: enabled=0
"""
# Bochs's TSC runs at the `ips` above, but newer models claim gigahertz in CPUID.
GRUB_CFG = """
set timeout=0
terminal_output console
linux /boot/vmlinuz {cmdline} tsc_early_khz=50000
initrd /boot/initramfs
boot
"""


def bochs(options, scratch):
    """The same as qemu(), for --machine bochs:MODEL; random numbers and time are fixed there."""
    model = options.machine.removeprefix("bochs:")
    quirks = {"exclude": "", "pci": "", **BOCHS_QUIRKS.get(model, {})}
    boot = f"{scratch}/iso/boot"
    os.makedirs(f"{boot}/grub")
    os.link(f"{scratch}/initramfs", f"{boot}/initramfs")
    shutil.copy(f"{CACHE}/host/vmlinuz", boot)
    with open(f"{boot}/grub/grub.cfg", "w", encoding="ascii") as config:
        config.write(GRUB_CFG.format(cmdline=f"{CMDLINE} {options.cmdline}"))
    output_of(
        ["grub-mkrescue", "-d", "/usr/lib/grub/i386-pc", "--compress=no", "--fonts=", "--locales="]
        + ["--themes=", "-o", f"{scratch}/boot.iso", f"{scratch}/iso"]
    )
    ports, theirs = {}, {}
    for name in ("ctl", "out", "err"):
        ours, peer = os.pipe()
        ports[name], theirs[name] = open(ours, "rb", 0), open(peer, "wb", 0)
    with open(f"{scratch}/bochsrc", "w", encoding="ascii") as config:
        fields = {name: file.fileno() for name, file in theirs.items()} | quirks
        fields |= {"model": model, "smp": options.smp, "megabytes": options.mem, "scratch": scratch}
        config.write(BOCHSRC.format_map(fields))
    return ["bochs", "-q", "-f", f"{scratch}/bochsrc"], ports, list(theirs.values())


def relay(source, target):
    """Copies everything from one descriptor to another, in a thread of its own."""

    def copy():
        while data := os.read(source, 65536):
            try:
                while data:
                    data = data[os.write(target, data) :]
            except BrokenPipeError:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                return

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def feed(port, interactive):
    """Copies our input to the machine, and its end too."""

    def copy():
        while data := os.read(0, 4096):
            if interactive and ESCAPE in data:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            port.sendall(data)
        port.shutdown(socket.SHUT_WR)

    threading.Thread(target=copy, daemon=True).start()


def wait_for(control, deadline):
    """Waits until the machine reports how the command ended, and returns its status."""
    report = b""
    while not (end := re.search(rb"^(status|error) (.*)\n", report, re.M)):
        patience = min(max(deadline - time.monotonic(), 0), 3600)
        if not select.select([control], [], [], patience)[0]:
            if time.monotonic() < deadline:
                continue
            raise Failure(TIMED_OUT, "time-out")
        data = os.read(control.fileno(), 4096)
        if not data:
            where = "while CMD ran" if b"started" in report else "before CMD started"
            raise Failure(HOST_DIED, f"the Host died {where}")
        report += data
    if end[1] == b"error":
        raise Failure(NO_MACHINE, end[2].decode(errors="replace"))
    return int(end[2])


def text_of(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().replace("\r", "")
    except FileNotFoundError:
        return ""


def end_of_log(scratch):
    """The last lines of the Host's log, or more: from its first complaint on, whose trace is long."""
    lines = text_of(f"{scratch}/console").splitlines()
    complaints = (number for number, line in enumerate(lines) if COMPLAINT.search(line))
    first = max(0, min(next(complaints, len(lines)) - 5, len(lines) - 40))
    return lines[first:][:200]


def check_log(scratch, status):
    """Fails when the Host's log has a complaint made while lg.ko was there."""
    ours = re.compile(r"lg-vm: begin\n(.*)lg-vm: end\n", re.S)
    patience = time.monotonic() + 30
    while not (seen := ours.search(text_of(f"{scratch}/console"))):
        if time.monotonic() > patience:
            raise Failure(HOST_COMPLAINS, "the end of CMD never showed up in the Host's log")
        time.sleep(0.02)
    complaints = [line for line in seen[1].splitlines() if COMPLAINT.search(line)]
    if complaints:
        heading = f"CMD ended with status {status}, but the Host complains:"
        raise Failure(HOST_COMPLAINS, "\n".join([heading, *complaints]))


def run(options, scratch):
    """Boots the machine, runs the command, and returns its status."""
    deadline = time.monotonic() + options.timeout
    on_bochs = options.machine.startswith("bochs:")
    interactive = not on_bochs and os.isatty(0) and os.isatty(1)
    pack(f"{scratch}/initramfs", options, interactive, "serial" if on_bochs else "virtio")
    if on_bochs:
        argv, ports, theirs = bochs(options, scratch)
    else:
        argv, ports, theirs = qemu(options, scratch, interactive)
    with open(f"{scratch}/machine", "wb") as messages:
        start = lambda argv, files: subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=[file.fileno() for file in files],
        )
        if options.toolchain:
            # It ends with QEMU, its client.
            listener, server = serve_toolchain(f"{scratch}/virtiofsd")
            start(server, [listener])
        machine = start(argv, theirs)
    for peer in theirs:
        peer.close()
    terminal = None
    try:
        if interactive:
            print("vm: booting the Host; Ctrl-] pulls the plug", file=sys.stderr)
            terminal = termios.tcgetattr(0)
            tty.setraw(0)
            send_window_size = lambda *_: ports["ctl"].send(b"%d %d\n" % window_size())
            send_window_size()
            signal.signal(signal.SIGWINCH, send_window_size)
            outputs = [relay(ports["tty"].fileno(), 1)]
            feed(ports["tty"], interactive)
        else:
            outputs = [relay(ports["out"].fileno(), 1), relay(ports["err"].fileno(), 2)]
            if not on_bochs:
                feed(ports["in"], interactive)
        status = wait_for(ports["ctl"], deadline)
        check_log(scratch, status)
        return status
    except Failure as failure:
        if failure.status == HOST_DIED and not text_of(f"{scratch}/console"):
            messages = text_of(f"{scratch}/machine").splitlines()
            raise Failure(NO_MACHINE, "\n".join(messages[-20:])) from None
        raise
    finally:
        machine.kill()
        machine.wait()
        # All of CMD's output was handed over before its status was.
        for output in outputs:
            output.join()
        if terminal:
            termios.tcsetattr(0, termios.TCSADRAIN, terminal)


def mebibytes(size):
    if not (parts := re.fullmatch(r"(\d+)([MG])", size)):
        raise argparse.ArgumentTypeError(f"'{size}' is not a size like 512M or 1G")
    return int(parts[1]) * {"M": 1, "G": 1024}[parts[2]]


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="scripts/vm [OPTION...] [-- CMD...]",
    )
    parser.error = lambda message: parser.exit(NO_MACHINE, f"vm: {message}; see --help\n")
    add = parser.add_argument
    add("--cpu", default="max", metavar="MODEL", help="QEMU's CPU model (default: max)")
    add("--machine", default="q35", metavar="TYPE",
        help="QEMU's machine type (default: q35), or bochs:MODEL: 30 s to boot, and no input")  # fmt: skip
    add("--smp", default=2, type=int, metavar="N", help="number of CPUs (default: 2)")
    add("--mem", default="1G", type=mebibytes, metavar="SIZE", help="like 512M (default: 1G)")
    add("--icount", action="store_true", help="the TSC counts instructions; implies --smp 1")
    add("--cmdline", default="", metavar="ARGS", help="more arguments for the Host kernel")
    add("--timeout", type=float, metavar="SECONDS", help="default: 600, none on a terminal")
    add("--add", action="append", default=[], metavar="FILE", help="pack this file or directory too")
    add("--toolchain", action="store_true",
        help="the toolchain root is at /toolchain there, read-only: a Debian, and the kernels")  # fmt: skip
    add("--log", metavar="FILE", help="save the Host's console log there")
    add("--keep", action="store_true", help="keep the scratch directory, and say where it is")
    add("command", nargs="*", default=["sh"], metavar="CMD", help="default: a shell")
    options = parser.parse_args(arguments)
    if options.machine.startswith("bochs:") and (
        options.icount or options.toolchain or options.cpu != "max"
    ):
        parser.error("--cpu, --icount and --toolchain are QEMU's")
    if options.icount:
        options.smp = 1
    if options.timeout is None:
        options.timeout = float("inf") if os.isatty(0) and os.isatty(1) else 600
    return options


def main():
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.makedirs(f"{CACHE}/tmp", exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="vm.", dir=f"{CACHE}/tmp")
    try:
        return run(options, scratch)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Failure as failure:
        print(f"vm: {failure}", file=sys.stderr)
        if failure.status in (HOST_DIED, TIMED_OUT):
            print(*(f"| {line}" for line in end_of_log(scratch)), sep="\n", file=sys.stderr)
        return failure.status
    except subprocess.CalledProcessError as failure:
        print(f"vm: {shlex.join(failure.cmd)} failed:\n{failure.stderr}", file=sys.stderr)
        return NO_MACHINE
    finally:
        if options.log:
            shutil.copyfile(f"{scratch}/console", callers(options.log))
        if options.keep:
            print("vm: kept", scratch.replace(CACHE, os.environ["LG_CACHE"], 1), file=sys.stderr)
        else:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
