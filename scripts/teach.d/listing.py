# SPDX-License-Identifier: GPL-2.0
"""The switcher's source, instruction by instruction.

The assembler tells no debugger where an instruction of `global_asm!` comes from. But one line is one instruction,
apart from macros and repetitions, which are read here as the assembler reads them: so what is at a label is the list
of instructions behind it in the source.
"""

import re

LABEL = re.compile(r"(\w*[A-Za-z_]\w*):")
# Suffixes of the operand's size, where the disassembler may leave them out.
SIZED = r"(mov|push|pop|cmp|add|sub|and|or|xor|test|btr|lea|inc|shl|shr|sar|pushf|popf|call|jmp)[bwlq]"
ALIASES = {"jz": "je", "jnz": "jne", "jnc": "jae"}


def plain(mnemonic):
    """An instruction's name, however it is written."""
    mnemonic = ALIASES.get(mnemonic, mnemonic)
    return re.sub(rf"^{SIZED}$", r"\1", mnemonic)


class Line:
    """An instruction in the source."""

    def __init__(self, number, text, comment, before):
        self.number, self.text, self.comment, self.before = number, " ".join(text.split()), comment, before

    @property
    def mnemonic(self):
        return plain(self.text.split()[0])


def lines_of(text):
    """The lines with something in them: (number, code, comment, the comment that stands above it)."""
    # A comment becomes one mark in the place where it begins; line numbers stay.
    comments = []

    def mark(match):
        comments.append(" ".join(re.sub(r"^\s*/?\*+/?|\*/$", " ", match[0], flags=re.M).split()))
        return f"\0{len(comments) - 1}\0" + "\n" * match[0].count("\n")

    above = ""
    for number, line in enumerate(re.sub(r"/\*.*?\*/", mark, text, flags=re.S).split("\n"), 1):
        told = " ".join(comments[int(index)] for index in re.findall(r"\0(\d+)\0", line))
        code = re.sub(r"\0\d+\0", "", line).strip()
        if code:
            yield number, code, told, above
            above = ""
        elif told:
            above = told


def expand(lines, macros):
    """What the assembler makes of these lines: labels as strings, and instructions."""
    result, at = [], 0
    while at < len(lines):
        number, code, comment, before = lines[at]
        at += 1
        word = code.split()[0]
        if word in (".rept", ".macro"):
            depth, start = 1, at
            ends = {".rept": ".endr", ".macro": ".endm"}[word]
            while depth:
                first = lines[at][1].split()[0]
                depth += (first == word) - (first == ends)
                at += 1
            inner = lines[start : at - 1]
            if word == ".macro":
                macros[code.split()[1]] = inner
            elif code.split()[1] != "256":
                result += expand(inner, macros) * int(code.split()[1])
            else:
                # Of the stubs, each is another choice of these lines: see `stub`.
                result += [("stub", expand([line for line in inner if line[1][0] != "."], macros))]
        elif label := LABEL.match(code):
            result.append(label[1])
        elif word in macros:
            result += expand(macros[word], macros)
        elif not word.startswith(".") and not re.match(r"\d+:|\.L\S*:", word):
            result.append(Line(number, code, comment, before))
    return result


class Listing:
    """All labels of switcher.S with their instructions, and the lines of the two kinds of stubs."""

    def __init__(self, path):
        self.labels, self.stubs = {}, []
        here = []
        for item in expand(list(lines_of(path.read_text(encoding="utf-8"))), {}):
            if isinstance(item, str):
                here = self.labels[item] = []
            elif isinstance(item, tuple):
                self.stubs.append(item[1])
            else:
                here.append(item)

    def match(self, label, instructions):
        """The lines of what is at a label. `instructions` are the CPU's names of what is there."""
        lines = self.labels[label]
        names = [plain(name) for name in instructions]
        for number, (line, name) in enumerate(zip(lines, names)):
            if line.mnemonic != name:
                raise ValueError(
                    f"{label}, instruction {number}: {name}, and in line {line.number}: {line.text}"
                )
        if len(lines) > len(names):
            raise ValueError(f"{label} has {len(names)} instructions, and in the source {len(lines)}")
        return lines

    def stub(self, kind, instructions, target):
        """The lines of stub number N of a kind; its last instruction jumps to the label `target`, if it jumps."""
        lines, found = iter(self.stubs[kind]), []
        for name in instructions:
            wanted = plain(name)
            line = next(
                (
                    line
                    for line in lines
                    if line.mnemonic == wanted and (wanted != "jmp" or target in line.text.split())
                ),
                None,
            )
            if line is None:
                raise ValueError(f"no line of the stubs is a {name}")
            found.append(line)
        return found
