"""User-mode Linux guests: a real Linux driver stack over vhost-user without QEMU or KVM.

They boot in about a second, have one CPU, and give up a device whose back end goes away.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from guest import initramfs, kernels
from guest.machine import Machine, VhostUserDisk

# Device ids of VIRTIO 1.2 5: how virtio_uml is told what a socket serves.
_DEVICE_IDS = {"blk": 2, "scsi": 8}


class Uml(Machine):
    """Runs `script` (text of a shell script) in a guest with `disks`.

    ``/lib/guest.sh`` is sourced by the script for its helpers. `variables` are set in it. `programs` of
    this machine can be run in the guest.
    """

    def __init__(
        self,
        script: str,
        disks: Sequence[VhostUserDisk] = (),
        *,
        name: str = "uml",
        memory_mb: int = 256,
        variables: Mapping[str, str] | None = None,
        programs: Sequence[str] = (),
    ) -> None:
        super().__init__(name)
        self._script = script
        self._disks = disks
        self._memory_mb = memory_mb
        self._variables = variables or {}
        self._programs = programs

    def _launch(self) -> None:
        kernel = kernels.uml()
        image = self.scratch / "initramfs"
        image.write_bytes(initramfs.with_script(kernel, self._script, self._variables, self._programs))
        command = [
            str(kernel.image),
            f"mem={self._memory_mb}M",
            f"initrd={image}",
            f"uml_dir={self.scratch}/",
            "umid=guest",
            # The console is this process's standard input and output.
            "con=null",
            "con0=fd:0,fd:1",
            "con1=null",
            "root=/dev/ram0",
            "panic=-1",
            "quiet",
        ]
        for disk in self._disks:
            command.append(f"virtio_uml.device={disk.socket}:{_DEVICE_IDS[disk.transport]}")
        # The guest's memory is a file in TMPDIR that is shared with the back end. One that outgrows its
        # file system kills the guest.
        shared = Path("/dev/shm")
        roomy = shared.is_dir() and shutil.disk_usage(shared).free > 2 * self._memory_mb << 20
        self._spawn(command, {"TMPDIR": str(shared if roomy else self.scratch)})
