# Verified I/O until told to stop: two workers write random regions of a disk and read back all of theirs.
# Each finished round is a line @@ROUND. A line on the console ends the load. Any failed request or wrong byte is @@FAIL.
. /lib/guest.sh

wait_for_disks 1 || { mark "FAIL no disk"; exit 1; }
dev=$(disks)
region_kib=2048
regions=4

fail() {
	mark "FAIL worker $worker round $round: $*"
	dmesg | tail -n 20
	exit 1
}

# Writes region $1 and remembers its sum. The page cache turns it into many requests, all under way at once.
write_region() {
	at=$(((worker * regions + $1) * region_kib / 64))
	dd if=/dev/urandom of="/tmp/data$worker" bs=65536 count=$((region_kib / 64)) 2> /dev/null
	sha256sum < "/tmp/data$worker" > "/tmp/sum$worker.$1"
	dd if="/tmp/data$worker" of="/dev/$dev" bs=65536 seek=$at conv=notrunc,fsync 2> /dev/null || fail "write of region $1"
}

check_region() {
	[ -e "/tmp/sum$worker.$1" ] || return 0
	at=$(((worker * regions + $1) * region_kib / 64))
	dd if="/dev/$dev" of="/tmp/read$worker" bs=65536 skip=$at count=$((region_kib / 64)) iflag=direct 2> /dev/null ||
		fail "read of region $1"
	[ "$(sha256sum < "/tmp/read$worker")" = "$(cat "/tmp/sum$worker.$1")" ] || fail "region $1 differs"
}

run_worker() {
	round=0
	while [ ! -e /tmp/stop ]; do
		round=$((round + 1))
		write_region $((round % regions))
		for region in 0 1 2 3; do
			check_region $region
		done
		mark "ROUND worker=$worker round=$round"
	done
}

worker=0
run_worker &
first=$!
(worker=1 && run_worker) &
second=$!
mark "LOAD dev=$dev"
read -r _
touch /tmp/stop
wait $first || exit 1
wait $second || exit 1
# What the block layer says when a request fails or the device is reset.
if dmesg | grep -E 'I/O error|critical .* error|timed out|rejecting I/O|Buffer I/O'; then
	mark "FAIL the kernel saw errors"
	exit 1
fi
mark "LOAD-OK"
