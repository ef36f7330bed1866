"""NVMe under the kernel of Debian 12, as QEMU emulates it: this machine's own kernel may ask for less of a request."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from pollux_testing import MIB, POOL, Polluxd

from guest.qemu import QemuDirect

_BLOCK_BYTES = (512, 4096)

# Sets POLLUX_TEST_DEVICE to the device whose blocks are of $bytes.
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
        COMMAND || exit 1
    done
"""
_UNIT_TEST = "bdev_uring_test --run_test=memory_of_any_shape_is_written_and_read"
# A service with a pool on the device, and a front end whose requests are of pieces that end within blocks.
_SERVE = """
serve() {
    ln -sfn "$POLLUX_TEST_DEVICE" "$FOLDER/$POOL.img"
    "$POLLUXD" --config "$FOLDER/polluxd.toml" &
    until [ -S "$SOCKET" ]; do
        kill -0 $! || return 1
        sleep 0.1
    done
    for piece in 4080 3584 512; do
        pollux-initiator --socket "$SOCKET" --blk --verify --io 4096 --piece $piece --depth 8 --requests 300 || return 1
    done
    kill $!
    wait $!
}
ip link set lo up
mkdir -p "$FOLDER"
tar -x -f /dev/vda -C "$FOLDER" || exit 1
"""


def _nvme_devices(folder: Path, source: Path | None = None) -> list[str]:
    """QEMU's options for a device of each block size; what they hold is that of `source`, or nothing."""
    devices: list[str] = []
    for size in _BLOCK_BYTES:
        image = folder / f"nvme-{size}"
        if source is not None:
            shutil.copyfile(source, image)
        else:
            with image.open("wb") as made:
                made.truncate(16 * MIB)
        devices += ["-drive", f"if=none,id=nvme{size},format=raw,file={image}"]
        devices += [
            "-device",
            f"nvme,serial=n{size},drive=nvme{size},logical_block_size={size},physical_block_size={size}",
        ]
    return devices


def _variables(**more: str) -> dict[str, str]:
    return {"BLOCK_BYTES": " ".join(str(size) for size in _BLOCK_BYTES), **more}


def test_an_nvme_device_takes_what_guests_make_of_their_memory(tmp_path: Path) -> None:
    devices = _nvme_devices(tmp_path)
    program = str(Path(os.environ["POLLUX_BUILD"]) / "service" / "bdev" / "bdev_uring_test")
    with QemuDirect(
        _SCRIPT.replace("COMMAND", _UNIT_TEST),
        name="nvme",
        variables=_variables(),
        programs=[program],
        modules=["nvme"],
        devices=devices,
    ) as guest:
        guest.wait_script()
        kernel = guest.wait(r"@@READY .* kernel=(\d+\.\d+)")[1]
        assert kernel == "6.1"
        assert len(guest.console.find_all(r"@@NVME")) == len(_BLOCK_BYTES)


@pytest.mark.full
def test_a_service_with_its_pool_on_an_nvme_device_serves_pieces_of_blocks(tmp_path: Path) -> None:
    build = Path(os.environ["POLLUX_BUILD"])
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", str(tmp_path)))
    # Paths of UNIX sockets are short; those of pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="pollux-") as folder:
        # The pool is made here, in a file. In the guest the service finds a device by the file's name.
        service = Polluxd(Path(folder), logs / "polluxd-nvme.log", pool_mb=64, reactors=1)
        with closing(service):
            service.start()
            service.create_pool()
            socket = service.attach(service.create_volume(16 * MIB).volume_id, "blk").socket_path
        state = tmp_path / "state.tar"
        with tarfile.open(state, "w") as archive:
            for name in ("polluxd.toml", "certs", "state"):
                archive.add(Path(folder) / name, name)
        devices = _nvme_devices(tmp_path, Path(folder) / f"{POOL}.img")
        with QemuDirect(
            _SERVE + _SCRIPT.replace("COMMAND", "serve"),
            name="nvme-service",
            memory_mb=1024,
            variables=_variables(FOLDER=folder, SOCKET=socket, POOL=POOL, POLLUXD=service.binary.name),
            programs=[str(service.binary), str(build / "tests" / "initiator" / "pollux-initiator")],
            modules=["nvme"],
            devices=[*devices, "-drive", f"if=virtio,format=raw,file={state}"],
        ) as guest:
            guest.wait_script(240)
            assert len(guest.console.find_all(r"@@NVME")) == len(_BLOCK_BYTES)
