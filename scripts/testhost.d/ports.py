# SPDX-License-Identifier: GPL-2.0
"""The machine's ports: the command's streams, and what init reports."""

import fcntl
import os
import re
import select
import signal
import socket
import struct
import termios
import threading
import time

from common import HOST_DIED, NO_MACHINE, TIMED_OUT, Failure

ESCAPE = b"\x1d"  # Ctrl-]


def window_size():
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
    return rows or 24, columns or 80


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
