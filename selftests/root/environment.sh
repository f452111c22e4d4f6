#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What `--env` gives, takes over from the caller, and leaves out; behind what comes by itself.
. "${0%/*}/../lib.sh"

export MINE='a caller'\''s' HIDDEN=secret
lg --env 'A=b=c d' --env EMPTY= --env MINE --env NOBODY_HAS_IT --env HOME=/elsewhere -- env >/tmp/env
grep -qx 'A=b=c d' /tmp/env
grep -qx 'EMPTY=' /tmp/env
grep -qx "MINE=a caller's" /tmp/env
grep -qx 'HOME=/elsewhere' /tmp/env
grep -qx "PATH=$PATH" /tmp/env
fails_with 1 grep -E 'HIDDEN|NOBODY' /tmp/env
rm /tmp/env
