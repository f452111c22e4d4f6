# SPDX-License-Identifier: GPL-2.0
"""The machine's ports: the command's streams, and what init reports."""

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import struct
import tarfile
import termios
import threading
import time

from common import HOST_DIED, NO_MACHINE, TIMED_OUT, Failure, callers

ESCAPE = b"\x1d"  # Ctrl-]
# What init writes behind all that the command has written, which is only then known to be here: a port's driver keeps
# what the reader of our output has no time for.
END = b"\x04testhost: end\x04"


def window_size():
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
    return rows or 24, columns or 80


def begun(data):
    """How many bytes at the end of `data` may be the beginning of END."""
    return next(n for n in range(min(len(data), len(END)), -1, -1) if data.endswith(END[:n]))


def relay(source, target):
    """Copies everything before END from one descriptor to another, in a thread of its own."""

    def copy():
        held = b""
        while not held.startswith(END) and (data := os.read(source, 65536)):
            data = held + data
            keep = data.find(END) if END in data else len(data) - begun(data)
            held, data = data[keep:], data[:keep]
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


def fetch(port, wanted):
    """Puts files, of which init makes an archive, into the caller's directory, in a thread of its own. What is left in
    `wanted` has not come, and why."""

    def copy():
        # In the archive they begin at the root.
        paths = {path.lstrip("/"): path for path in wanted}
        # No more is read than there is, for nobody closes the port behind it.
        with tarfile.open(fileobj=port.makefile("rb"), mode="r|", bufsize=512) as archive:
            for member in archive:
                path = paths.get(member.name)
                if path and member.isfile():
                    try:
                        with open(callers(os.path.basename(path)), "wb") as file:
                            shutil.copyfileobj(archive.extractfile(member), file)
                        del wanted[path]
                    except OSError as error:
                        wanted[path] = error.strerror

    def copy_all():
        try:
            copy()
        except tarfile.ReadError:
            # The machine is gone.
            pass

    thread = threading.Thread(target=copy_all, daemon=True)
    thread.start()
    return thread


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
