# SPDX-License-Identifier: GPL-2.0
"""The test machine under gdb: its registers, its memory, and what they mean to lg."""

import pathlib
import re
import subprocess
import tempfile

import gdb

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
MODULE = TOP / "build/lg.ko"
SLOT = 271
PAGE = 4096
# The pages of a vCPU's region, as the head of switcher.S has them.
STATE, SHARED, GDT, IDT, STACKS, END = 0x3000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000
ADDRESS = 0x000F_FFFF_FFFF_F000
P, W, U, A, D, PS, G, NX = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 63
FLAGS = [(P, "P"), (W, "W"), (U, "U"), (A, "A"), (D, "D"), (G, "G"), (NX, "NX")]
# Where a run section begins: the Host's function that puts the FPU registers of the thread away.
BEGIN = "kernel_fpu_begin_mask"


class Lost(Exception):
    """The machine does something that the tour does not expect."""


def flags_of(entry):
    return " ".join(name for bit, name in FLAGS if entry & bit) or "0"


class Machine:
    def __init__(self):
        self.host = self.begin = self.base = self.stack = None
        self.labels, self.fields, self.regs = {}, {}, {}
        self.scratch = tempfile.TemporaryDirectory(prefix="teach.", dir="/cache/tmp")

    def boot(self, commands, timeout):
        """Boots the Host, and ends it after `timeout` seconds. Each of `commands` runs there, once `go` has been
        called once more."""
        waits = "".join(f"\nread go && {command} >/dev/null 2>&1" for command in commands)
        script = f"grep -w {BEGIN} /proc/kallsyms{waits}"
        socket = f"{self.scratch.name}/gdb"
        # Four levels of page tables: one less to look at, and the slot is where the book says.
        argv = [
            # It does not outlive us.
            "setpriv",
            "--pdeathsig",
            "TERM",
            TOP / "scripts/testhost",
            "--smp",
            "1",
            "--cpu",
            "max,la57=off",
            "--timeout",
            str(timeout),
            "--gdb",
            socket,
        ]
        self.host = subprocess.Popen(
            [*argv, "--", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        line = self.host.stdout.readline().split()
        if not line:
            raise Lost(f"the test machine does not boot:\n{self.host.stderr.read().decode()}")
        self.begin = int(line[0], 16)
        gdb.execute(f"target remote {socket}", to_string=True)
        self.symbols()

    def symbols(self):
        """What lg.ko tells about itself: the switcher's labels, and the fields of the state page."""
        named = subprocess.run(["objdump", "-t", MODULE], check=True, capture_output=True, text=True).stdout
        named = re.findall(r"^(\w+) .{7} (\S+)\t\w+ (\w+)$", named, re.M)
        section = next(section for _, section, name in named if name == "lg_switcher_start")
        every = {name: int(value, 16) for value, inside, name in named if inside == section}
        start, end = every["lg_switcher_start"], every["lg_switcher_end"]
        self.labels = {name: value - start for name, value in every.items() if start <= value < end}
        layout = gdb.lookup_type("lg::sys::switcher::layout::State")
        self.fields = {field.name: (field.bitpos // 8, field.type.sizeof) for field in layout.fields()}
        registers = gdb.lookup_type("lg::sys::switcher::layout::Regs")
        self.regs = {field.name: field.bitpos // 8 for field in registers.fields()}

    def close(self):
        try:
            gdb.execute("disconnect", to_string=True)
        except gdb.error:
            # It has died.
            pass
        if self.host:
            self.host.terminate()
            self.host.wait()
        self.scratch.cleanup()

    def go(self):
        """Has the next command run, up to where its Guest is entered for the first time."""
        self.base = None
        self.host.stdin.write(b"go\n")
        self.host.stdin.flush()
        self.run_to(self.begin, accept=self.find_region)
        self.run_to(self.label("lg_switcher_enter"))
        # The thread's stack is as large as four pages.
        self.stack = self.register("rsp")

    # Registers and memory.

    def register(self, name):
        return int.from_bytes(gdb.selected_frame().read_register(name).bytes, "little")

    @property
    def rip(self):
        return self.register("rip")

    @property
    def cr3(self):
        return self.register("cr3") & ADDRESS

    def tables(self):
        """Where IDT and GDT are."""
        told = gdb.execute("monitor info registers", to_string=True)
        return tuple(int(re.search(rf"^{name}= *(\w+)", told, re.M)[1], 16) for name in ("IDT", "GDT"))

    def read(self, address, size):
        """Memory as the CPU's present tables have it."""
        return int.from_bytes(gdb.selected_inferior().read_memory(address, size), "little")

    def physical(self, address):
        """A word of physical memory."""
        told = gdb.execute(f"monitor xp /1gx {address:#x}", to_string=True)
        return int(told.split(":")[1], 16)

    def entries(self, root, address):
        """A walk: the entry of each level, from the top to where it ends."""
        table = root & ADDRESS
        for level in (4, 3, 2, 1):
            entry = self.physical(table + 8 * (address >> (12 + 9 * (level - 1)) & 511))
            yield level, entry
            if not entry & P or (level > 1 and entry & PS):
                return
            table = entry & ADDRESS

    def mapped(self, root, address):
        """U or S, as the mode that may touch it; or -, if it is not mapped."""
        allowed = U
        for level, entry in self.entries(root, address):
            allowed &= entry
            if not entry & P:
                return "-"
            if level == 1 or entry & PS:
                return "U" if allowed else "S"
        return "-"

    # lg's.

    def find_region(self):
        """Is there a region of the switcher's in this address space, of a Guest that is new? Then `base` is where."""
        if not self.physical(self.cr3 + 8 * SLOT) & P:
            return False
        address, table = 0xFFFF << 48 | SLOT << 39, self.physical(self.cr3 + 8 * SLOT) & ADDRESS
        for shift in (30, 21, 12):
            index, entry = next((i, e) for i in range(512) if (e := self.physical(table + 8 * i)) & P)
            address |= index << shift
            table = entry & ADDRESS
        self.base = address
        return self.state("direct_erets") == 0

    def state(self, name):
        offset, size = self.fields[name]
        return self.read(self.base + STATE + offset, size)

    def saved(self, name):
        """A register of the Guest's, in state.regs."""
        return self.read(self.base + STATE + self.fields["regs"][0] + self.regs[name], 8)

    def label(self, name):
        return self.base + self.labels[name]

    def where(self):
        """The label and the offset in it, if the CPU is in the switcher."""
        offset = self.rip - self.base
        if not 0 <= offset < STATE:
            return None
        name = max((at, name) for name, at in self.labels.items() if at <= offset)[1]
        return name, offset - self.labels[name]

    def status(self, places):
        """What the CPU has now, in the tour's words."""
        idt, gdt = self.tables()
        cr3, rsp = self.cr3, self.register("rsp")
        roots = {self.state(f"{name}_cr3") & ADDRESS: name for name in ("user", "kernel", "host")}
        within = rsp - self.base
        if STATE <= within - 1 < SHARED:
            stack = "state.regs"
        elif STACKS <= within - 1 < END:
            stack = "an IST stack"
        else:
            stack = "the Host's" if abs(rsp - self.stack) < 4 * PAGE else "the Guest's"
        return {
            "CPL": self.register("cs") & 3,
            "CR3": {"host": "the Host's", "kernel": "kernel root", "user": "user root"}.get(
                roots.get(cr3), "another"
            ),
            "IDT": "lg's" if idt == self.base + IDT else "the Host's",
            "GDT": "lg's" if gdt == self.base + GDT else "the Host's",
            "RSP": stack,
            "IF": self.register("eflags") >> 9 & 1,
            "mode": "user" if self.state("mode") else "kernel",
            **{name: self.mapped(cr3, address) for name, address in places.items()},
        }

    # Going on.

    def step(self):
        gdb.execute("stepi", to_string=True)

    def run_to(self, address, accept=lambda: True):
        """Lets the machine run until it is about to execute what is at an address, and `accept` says yes there."""
        stop = gdb.Breakpoint(f"*{address:#x}", gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        try:
            while True:
                gdb.execute("continue", to_string=True)
                if self.rip == address and accept():
                    return
        finally:
            stop.delete()

    def instructions(self, address, end):
        """The CPU's instructions there: (address, text)."""
        code = gdb.selected_inferior().architecture().disassemble(address, end - 1)
        return [(each["addr"], " ".join(each["asm"].split())) for each in code]
