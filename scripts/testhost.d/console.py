# SPDX-License-Identifier: GPL-2.0
"""The Host's console: its log, and what a healthy kernel never says there."""

import re
import time

from common import HOST_COMPLAINS, Failure

# A line of the Host's log that makes a run fail. Lines about user processes ("traps: …") do not.
COMPLAINT = re.compile(
    r"WARNING: |BUG: |\bOops\b|Kernel panic|kernel BUG at|UBSAN:|KASAN:|KFENCE:|refcount_t:"
    r"|possible (recursive|circular) locking|inconsistent lock state|suspicious RCU usage"
    r"|rcu:? .*(self-detected stall|detected stall|detected expedited stall)|soft lockup|hard LOCKUP"
    r"|hung_task|blocked for more than|scheduling while atomic|sleeping function called"
    r"|unable to handle|nobody cared|NMI received for unknown reason|Bad page"
    # The tests of memory errors make some, of which they alone are told, by a signal.
    r"|^(?!.*Sending SIGBUS to memory_errors:).*corruption"
)


def text_of(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().replace("\r", "")
    except FileNotFoundError:
        return ""


def end_of_log(scratch):
    """The last lines of the Host's log, or more: from its first complaint on, whose trace is long."""
    lines = text_of(f"{scratch}/console").splitlines()
    complaints = (number for number, line in enumerate(lines) if COMPLAINT.search(line))
    first = max(0, min(next(complaints, len(lines)) - 5, len(lines) - 40))
    return lines[first:][:200]


def check_log(scratch, status):
    """Fails when the Host's log has a complaint made while lg.ko was there."""
    ours = re.compile(r"testhost: begin\n(.*)testhost: end\n", re.S)
    patience = time.monotonic() + 30
    while not (seen := ours.search(text_of(f"{scratch}/console"))):
        if time.monotonic() > patience:
            raise Failure(HOST_COMPLAINS, "the end of CMD never showed up in the Host's log")
        time.sleep(0.02)
    complaints = [line for line in seen[1].splitlines() if COMPLAINT.search(line)]
    if complaints:
        heading = f"CMD ended with status {status}, but the Host complains:"
        raise Failure(HOST_COMPLAINS, "\n".join([heading, *complaints]))
