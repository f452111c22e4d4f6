#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A kernel that has no driver for the bus of virtio's devices has disks of Xen's, for an initrd of its user's: here xen-blkfront
# copies one to the other, and finds what it has written.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

work=/tmp/disks
mkdir -p $work/initrd $work/modules
trap 'rm -r $work' EXIT
module=$(cd "/lib/modules/$RELEASE" && find . -name 'xen-blkfront.ko*')
case $module in
'') grep '/xen-blkfront[.]ko$' "/lib/modules/$RELEASE/modules.builtin" ;;
*.xz) unxz -c "/lib/modules/$RELEASE/$module" >$work/initrd/xen-blkfront.ko ;;
*) cp "/lib/modules/$RELEASE/$module" $work/initrd/xen-blkfront.ko ;;
esac
# The driver of the bus is there, and nobody loads it.
for list in dep builtin; do
	sed '/xen-pcifront[.]ko/d' "/lib/modules/$RELEASE/modules.$list" >$work/modules/modules.$list
done
cat >$work/initrd/init <<'EOF'
#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
[ ! -e /xen-blkfront.ko ] || insmod /xen-blkfront.ko
until [ -b /dev/xvda ] && [ -b /dev/xvdb ]; do sleep 0.1; done
dd if=/dev/xvdb of=/dev/xvda bs=64k conv=fsync
echo 1 >/proc/sys/vm/drop_caches
cmp /dev/xvda /dev/xvdb && echo they are the same >/dev/console
dd if=/dev/zero of=/dev/xvdb bs=4k count=1 conv=fsync || echo it is read-only >/dev/console
poweroff -f
EOF
chmod +x $work/initrd/init
(cd $work/initrd && find . | cpio -o -H newc) >$work/added.cpio
cat /usr/lib/lg/busybox.cpio $work/added.cpio >$work/initrd.cpio
head -c 3000000 /dev/urandom >$work/from
truncate -s 3M $work/from $work/to
stock -v --modules $work/modules --initrd $work/initrd.cpio --disk $work/to --disk $work/from,ro >$work/said 2>&1 || status=$?
cat $work/said
[ "${status:-0}" -eq 0 ]
grep 'they are the same' $work/said
grep 'it is read-only' $work/said
cmp $work/from $work/to
# What else there could be needs the bus.
for option in "--share $work:work" "--vsock $work/socket"; do
	# shellcheck disable=SC2086 # an option and its word
	fails_with 125 stock --modules $work/modules --initrd $work/initrd.cpio $option 2>$work/said
	grep CONFIG_XEN_PCIDEV_FRONTEND $work/said
done
fails_with 125 stock --modules $work/modules -- true 2>$work/said
grep CONFIG_XEN_PCIDEV_FRONTEND $work/said
