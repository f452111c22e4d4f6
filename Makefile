# SPDX-License-Identifier: GPL-2.0
#
# The front door. Everything here may be said again at any time: finished work is not done twice.

.PHONY: help all unpatched setup module launcher guests kernel rootfs run check check-all lab bench book teach lint fmt modules install clean

help:
	@echo 'make run        build what is missing and boot Linux as a guest of lg, down to a shell'
	@echo "make run ARGS='-- uname -a'  the same, and lg run is told more"
	@echo 'make check      all tests; make check T=flush: those with that in their name'
	@echo 'make check-all  all tests, on every kind of test machine'
	@echo 'make lab N=1    is lab 1 solved? make lab says which labs there are: Documentation/labs'
	@echo 'make bench      the same kernel directly and as a guest, and its devices, side by side'
	@echo 'make teach      a world switch in slow motion: a tour by gdb, instruction by instruction'
	@echo 'make book       Documentation/ as a web site that needs no server: build/book/index.html'
	@echo 'make modules    lg.ko for the kernel of this Debian machine, and what make install wants'
	@echo 'make modules KDIR=/lib/modules/$$(uname -r)/build'
	@echo '                lg.ko for another kernel that has its Rust metadata'
	@echo 'make install    lg, its guest and that module, for everybody in group lguest'
	@echo
	@echo 'Parts: all = unpatched kernel; unpatched = module launcher guests rootfs; setup; lint, fmt; clean.'

all: unpatched kernel

# All that needs no patched kernel, which takes the longest to make.
unpatched: module launcher guests rootfs

# The toolchain, the Host kernel and the guest kernel, in the cache directory.
setup:
	scripts/setup all

module:
	scripts/setup host
	scripts/in-root make --no-print-directory -C /cache/host M=/lg MO=/lg/build/module modules
	@install -C -m 644 build/module/lg.ko build/lg.ko

launcher:
	scripts/setup root
	scripts/build-shim
	scripts/in-root cargo build --release --locked -p lg
	@install -C target/x86_64-unknown-linux-gnu/release/lg build/lg

guests:
	scripts/setup host
	selftests/build

kernel:
	scripts/setup guest
	@mkdir -p build
	@# There is none if the Host kernel is of a version that has no series of patches.
	scripts/in-root sh -c '[ -e /cache/guest/vmlinux ] || { rm -f build/vmlinux; exit 0; }; \
		[ build/vmlinux -nt /cache/guest/vmlinux ] || strip -g -o build/vmlinux /cache/guest/vmlinux'

rootfs:
	scripts/setup host
	scripts/build-initramfs

# The Guest is the patched kernel if there is one already, and else the kernel that the Host runs.
run: unpatched
	scripts/testhost -- lg run $(ARGS)

check: all
	scripts/setup kernels
	scripts/check $(if $(T),--only '$(T)')

check-all: all
	scripts/check --all

# What it needs is built by its test.
lab:
	@scripts/lab $(N)

bench: all
	scripts/bench
	scripts/bench-devices

teach: unpatched
	@scripts/teach

book:
	scripts/setup mdbook
	@scripts/in-root scripts/build-book

lint:
	scripts/check lint

fmt:
	scripts/in-root cargo fmt
	scripts/in-root rustfmt --edition 2021 rust/lg/lg.rs

ifdef KDIR
# For a kernel that has its Rust metadata (rust/*.rmeta) beside its headers, with the tools on this machine.
modules:
	scripts/probe-kernel '$(KDIR)'
	$(MAKE) -C '$(KDIR)' M='$(CURDIR)' MO='$(CURDIR)/build/own' modules
	@echo 'built build/own/lg.ko'
else
# For the running kernel, if it is one of Debian's; and what make install puts beside it.
modules: launcher rootfs kernel
	scripts/build-module
endif

# Only what is built already: who installs need not be who builds.
install:
	scripts/install

# The cache directory stays: see scripts/setup.
clean:
	rm -rf build target selftests/fuzz/target
