"""NVMe under the kernel of Debian 12, as QEMU emulates it: this machine's own kernel may ask for less of a request."""

from __future__ import annotations

import os
from pathlib import Path

from pollux_testing import MIB

from guest.qemu import QemuDirect

_BLOCK_BYTES = (512, 4096)

_SCRIPT = """
    . /lib/guest.sh
    for bytes in $BLOCK_BYTES; do
        tries=0
        until dev=$(grep -lx "$bytes" /sys/block/nvme?n1/queue/logical_block_size); do
            tries=$((tries + 1))
            [ "$tries" -gt 300 ] && exit 1
            sleep 0.1
        done
        dev=${dev#/sys/block/}
        export POLLUX_TEST_DEVICE=/dev/${dev%%/*}
        mark "NVME $POLLUX_TEST_DEVICE of $bytes"
        bdev_uring_test --run_test=memory_of_any_shape_is_written_and_read || exit 1
    done
"""


def test_an_nvme_device_takes_what_guests_make_of_their_memory(tmp_path: Path) -> None:
    devices: list[str] = []
    for size in _BLOCK_BYTES:
        image = tmp_path / f"nvme-{size}"
        with image.open("wb") as made:
            made.truncate(16 * MIB)
        devices += ["-drive", f"if=none,id=nvme{size},format=raw,file={image}"]
        devices += [
            "-device",
            f"nvme,serial=n{size},drive=nvme{size},logical_block_size={size},physical_block_size={size}",
        ]
    program = str(Path(os.environ["POLLUX_BUILD"]) / "service" / "bdev" / "bdev_uring_test")
    variables = {"BLOCK_BYTES": " ".join(str(size) for size in _BLOCK_BYTES)}
    with QemuDirect(
        _SCRIPT, name="nvme", variables=variables, programs=[program], modules=["nvme"], devices=devices
    ) as guest:
        guest.wait_script()
        kernel = guest.wait(r"@@READY .* kernel=(\d+\.\d+)")[1]
        assert kernel == "6.1"
        assert len(guest.console.find_all(r"@@NVME")) == len(_BLOCK_BYTES)
