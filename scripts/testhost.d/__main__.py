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
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty

from bochs import bochs
from common import CACHE, HOST_DIED, NO_MACHINE, TIMED_OUT, Failure, callers, host_kernel, unpacked
from console import check_log, end_of_log, text_of
from initramfs import pack
from ports import feed, fetch, relay, wait_for, window_size
from qemu import qemu, serve_toolchain


def run(options, scratch):
    """Boots the machine, runs the command, and returns its status."""
    deadline = time.monotonic() + options.timeout
    on_bochs = options.machine.startswith(("bochs:", "elephant:"))
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
            print("testhost: booting the Host; Ctrl-] pulls the plug", file=sys.stderr)
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
        comes_to_an_end = [] if interactive else outputs[:]
        if options.get:
            comes_to_an_end.append(fetch(ports["files"], options.get))
        status = wait_for(ports["ctl"], deadline)
        for thread in comes_to_an_end:
            thread.join(max(deadline - time.monotonic(), 0))
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
        prog="scripts/testhost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="scripts/testhost [OPTION...] [-- CMD...]",
    )
    parser.error = lambda message: parser.exit(NO_MACHINE, f"testhost: {message}; see --help\n")
    add = parser.add_argument
    add("--host", metavar="KERNEL",
        help="boot another Host kernel of scripts/kernels, for which scripts/build-module has built lg.ko")  # fmt: skip
    add("--guest", metavar="KERNEL",
        help="tests of stock kernels run this one of scripts/kernels, which scripts/setup has fetched (default: the Host's)")  # fmt: skip
    add("--cpu", default="max", metavar="MODEL", help="QEMU's CPU model (default: max)")
    add("--machine", default="q35", metavar="TYPE",
        help="QEMU's machine type (default: q35), or bochs:MODEL: 30 s to boot, and no input; "
        "elephant:MODEL: the same, but its CPU never forgets a translation before it has to, by scripts/setup bochs")  # fmt: skip
    add("--smp", default=2, type=int, metavar="N", help="number of CPUs (default: 2)")
    add("--mem", default="1G", type=mebibytes, metavar="SIZE", help="like 512M (default: 1G)")
    add("--icount", action="store_true", help="the TSC counts instructions; implies --smp 1")
    add("--cmdline", default="", metavar="ARGS", help="more arguments for the Host kernel")
    add("--timeout", type=float, metavar="SECONDS", help="default: 600, none on a terminal")
    add("--add", action="append", default=[], metavar="FILE", help="pack this file or directory too")
    add("--get", action="append", default=[], metavar="FILE",
        help="when CMD has ended, put this file of the machine's into the working directory here")  # fmt: skip
    add("--toolchain", action="store_true",
        help="the toolchain root is at /toolchain there, read-only: a Debian, and the kernels")  # fmt: skip
    add("--gdb", metavar="SOCKET", help="QEMU's gdb server, for the machine itself, listens there")
    add("--log", metavar="FILE", help="save the Host's console log there")
    add("--keep", action="store_true", help="keep the scratch directory, and say where it is")
    add("command", nargs="*", default=["sh"], metavar="CMD", help="default: a shell")
    options = parser.parse_args(arguments)
    if options.machine.startswith(("bochs:", "elephant:")) and (
        options.icount or options.toolchain or options.gdb or options.get or options.cpu != "max"
    ):
        parser.error("--cpu, --get, --gdb, --icount and --toolchain are QEMU's")
    options.get = dict.fromkeys(options.get, "CMD has left none")
    if options.icount:
        options.smp = 1
    if options.host and not os.path.exists(host_kernel(options.host)[2]):
        parser.error(f"there is no lg.ko for {options.host}: run scripts/build-module {options.host}")
    if options.guest and not os.path.exists(f"{unpacked(options.guest)}/vmlinuz"):
        parser.error(f"there is no kernel {options.guest}: run scripts/setup kernel {options.guest}")
    if options.timeout is None:
        options.timeout = float("inf") if os.isatty(0) and os.isatty(1) else 600
    return options


def main():
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.makedirs(f"{CACHE}/tmp", exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="testhost.", dir=f"{CACHE}/tmp")
    try:
        return run(options, scratch)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Failure as failure:
        print(f"testhost: {failure}", file=sys.stderr)
        if failure.status in (HOST_DIED, TIMED_OUT):
            print(*(f"| {line}" for line in end_of_log(scratch)), sep="\n", file=sys.stderr)
        return failure.status
    except subprocess.CalledProcessError as failure:
        print(f"testhost: {shlex.join(failure.cmd)} failed:\n{failure.stderr}", file=sys.stderr)
        return NO_MACHINE
    finally:
        for path, why in options.get.items():
            print(f"testhost: --get {path}: {why}", file=sys.stderr)
        if options.log:
            shutil.copyfile(f"{scratch}/console", callers(options.log))
        if options.keep:
            print("testhost: kept", scratch.replace(CACHE, os.environ["LG_CACHE"], 1), file=sys.stderr)
        else:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(main())
