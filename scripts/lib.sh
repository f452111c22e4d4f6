# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034 # the variables are for those who source this
#
# Sourced by the other scripts: where things are, and how to complain.

# Are we inside the toolchain root already?
in_lg_root() {
	[ -e /etc/lg-root ]
}

# The checkout.
lg_top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Everything that takes minutes to make lives outside the checkout, so that a clean clone finds it.
lg_cache=${XDG_CACHE_HOME:-$HOME/.cache}/lg
! in_lg_root || lg_cache=/cache
# The toolchain root: a Debian tree with the very compilers that built the Host kernel, or what $LG_ROOT says, if another
# kernel needs others.
lg_root=$(readlink -f "${LG_ROOT:-$lg_cache/root}") || lg_root=${LG_ROOT:-$lg_cache/root}

# die MESSAGE [WHAT-TO-DO...] - print what went wrong and how to go on, then exit ($status or 1).
die() {
	printf '%s: %s\n' "${0##*/}" "$1" >&2
	shift
	[ $# -eq 0 ] || printf '    %s\n' "$@" >&2
	exit "${status:-1}"
}
