# SPDX-License-Identifier: GPL-2.0
"""Run a command on the test machine.

Boots the Host kernel, as Debian packaged it, in an emulated PC with a small initramfs that holds
busybox and the files of build/ (at /usr/lib/lg, in PATH, and the working directory), loads lg.ko,
runs CMD as root and exits with its status. Only CMD's own output is printed; the Host kernel's
console goes to a log. Without CMD: a shell. On a terminal, Ctrl-] pulls the plug.

Statuses that are not CMD's:
  121  the Host died (panic, triple fault, power-off); the end of its log is printed
  122  CMD ended, but the Host's log has a warning, an oops or the like; these lines are printed
  123  the test machine could not be started, or lg.ko does not load
  124  time-out; the end of the Host's log is printed
"""

import argparse
import fcntl
import os
import re
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
# What of build/ goes into the test machine: the module, the launcher, its default guest, the tests.
PAYLOAD = ["lg.ko", "lg", "vmlinux", "initramfs.cpio", "guests", "selftests"]

# A line of the Host's log that makes a run fail. Lines about user processes ("traps: …") do not.
COMPLAINT = re.compile(
    r"WARNING: |BUG: |\bOops\b|Kernel panic|kernel BUG at|UBSAN:|KASAN:|KFENCE:|refcount_t:"
    r"|possible (recursive|circular) locking|inconsistent lock state|suspicious RCU usage"
    r"|rcu:? .*(self-detected stall|detected stall|detected expedited stall)|soft lockup|hard LOCKUP"
    r"|hung_task|blocked for more than|scheduling while atomic|sleeping function called"
    r"|unable to handle|nobody cared|NMI received for unknown reason|Bad page|corruption"
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

    def text(self, name, text, mode=0o644):
        self._entry(name, stat.S_IFREG | mode, text.encode())

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
        self._entry(name, stat.S_IFREG | stat.S_IMODE(os.stat(path).st_mode), data)
        if data[:4] == b"\x7fELF" and b"/ld-linux" in data[:4096]:
            for library in re.findall(r"(/\S+) \(0x", output_of(["ldd", path])):
                self.copy(library, "usr" + library.removeprefix("/usr"))

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.file.close()


def output_of(argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


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
    archive.text("etc/passwd", "root::0:0:root:/root:/bin/sh\nuser::1000:1000:user:/tmp:/bin/sh\n")
    archive.text("etc/group", "root:x:0:\nlguest:x:100:user\nuser:x:1000:\n")
    archive.text("etc/hosts", "127.0.0.1 localhost host\n")
    for name in PAYLOAD:
        if os.path.exists(f"{BUILD}/{name}"):
            archive.copy(f"{BUILD}/{name}", f"usr/lib/lg/{name}")
    for file in options.add:
        archive.copy(callers(file), f"usr/lib/lg/{os.path.basename(file)}")
    archive.link("usr/bin/lg", "../lib/lg/lg")
    size = "%d %d" % window_size() if interactive else ""
    archive.text(
        "etc/vm.conf",
        f"channel={channel} interactive={'y' if interactive else ''} size='{size}'\n"
        f"term={shlex.quote(os.environ.get('TERM', 'dumb'))}\n"
        f"set -- {shlex.join(options.command)}\n",
    )
    archive.close()


def window_size():
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
    return rows or 24, columns or 80


def qemu(options, scratch, interactive):
    """The command line of QEMU, and our ends of its sockets by name."""
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:
        # A /dev/kvm can be there without hardware virtualization, and then it is of no use.
        hardware = re.search(r"^flags.* (vmx|svm)\b", cpuinfo.read(), re.M)
    if hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) and not options.icount:
        accelerator = "kvm"
    else:
        accelerator = f"tcg,thread={'single' if options.icount else 'multi'}"
    argv = (
        ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
        + ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        + ["-machine", f"{options.machine},vmport=off", "-accel", accelerator]
        + ["-cpu", options.cpu, "-smp", str(options.smp), "-m", options.mem]
        + ["-kernel", f"{CACHE}/host/vmlinuz", "-initrd", f"{scratch}/initramfs"]
        + ["-append", f"console=ttyS0,115200 panic=-1 printk.devkmsg=on {options.cmdline}"]
        + ["-chardev", f"file,id=console,path={scratch}/console", "-serial", "chardev:console"]
        + ["-device", "virtio-serial-pci,max_ports=8"]
    )
    if options.icount:
        argv += ["-icount", "shift=0,sleep=off"]
    sockets, theirs = {}, []
    for name in ("ctl", "tty") if interactive else ("ctl", "in", "out", "err"):
        ours, peer = socket.socketpair()
        sockets[name] = ours
        theirs.append(peer)
        device = "virtconsole" if name == "tty" else f"virtserialport,name={name}"
        argv += ["-chardev", f"socket,id={name},fd={peer.fileno()}"]
        argv += ["-device", f"{device},chardev={name}"]
    return argv, sockets, theirs


def relay(source, target):
    """Copies everything from one descriptor to another, in a thread of its own."""

    def copy():
        while data := os.read(source, 65536):
            while data:
                data = data[os.write(target, data) :]

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def feed(port, interactive):
    """Copies our input to the machine, and its end too."""

    def copy():
        while data := os.read(0, 4096):
            if interactive and ESCAPE in data:
                signal.raise_signal(signal.SIGINT)
            port.sendall(data)
        port.shutdown(socket.SHUT_WR)

    threading.Thread(target=copy, daemon=True).start()


def wait_for(control, deadline):
    """Waits until the machine reports how the command ended, and returns its status."""
    report = b""
    while not (end := re.search(rb"^(status|error) (.*)\n", report, re.M)):
        control.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = control.recv(4096)
        except TimeoutError:
            raise Failure(TIMED_OUT, "time-out") from None
        if not data:
            where = "while CMD ran" if b"started" in report else "before CMD started"
            raise Failure(HOST_DIED, f"the Host died {where}")
        report += data
    if end[1] == b"error":
        raise Failure(NO_MACHINE, end[2].decode(errors="replace"))
    return int(end[2])


def log_of(scratch):
    try:
        with open(f"{scratch}/console", encoding="utf-8", errors="replace") as console:
            return console.read().replace("\r", "")
    except FileNotFoundError:
        return ""


def check_log(scratch):
    """Fails when the Host's log has a complaint made while lg.ko was there."""
    patience = time.monotonic() + 5
    while not (seen := re.search(r"lg-vm: begin\n(.*)lg-vm: end\n", log_of(scratch), re.S)):
        if time.monotonic() > patience:
            raise Failure(HOST_COMPLAINS, "the end of CMD never showed up in the Host's log")
        time.sleep(0.02)
    complaints = [line for line in seen[1].splitlines() if COMPLAINT.search(line)]
    if complaints:
        raise Failure(HOST_COMPLAINS, "\n".join(["the Host complains:", *complaints]))


def run(options, scratch):
    """Boots the machine, runs the command, and returns its status."""
    deadline = time.monotonic() + options.timeout
    interactive = os.isatty(0) and os.isatty(1)
    pack(f"{scratch}/initramfs", options, interactive, "virtio")
    argv, sockets, theirs = qemu(options, scratch, interactive)
    with open(f"{scratch}/qemu", "wb") as messages:
        machine = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=[peer.fileno() for peer in theirs],
        )
    for peer in theirs:
        peer.close()
    terminal = None
    try:
        if interactive:
            print("vm: booting the Host; Ctrl-] pulls the plug", file=sys.stderr)
            terminal = termios.tcgetattr(0)
            tty.setraw(0)
            control = sockets["ctl"]
            signal.signal(signal.SIGWINCH, lambda *_: control.send(b"%d %d\n" % window_size()))
            outputs = [relay(sockets["tty"].fileno(), 1)]
            feed(sockets["tty"], interactive)
        else:
            outputs = [relay(sockets["out"].fileno(), 1), relay(sockets["err"].fileno(), 2)]
            feed(sockets["in"], interactive)
        status = wait_for(sockets["ctl"], deadline)
        check_log(scratch)
        return status
    finally:
        machine.kill()
        machine.wait()
        # All of CMD's output was in the sockets before its status was.
        for output in outputs:
            output.join()
        if terminal:
            termios.tcsetattr(0, termios.TCSADRAIN, terminal)


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="scripts/vm [OPTION...] [-- CMD...]",
    )
    add = parser.add_argument
    add("--machine", default="q35", metavar="TYPE", help="QEMU's machine type (default: q35)")
    add("--cpu", default="max", metavar="MODEL", help="QEMU's CPU model (default: max)")
    add("--smp", default=2, type=int, metavar="N", help="number of CPUs (default: 2)")
    add("--mem", default="1G", metavar="SIZE", help="memory (default: 1G)")
    add("--icount", action="store_true", help="the TSC counts instructions; implies --smp 1")
    add("--cmdline", default="", metavar="ARGS", help="more arguments for the Host kernel")
    add("--timeout", type=float, metavar="SECONDS", help="default: 600, none on a terminal")
    add("--add", action="append", default=[], metavar="FILE", help="pack this file or directory too")
    add("--log", metavar="FILE", help="save the Host's console log there")
    add("--keep", action="store_true", help="keep the scratch directory, and say where it is")
    add("command", nargs="*", default=["sh"], metavar="CMD", help="default: a shell")
    options = parser.parse_args(arguments)
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
            tail = log_of(scratch).splitlines()[-40:]
            print(*(f"| {line}" for line in tail), sep="\n", file=sys.stderr)
        return failure.status
    finally:
        if options.log:
            shutil.copyfile(f"{scratch}/console", callers(options.log))
        if options.keep:
            print("vm: kept", scratch.replace(CACHE, os.environ["LG_CACHE"], 1), file=sys.stderr)
        else:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
