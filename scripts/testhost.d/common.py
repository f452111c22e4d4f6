# SPDX-License-Identifier: GPL-2.0
"""What all parts of the test machine share: places, and how a run fails."""

import subprocess

HOST_DIED, HOST_COMPLAINS, NO_MACHINE, TIMED_OUT = 121, 122, 123, 124

CACHE = "/cache"
BUILD = "/lg/build"
CMDLINE = "console=ttyS0,115200 panic=-1 printk.devkmsg=on"


class Failure(Exception):
    """The run has no status of CMD's to give: ours instead, and what to print."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def unpacked(name):
    """Where the packages of the kernel of this name in scripts/kernels are."""
    return f"{CACHE}/kernels/{name}"


def host_kernel(name):
    """What the Host of this name in scripts/kernels boots, where its packages are, and its lg.ko."""
    if not name:
        return f"{CACHE}/host/vmlinuz", f"{CACHE}/packages", f"{BUILD}/lg.ko"
    return f"{unpacked(name)}/vmlinuz", unpacked(name), f"{BUILD}/kernels/{name}/lg.ko"


def output_of(argv):
    # With the descriptors of `callers`: ldd opens what it is to look at.
    return subprocess.run(argv, check=True, capture_output=True, text=True, close_fds=False).stdout


def callers(path):
    """The caller's PATH, seen from inside the toolchain root (the descriptors are from scripts/testhost)."""
    return f"/proc/self/fd/{8 if path.startswith('/') else 9}/{path}"
