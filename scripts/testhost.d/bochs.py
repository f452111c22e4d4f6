# SPDX-License-Identifier: GPL-2.0
"""The machine as one of Bochs 3.0, which models more of the TLB and of CET than QEMU does: Debian's, or the one that never
forgets a translation (selftests/bochs)."""

import os
import shutil

from common import CACHE, CMDLINE, host_kernel, output_of

# What its CPU models need.
BOCHS_QUIRKS = {
    # The set-up of AMX state faults; the return from SMM checks CR4 without knowing LA57.
    "sapphire_rapids": {"exclude": " amx amx_int8 amx_bf16", "pci": ", advopts=noacpi"},
}
# The program, and what it has instead of a window.
BOCHS = {"bochs": ("bochs", 'rfb, options="timeout=0"'), "elephant": (f"{CACHE}/bochs/bochs", "nogui")}
BOCHSRC = """
config_interface: textconfig
display_library: {display}
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
    """The same as qemu(), for --machine bochs:MODEL or elephant:MODEL; random numbers and time are fixed there."""
    which, model = options.machine.split(":", 1)
    program, display = BOCHS[which]
    quirks = {"exclude": "", "pci": "", **BOCHS_QUIRKS.get(model, {})}
    boot = f"{scratch}/iso/boot"
    os.makedirs(f"{boot}/grub")
    os.link(f"{scratch}/initramfs", f"{boot}/initramfs")
    shutil.copy(host_kernel(options.host)[0], f"{boot}/vmlinuz")
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
        fields |= {"model": model, "display": display, "smp": options.smp, "megabytes": options.mem, "scratch": scratch}
        config.write(BOCHSRC.format_map(fields))
    return [program, "-q", "-f", f"{scratch}/bochsrc"], ports, list(theirs.values())
