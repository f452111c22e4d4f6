#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# timeout: 600
# A kernel that has no driver for the bus of virtio's devices has a network of Xen's, for an initrd of its user's: here
# xen-netfront gets a file and sends it back, leaves, comes again, and does it once more with longer frames. First by passt,
# and then by a tap, whose other end is a kernel that looks at checksums.
# shellcheck disable=SC2016 # for the Guest's shell
. "${0%/*}/lib.sh"

work=/tmp/xen-net
mkdir -p $work/initrd $work/modules $work/www
children=''
trap 'status=$?; kill $children || :; tunctl -d lg0 || :; rm -r $work; exit $status' EXIT
module=$(cd "/lib/modules/$RELEASE" && find . -name 'xen-netfront.ko*')
case $module in
'') grep '/xen-netfront[.]ko$' "/lib/modules/$RELEASE/modules.builtin" ;;
*.xz) unxz -c "/lib/modules/$RELEASE/$module" >$work/initrd/xen-netfront.ko ;;
*) cp "/lib/modules/$RELEASE/$module" $work/initrd/xen-netfront.ko ;;
esac
# The driver of the bus is there, and nobody loads it.
for list in dep builtin; do
	sed '/xen-pcifront[.]ko/d' "/lib/modules/$RELEASE/modules.$list" >$work/modules/modules.$list
done
cat >$work/initrd/init <<'EOS'
#!/bin/sh
set -e
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
exec 2>/dev/console
set -x
[ ! -e /xen-netfront.ko ] || insmod /xen-netfront.ko
for mtu in 1500 9000; do
	until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
	ip link set eth0 mtu $mtu up
	ip address add 10.0.2.15/24 dev eth0
	wget -q -O /file http://10.0.2.2:8000/file
	echo "by $(cat /sys/class/net/eth0/address): $(sha256sum </file)" >/dev/console
	until nc 10.0.2.2 8001 </file; do sleep 0.1; done
	echo vif-0 >/sys/bus/xen/drivers/vif/unbind
	[ ! -e /sys/class/net/eth0 ]
	echo vif-0 >/sys/bus/xen/drivers/vif/bind
done
echo the network has come and gone >/dev/console
poweroff -f
EOS
chmod +x $work/initrd/init
(cd $work/initrd && find . | cpio -o -H newc) >$work/added.cpio
cat /usr/lib/lg/busybox.cpio $work/added.cpio >$work/initrd.cpio
head -c 3000001 /dev/urandom >$work/www/file
sum=$(sha256sum <$work/www/file)
# The server that takes the file must not be the first to say that it has no more: then the Guest's nc ends.
mkfifo $work/nothing
exec 3<>$work/nothing
httpd -f -p 8000 -h $work/www &
children="$children $!"

# transfer TO - to the other end of a cable at TO.
transfer() {
	for number in 1 2; do nc -l -p 8001 <&3 >$work/back.$number; done &
	receiver=$! status=0
	children="$children $receiver"
	stock -v --modules $work/modules --initrd $work/initrd.cpio --net "$1,mac=02:00:00:00:00:09" >$work/said 2>&1 || status=$?
	cat $work/said
	[ "$status" -eq 0 ]
	grep '^the network has come and gone' $work/said
	[ "$(grep -c "^by 02:00:00:00:00:09: $sum" $work/said)" -eq 2 ]
	wait $receiver
	cmp $work/www/file $work/back.1
	cmp $work/www/file $work/back.2
}

stock --dry-run --modules $work/modules --initrd $work/initrd.cpio --net user | grep "^net of Xen's  *user$"
transfer user
[ -e /dev/net/tun ] || insmod /usr/lib/modules/tun.ko
tunctl -t lg0
ip link set lg0 mtu 9000 up
ip address add 10.0.2.2/24 dev lg0
transfer tap=lg0
