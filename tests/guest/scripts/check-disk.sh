# One empty disk, end to end: identity, writes at its edges, a file system, discard.
# Set by the test: WANT_SERIAL, WANT_SIZE (bytes), PHASE ("write" on the empty disk, "again" on one that "write" left).
. /lib/guest.sh

fail() {
	mark "FAIL $*"
	dmesg | tail -n 20
	exit 1
}

wait_for_disks 1 || fail "no disk"
dev=$(disks)
[ "$(disk_size "$dev")" = "$WANT_SIZE" ] || fail "size $(disk_size "$dev"), not $WANT_SIZE"
[ "$(disk_serial "$dev")" = "$WANT_SERIAL" ] || fail "serial $(disk_serial "$dev"), not $WANT_SERIAL"
mark "FOUND dev=$dev queues=$(ls -d /sys/block/"$dev"/mq/* | wc -l)"

mebibyte=1048576
last=$((WANT_SIZE / mebibyte - 1))

# sum_at MIB: of one MiB of the disk, past the page cache.
sum_at() {
	dd if="/dev/$dev" bs=$mebibyte skip="$1" count=1 iflag=direct 2> /dev/null | sha256sum
}

# put_at MIB: one MiB of random bytes, flushed; leaves its sum in $wrote.
put_at() {
	dd if=/dev/urandom of=/tmp/mib bs=65536 count=16 2> /dev/null
	wrote=$(sha256sum < /tmp/mib)
	dd if=/tmp/mib of="/dev/$dev" bs=65536 seek=$(($1 * 16)) conv=notrunc,fsync 2> /dev/null || fail "write at $1 MiB"
}

check_files() {
	mount -t ext4 "/dev/$dev" /mnt || fail "mount"
	(cd /mnt && sha256sum -c sums > /dev/null) || fail "files differ"
	umount /mnt
}

if [ "$PHASE" = again ]; then
	check_files
	mark "VERIFIED-AGAIN"
	exit 0
fi

zeros=$(dd if=/dev/zero bs=65536 count=16 2> /dev/null | sha256sum)
for at in 0 $((last / 2)) $last; do
	[ "$(sum_at $at)" = "$zeros" ] || fail "a new volume is not zero at $at MiB"
	put_at $at
	[ "$(sum_at $at)" = "$wrote" ] || fail "read back differs at $at MiB"
done
mark "EDGES"

# Odd offsets and lengths: 512 bytes at a time, across what may be a cluster's edge.
dd if=/dev/urandom of=/tmp/odd bs=512 count=9 2> /dev/null
dd if=/tmp/odd of="/dev/$dev" bs=512 seek=2045 conv=notrunc oflag=direct 2> /dev/null || fail "write of single blocks"
dd if="/dev/$dev" of=/tmp/read bs=512 skip=2045 count=9 iflag=direct 2> /dev/null || fail "read of single blocks"
cmp -s /tmp/odd /tmp/read || fail "single blocks differ"
mark "BLOCKS"

mke2fs -F "/dev/$dev" > /dev/null 2>&1 || fail "mke2fs"
mount -t ext4 "/dev/$dev" /mnt || fail "first mount"
for number in 1 2 3 4 5 6 7 8; do
	head -c $((number * 150001)) /dev/urandom > "/mnt/file$number" || fail "file $number"
done
(cd /mnt && sha256sum file* > sums)
sync
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
check_files
mark "FILES"

if [ "$(cat "/sys/block/$dev/queue/discard_max_bytes")" -gt 0 ]; then
	# The file system's blocks lie in front; the last MiB holds what was written to the edge.
	blkdiscard -o $((last * mebibyte)) -l $mebibyte "/dev/$dev" || fail "discard"
	[ "$(sum_at $last)" = "$zeros" ] || fail "discarded blocks are not zero"
	check_files
	mark "DISCARD"
fi
