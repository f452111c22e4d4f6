# SPDX-License-Identifier: GPL-2.0
"""The tour: what is to be seen, and in which order.

Run by gdb (scripts/teach). A part goes from one stop to the next, instruction by instruction. A stop says something, and
what it wants of the CPU is compared with what the CPU has; so the tour fails when the code does something else.
"""

import os
import pathlib
import re
import sys
import textwrap
import traceback

import gdb

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from listing import Listing  # noqa: E402
from machine import SHARED, TOP, Lost, Machine, flags_of  # noqa: E402

SOURCE = "rust/lg/sys/switcher.S"
CHECK = bool(os.environ.get("LG_CHECK"))
BOLD, FAINT, BLUE, PLAIN = (
    ("", "", "", "") if CHECK or not os.isatty(1) else ("\033[1m", "\033[2m", "\033[34m", "\033[0m")
)
# Bare Guests: rust/lguest-guest/examples/user.rs, whose program is at 4 MiB, and one that would keep its CPU for ever.
COMMANDS = [
    "lg run -m 64M guests/user",
    "lg run -m 64M selftests/hostile/events --append crime=spin-with-interrupts-off",
]
SYSCALL, PUSH, STACK = 0x40_0011, 0x40_0013, 0x7FFF_FFFF_EFF8
TIMER = 0xEC


class Wrong(Exception):
    """The code does not do what the tour says."""


class Quit(Exception):
    """The visitor has seen enough."""


class Stop:
    """A place of the tour, what there is to say, and what must be true there."""

    def __init__(self, place):
        self.place, self.text, self.show, self.wanted = place, [], [], []


def stops():
    """What the file of that name has, by part."""
    parts, stop = {}, None
    for line in (HERE / "stops").read_text(encoding="utf-8").partition("\n= ")[2].splitlines():
        word, _, rest = line.partition(" ")
        if not parts or word == "=":
            part = parts[rest if word == "=" else line] = []
        elif word == "at":
            stop = Stop(rest)
            part.append(stop)
        elif word == "show":
            stop.show.append(rest)
        elif line.startswith(" "):
            stop.text.append(line.strip())
        elif line:
            stop.wanted += line.split(", ")
    return parts


class Tour:
    def __init__(self, machine):
        self.machine = machine
        self.listing = Listing(TOP / SOURCE)
        self.parts = stops()
        self.lines = {}
        self.places = {}
        self.hurry = CHECK
        self.stops = 0

    # Where we are.

    def line(self):
        """The line of the source that the CPU is about to execute, and its place by name."""
        machine = self.machine
        label, offset = machine.where()
        if label == "lg_switcher_start":
            kind, vector = offset >> 12, (offset & 0xFFF) >> 4
            first, name = offset & ~15, f"{('stub', 'replay')[kind]} {vector:#04x}"
        else:
            first, name = machine.labels[label], label
        if name not in self.lines:
            after = [at for at in machine.labels.values() if at > first]
            end = min(after) if label != "lg_switcher_start" else first + 16
            code = machine.instructions(machine.base + first, machine.base + end)
            if label == "lg_switcher_start":
                # What is behind the stub fills up to the next one.
                code = code[
                    : next(i for i, (_, text) in enumerate(code) if text.startswith(("jmp", "lret"))) + 1
                ]
                jumped = re.search(r"0x(\w+)", code[-1][1])
                target = int(jumped[1], 16) - machine.base if jumped else None
                target = next((label for label, at in machine.labels.items() if at == target), None)
                found = self.listing.stub(kind, [text.split()[0] for _, text in code], target)
            else:
                found = self.listing.match(label, [text.split()[0] for _, text in code])
            self.lines[name] = {address - machine.base: line for (address, _), line in zip(code, found)}
        at = machine.rip - machine.base
        if at not in self.lines[name]:
            raise Wrong(f"{name} has no instruction at +{at - first:#x}")
        return self.lines[name][at], name, at == first

    def is_at(self, stop):
        inside = self.machine.where()
        privilege = self.machine.register("cs") & 3
        if stop.place in ("guest", "host"):
            return not inside and privilege == {"guest": 3, "host": 0}[stop.place]
        if not inside:
            return False
        line, name, first = self.line()
        return f"`{line.text}`" == stop.place or (first and name == stop.place)

    # What is told.

    def tell(self, text, indent="  "):
        print(textwrap.fill(text, 96, initial_indent=indent, subsequent_indent=indent), flush=True)

    def instruction(self):
        """Shows the instruction that is next."""
        if not self.machine.where():
            mapped = self.machine.mapped(self.machine.cr3, self.machine.rip) != "-"
            text = (
                self.machine.instructions(self.machine.rip, self.machine.rip + 1)[0][1]
                if mapped
                else "(not mapped)"
            )
            print(f"    {'the Guest':<17} {BLUE}{text}{PLAIN}", flush=True)
            return
        line, name, first = self.line()
        if first:
            print(f"  {BOLD}{name}:{PLAIN}")
        if line.before:
            self.tell(f"{FAINT}{line.before}{PLAIN}", "      ")
        comment = f"   {FAINT}/* {line.comment} */{PLAIN}" if line.comment else ""
        print(f"    switcher.S:{line.number:<6} {BLUE}{line.text}{PLAIN}{comment}", flush=True)

    def changes(self, before, after):
        for name in after:
            if before.get(name) != after[name]:
                print(f"        {name}: {before.get(name)} -> {BOLD}{after[name]}{PLAIN}")

    def ask(self):
        if CHECK:
            return
        try:
            answer = input(f"{FAINT}Enter: on   n: to the next stop   q: end {PLAIN}").strip()
        except EOFError:
            answer = "q"
        if answer == "q":
            raise Quit
        self.hurry = answer == "n"

    def walk(self, name, root, address):
        """Shows a walk, entry by entry."""
        entries = [
            f"level {level}: {flags_of(entry)}" for level, entry in self.machine.entries(root, address)
        ]
        print(f"    {name}, {address:#x}: " + ", ".join(entries))

    def reason(self, address):
        """Shows why the Guest left: by a page fault at this address."""
        vector, error, cr2 = (
            self.machine.saved("vector"),
            self.machine.saved("error"),
            self.machine.state("cr2"),
        )
        print(f"      vector {vector}, error code {error:#x}, CR2 {cr2:#x}")
        self.require(f"it was a page fault at {address:#x}", (vector, cr2) == (14, address))

    def both_roots(self, address):
        for name in ("user", "kernel"):
            self.walk(f"{name} root", self.machine.state(f"{name}_cr3"), address)

    # Going on.

    def title(self, title, text):
        print(f"\n{BOLD}{title}{PLAIN}")
        self.tell(" ".join(text.split()))
        self.ask()

    def see(self, stop, status):
        """Says what there is to say at a stop, and holds the CPU to it."""
        self.stops += 1
        print(f"\n  {BOLD}[{self.stops}]{PLAIN}")
        self.tell(" ".join(stop.text), "      ")
        has = ", ".join(f"{name} {value}" for name, value in status.items() if name not in self.places)
        mapped = ", ".join(f"{name} {status[name]}" for name in self.places)
        print(f"      {has}\n      mapped: {mapped}")
        for wanted in stop.wanted:
            if wanted not in [f"{name} {value}" for name, value in status.items()]:
                raise Wrong(f"stop {self.stops}, {stop.place}: the tour says {wanted}, and that is not so")
        for what in stop.show:
            {"roots": self.both_roots, "reason": self.reason}[what](self.places["Guest page"])
        self.ask()

    def go(self, part, address):
        """Goes on, instruction by instruction, until the last stop of a part has been seen."""
        machine = self.machine
        self.places = {
            "Host kernel": machine.begin,
            "switcher": machine.base,
            "shared page": machine.base + SHARED,
            "Guest page": address,
        }
        left, known, last = list(self.parts[part]), None, None
        for _ in range(2000):
            status = machine.status(self.places)
            if known:
                self.changes(known, status)
            if self.is_at(left[0]):
                self.see(left.pop(0), status)
                if not left:
                    return
            here = self.line()[0] if machine.where() else None
            if here is None and status["CPL"] == 0:
                break
            # What is repeated is shown once.
            if here is None or here is not last:
                self.instruction()
                if not self.hurry:
                    self.ask()
            last, known = here, status
            machine.step()
        raise Wrong(f"{left[0].place} is not reached")

    def require(self, what, truth):
        if not truth:
            raise Wrong(f"it is not so that {what}")


def into_the_guest(tour, machine):
    tour.title(
        "1. Into the Guest, and out again",
        f"""
        On the Host somebody says `{COMMANDS[0]}`. The Launcher has filled the Guest's RAM and made its first
        LGUEST_RUN. Interrupts are off, and a run section begins: its FPU registers and MSRs are the Guest's from
        here on. Nothing of the Guest's has run yet. The first stop is where Switcher::enter calls the switcher, at
        an address in the slot.""",
    )
    machine.go()
    entry = machine.saved("rip")
    tour.go("enter", entry)
    tour.title(
        "What came of it", "Exit::decode, exits::page_fault, Shadow::fill; and the Guest is entered again."
    )
    machine.run_to(machine.label("lg_switcher_enter"))
    tour.both_roots(entry)
    kernel = machine.state("kernel_cr3")
    tour.require("the first instruction is mapped in the kernel root", machine.mapped(kernel, entry) == "U")
    tour.require("the Guest tries it again", machine.saved("rip") == entry)


def system_call(tour, machine):
    tour.title(
        "2. A system call, without the Host",
        """
        The Guest's kernel has made an address space, and its program runs: examples/user.rs. It is about to ask for
        its first system call, `print`. The user root is loaded, which knows nothing of the Guest's kernel.""",
    )
    machine.run_to(SYSCALL)
    calls, returns = machine.state("direct_syscalls"), machine.state("direct_erets")
    entry = machine.state("syscall_entry")
    tour.go("system call", entry)
    tour.require("RIP is the entry that is registered", machine.rip == entry)
    tour.require("the system call was counted", machine.state("direct_syscalls") == calls + 1)
    tour.title(
        "And back",
        """
        The kernel has printed the text, by hypercalls, which leave to the Host. Then it makes the hypercall ERET.""",
    )
    machine.run_to(machine.label("eret"))
    tour.go("return", entry)
    tour.require("the program is behind its SYSCALL", machine.rip == PUSH)
    tour.require("the return was counted", machine.state("direct_erets") == returns + 1)


def page_fault(tour, machine):
    tour.title(
        "3. A page fault, twice",
        """
        The program's next instruction is a PUSH, and it has no stack yet: neither the Guest's tables nor the shadow
        have the page.""",
    )
    tour.go("fault", STACK)
    tour.title(
        "The Guest's own fault",
        """
        The walk of the Guest's tables found nothing (Fault::Inject). So this is its kernel's business: event::inject
        writes to the shared page what the CPU would have pushed, and the Guest is entered in kernel mode, at its
        entry for events.""",
    )
    machine.run_to(machine.label("guest_iret_last"))
    tour.both_roots(STACK)
    tour.require("the mode is the kernel's", machine.state("mode") == 0)
    tour.require("the shadow has nothing yet", machine.mapped(machine.state("user_cr3"), STACK) == "-")
    tour.title(
        "Once more",
        """
        The kernel maps a page and returns to the program, which tries its PUSH again. Now the Guest's tables have the
        page and the shadow has not: Fault::Filled.""",
    )
    machine.run_to(PUSH, accept=lambda: machine.state("mode") != 0)
    tour.go("fault again", STACK)
    machine.run_to(machine.label("guest_iret_last"), accept=lambda: machine.state("mode") != 0)
    tour.go("filled", STACK)
    machine.step()
    tour.require("42 is on the stack", machine.rip == PUSH + 2 and machine.read(STACK, 8) == 42)


def interrupt(tour, machine):
    tour.title(
        "4. An interrupt, replayed",
        f"""
        Another Guest: `{COMMANDS[1]}`. It turns interrupts off, as far as it can tell, and stays in a loop that
        causes no exit at all. What gets it out is the Host's own timer, vector {TIMER:#x}.""",
    )
    machine.go()
    # Not an interrupt that comes before the Guest's first instruction.
    stub, replay = machine.base + 16 * TIMER, machine.base + 0x1000 + 16 * TIMER
    machine.run_to(stub, accept=lambda: machine.mapped(machine.cr3, machine.saved("rip")) == "U")
    address = machine.saved("rip")
    tour.go("interrupt", address)
    machine.run_to(replay)
    tour.go("replay", address)
    rsp = machine.register("rsp")
    back = machine.read(rsp, 8)
    tour.require("the handler returns to the stub", replay < back < replay + 16)
    tour.require("the frame says IF=1", machine.read(rsp + 16, 8) & 1 << 9)
    machine.run_to(back)
    tour.go("replayed", address)


def main():
    for setting in (
        "pagination off",
        "confirm off",
        "stack-cache off",
        "code-cache off",
        "disassembly-flavor att",
        "language rust",
        "suppress-cli-notifications on",
    ):
        gdb.execute(f"set {setting}", to_string=True)
    print("Booting the test machine ...", flush=True)
    machine = Machine()
    try:
        # Ten minutes for a test, a day for a visitor.
        machine.boot(COMMANDS, 600 if CHECK else 86400)
        tour = Tour(machine)
        for part in (into_the_guest, system_call, page_fault, interrupt):
            part(tour, machine)
        print(f"\n{tour.stops} stops, and everything was as the tour says.")
        return 0
    except Quit:
        return 0
    except (Wrong, Lost, ValueError, gdb.error) as wrong:
        print(f"\nerror: {wrong}")
        return 1
    finally:
        machine.close()


STATUS = 1
try:
    STATUS = main()
except KeyboardInterrupt:
    STATUS = 130
except Exception:  # pylint: disable=broad-except
    # gdb would say less, and go on.
    traceback.print_exc()
finally:
    gdb.execute(f"quit {STATUS}")
