# Says "@@DISKS serial=size ..." in the order of serials whenever that has changed; sizes in bytes. Never ends.
. /lib/guest.sh
before=none
while :; do
	now=$(for dev in $(disks); do echo "$(disk_serial "$dev")=$(disk_size "$dev")"; done | sort | tr '\n' ' ')
	[ "$now" = "$before" ] || mark "DISKS $now"
	before=$now
	sleep 0.2
done
