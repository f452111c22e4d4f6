# SPDX-License-Identifier: GPL-2.0
"""What the Host boots into: an archive of busybox, init, what was built, and the command."""

import glob
import lzma
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile

from common import BUILD, callers, host_kernel, output_of, unpacked

# What of build/ goes into the test machine besides the module: the Launcher, its default Guest, the tests.
PAYLOAD = ["lg", "xen-shim", "vmlinux", "initramfs.cpio", "busybox.cpio", "guests", "selftests"]
# Programs of other people that the tests use: what a Guest's network and disks are made and tried
# with, and a terminal with a shell.
PROGRAMS = ["bin/passt", "bin/passt.avx2", "bin/iperf3", "bin/curl", "sbin/mke2fs", "sbin/e2fsck",
    "bin/tmux", "bin/dash"]  # fmt: skip
# A locale that tmux takes.
TMUX_DATA = ["/usr/lib/locale/C.utf8/LC_CTYPE"]
# What they load when they run, and so is not found by its being needed: pthread_cancel() does.
LIBRARIES = ["libgcc_s.so.1"]
# Modules of the Host kernel's that are not built in, for who loads them.
MODULES = ["drivers/net/tun", "drivers/block/loop", "drivers/block/brd"]
# Those that a stock kernel, as a Guest, may want for its devices, and for tests of them.
GUEST_MODULES = ["xen-pcifront", "virtio", "virtio_ring", "virtio_pci", "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev", "virtio_console", "fuse", "virtiofs", "rng-core", "virtio_blk", "virtio_net", "net_failover", "failover", "virtio-rng", "vsock",
    "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", "xen-blkfront", "xen-netfront", "loop", "ext4", "jbd2", "mbcache", "crc16"]  # fmt: skip

# What Guests run from a share of the Host's.
SHARED_PROGRAMS = ["/usr/bin/git", "/usr/bin/make"]


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


def stock_kernel(archive, kernel):
    """A kernel as Debian packaged it, where a Debian has it: the packages are unpacked in `kernel`. Returns its release."""
    [tree] = glob.glob(f"{kernel}/usr/lib/modules/*") or glob.glob(f"{kernel}/lib/modules/*")
    release = os.path.basename(tree)
    archive.copy(os.path.realpath(f"{kernel}/vmlinuz"), f"boot/vmlinuz-{release}")
    with tempfile.TemporaryDirectory() as scratch:
        place = f"{scratch}/lib/modules/{release}"
        for directory, _, files in os.walk(tree):
            for file in files:
                if file.split(".")[0] in GUEST_MODULES or file.startswith(("modules.builtin", "modules.order")):
                    target = os.path.join(place, os.path.relpath(directory, tree))
                    os.makedirs(target, exist_ok=True)
                    shutil.copy(os.path.join(directory, file), target)
        subprocess.run(["depmod", "-b", scratch, release], check=True, close_fds=False)
        archive.copy(place, f"usr/lib/modules/{release}")
    return release


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
    archive.copy("/lg/scripts/testhost.d/init", "init")
    archive.copy("/lg/scripts/testhost.d/load-lg", "usr/sbin/load-lg")
    archive.text(
        "etc/passwd",
        "root::0:0:root:/root:/bin/sh\nuser::1000:1000:user:/tmp:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n",
    )
    archive.text("etc/group", "root:x:0:\nlguest:x:100:user\nuser:x:1000:\nnogroup:x:65534:\n")
    archive.text("etc/hosts", "127.0.0.1 localhost host\n")
    for program in SHARED_PROGRAMS:
        archive.copy(program, program.lstrip("/"))
    _, packages, module = host_kernel(options.host)
    if os.path.exists(module):
        archive.copy(module, "usr/lib/lg/lg.ko")
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
        [path] = glob.glob(f"{packages}/usr/lib/modules/*/kernel/{name}.ko.xz")
        with lzma.open(path) as module:
            archive.data(f"usr/lib/modules/{os.path.basename(name)}.ko", module.read())
    for file in options.add:
        archive.copy(callers(file), f"usr/lib/lg/{os.path.basename(file.rstrip('/'))}")
    release = stock_kernel(archive, packages)
    guest = unpacked(options.guest or "6.12")
    if os.path.exists(f"{guest}/vmlinuz"):
        other = stock_kernel(archive, guest)
        release = other if options.guest else release
    # What the tests of stock kernels run.
    archive.link("boot/vmlinuz", f"vmlinuz-{release}")
    archive.link("usr/bin/lg", "../lib/lg/lg")
    archive.text(
        "etc/testhost.conf",
        f"channel={channel} interactive={'y' if interactive else ''}\n"
        f"toolchain={'y' if options.toolchain else ''}\n"
        f"get={shlex.quote(shlex.join(options.get))}\n"
        f"term={shlex.quote(os.environ.get('TERM', 'dumb'))}\n"
        f"set -- {shlex.join(options.command)}\n",
    )
    archive.close()
