# Shell functions for guest scripts; sourced, runs under busybox sh.

# mark WORD...: a line that a test waits for.
mark() {
	echo "@@$*" > /dev/console
}

# uptime_s: seconds since the kernel started.
uptime_s() {
	read -r up _ < /proc/uptime
	echo "$up"
}

# disks: names of the virtio-blk and scsi disks that have a size, in the kernel's order.
disks() {
	for dir in /sys/block/sd* /sys/block/vd* /sys/block/ubd*; do
		[ -e "$dir/size" ] || continue
		read -r sectors < "$dir/size" || continue
		[ "$sectors" -gt 0 ] && echo "${dir##*/}"
	done
}

# wait_for_disks COUNT: returns once so many disks are there; fails after 30 s.
wait_for_disks() {
	tries=0
	while [ "$(disks | wc -l)" -lt "$1" ]; do
		tries=$((tries + 1))
		[ "$tries" -gt 300 ] && return 1
		sleep 0.1
	done
}

# disk_size DEV: bytes.
disk_size() {
	read -r sectors < "/sys/block/$1/size" && echo $((sectors * 512))
}

# disk_serial DEV: what virtio-blk GET_ID or the SCSI Unit Serial Number page (80h) says.
# The page has a header of four bytes (SPC-5 7.7.19).
disk_serial() {
	if [ -e "/sys/block/$1/serial" ]; then
		cat "/sys/block/$1/serial"
	elif [ -e "/sys/block/$1/device/vpd_pg80" ]; then
		tail -c +5 "/sys/block/$1/device/vpd_pg80"
	fi
}

# head_sha256 DEV: of the first MiB, read past the page cache; "unreadable" when that fails.
head_sha256() {
	head=$(mktemp)
	if dd if="/dev/$1" of="$head" bs=65536 count=16 iflag=direct 2> /dev/null; then
		sha256sum < "$head" | cut -d' ' -f1
	else
		echo unreadable
	fi
	rm "$head"
}
