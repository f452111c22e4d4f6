#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The directory of the command, by the name that the caller has for it, and when it has none any more.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/../lib.sh"

mkdir -p /real/directory /gone
ln -s /real /link
[ "$(cd /link/directory && lg -- sh -c 'pwd; pwd -P' | tr '\n' ' ')" = "/link/directory /real/directory " ]
# A name that is of another directory is none.
[ "$(cd /real/directory && PWD=/etc lg -- sh -c pwd)" = /real/directory ]
# What is meant by a name without a beginning are no files of another directory.
cd /gone && rmdir /gone
[ "$(lg --rw -- sh -c 'ls -A | wc -l; (: >file) 2>/dev/null || echo nowhere' | tr '\n' ' ')" = "0 nowhere " ]
