# SPDX-License-Identifier: GPL-2.0
"""The machine as QEMU's."""

import os
import re
import socket

from common import CACHE, CMDLINE, callers, host_kernel, output_of


def qemu(options, scratch, interactive):
    """What starts QEMU, and our ends of the machine's ports by name, and QEMU's ends."""
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:
        # A /dev/kvm can be there without hardware virtualization, and then it is of no use.
        hardware = re.search(r"^flags.* (vmx|svm)\b", cpuinfo.read(), re.M)
    # With gdb, an instruction is to be one, and no interrupt to come before it: that is only so without KVM.
    if hardware and os.access("/dev/kvm", os.R_OK | os.W_OK) and not (options.icount or options.gdb):
        accelerator = "kvm"
    else:
        accelerator = f"tcg,thread={'single' if options.icount else 'multi'}"
    argv = (
        ["qemu-system-x86_64"]
        + ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        + ["-machine", f"{options.machine},vmport=off", "-accel", accelerator]
        + ["-cpu", options.cpu, "-smp", str(options.smp), "-m", f"{options.mem}M"]
        + ["-kernel", host_kernel(options.host)[0], "-initrd", f"{scratch}/initramfs"]
        # On a busy machine QEMU's timer may not tick in time for the kernel's check, which then panics.
        + ["-append", f"{CMDLINE} no_timer_check {options.cmdline}"]
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
    if options.gdb:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(callers(options.gdb))
        listener.listen()
        theirs.append(listener)
        argv += ["-chardev", f"socket,id=gdb,fd={listener.fileno()},server=on,wait=off", "-gdb", "chardev:gdb"]
    names = ["ctl", "tty"] if interactive else ["ctl", "in", "out", "err"]
    for name in names + (["files"] if options.get else []):
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
