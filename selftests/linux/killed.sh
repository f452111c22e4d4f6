#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# expect: 137
# The command dies by SIGKILL: 128 + 9, as a shell has it.
kill -9 $$
