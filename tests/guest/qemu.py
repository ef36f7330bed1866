"""QEMU guests, emulated (TCG): hot-plug, several CPUs and queues, reconnecting, booting by firmware.

Needs QEMU 8.2 or later: before it, vhost-user-scsi cannot reconnect.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from guest import initramfs, kernels
from guest.machine import Machine, VhostUserDisk
from guest.qmp import Qmp

_OVMF = Path("/usr/share/OVMF")
# PCI slots for devices that are plugged while the guest runs; pcie.0 itself takes none then.
_HOTPLUG_PORTS = 4


@cache
def version() -> tuple[int, int]:
    """Major and minor version of the QEMU that guests run in."""
    told = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", told)
    if not found:
        raise RuntimeError(f"qemu-system-x86_64 --version said {told!r}")
    return int(found[1]), int(found[2])


class Qemu(Machine):
    """A QEMU process. Use QemuDirect or QemuBoot."""

    # How TCG runs the guest's cores: "multi" or "single" threads.
    _tcg_threads = "multi"

    def __init__(self, name: str, disks: Sequence[VhostUserDisk], memory_mb: int, cpus: int) -> None:
        super().__init__(name)
        self._disks = disks
        self._memory_mb = memory_mb
        self._cpus = cpus
        self._qmp: Qmp | None = None

    @property
    def qmp(self) -> Qmp:
        """The guest's monitor; connected at first use."""
        if self._qmp is None:
            self._qmp = Qmp(self.scratch / "qmp")
        return self._qmp

    def plug(self, disk: VhostUserDisk, device_id: str, port: int) -> None:
        """Hot-plug `disk` as `device_id` into hot-plug port `port`."""
        backend: dict[str, object] = {
            "type": "socket",
            "data": {
                "addr": {"type": "unix", "data": {"path": str(disk.socket)}},
                "server": False,
                **_reconnect_option(disk),
            },
        }
        self.qmp.command("chardev-add", id=f"{device_id}-socket", backend=backend)
        device = _device_options(disk, f"{device_id}-socket")
        self.qmp.command("device_add", id=device_id, bus=f"port{port}", **device)

    def unplug(self, device_id: str, seconds: float = 30) -> None:
        """Ask the guest to release `device_id` and wait until it has."""
        self.qmp.command("device_del", id=device_id)
        self.qmp.wait_event("DEVICE_DELETED", seconds, device=device_id)
        self.qmp.command("chardev-remove", id=f"{device_id}-socket")

    def power_button(self) -> None:
        self.qmp.command("system_powerdown")

    def close(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        super().close()

    @abstractmethod
    def _what_to_boot(self) -> list[str]:
        """The options that say what the guest boots."""

    def _launch(self) -> None:
        command = [
            "qemu-system-x86_64",
            *("-accel", f"tcg,thread={self._tcg_threads}"),
            *("-machine", "q35"),
            *("-cpu", "max"),
            *("-smp", str(self._cpus)),
            *("-m", f"{self._memory_mb}M"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio"),
            *("-qmp", f"unix:{self.scratch / 'qmp'},server=on,wait=off"),
            # The back end maps the guest's memory, so it must be a file that can be shared.
            *("-object", f"memory-backend-memfd,id=mem,size={self._memory_mb}M,share=on"),
            *("-numa", "node,memdev=mem"),
        ]
        for port in range(_HOTPLUG_PORTS):
            command += ["-device", f"pcie-root-port,id=port{port},chassis={port + 1}"]
        for number, disk in enumerate(self._disks):
            reconnect = "".join(f",{k}={v}" for k, v in _reconnect_option(disk).items())
            device = _device_options(disk, f"disk{number}-socket")
            driver = device.pop("driver")
            rendered = "".join(f",{k}={v}" for k, v in device.items())
            command += ["-chardev", f"socket,id=disk{number}-socket,path={disk.socket}{reconnect}"]
            command += ["-device", f"{driver},id=disk{number}{rendered}"]
        self._spawn([*command, *self._what_to_boot()])


class QemuDirect(Qemu):
    """Runs `script` in a guest whose kernel QEMU loads itself; the script's world is that of Uml.

    `programs` of this machine are in the guest's /bin; `modules` are loaded and `devices`, options of QEMU, are there
    beside what every guest has.
    """

    def __init__(
        self,
        script: str,
        disks: Sequence[VhostUserDisk] = (),
        *,
        name: str = "qemu",
        memory_mb: int = 384,
        cpus: int = 2,
        variables: Mapping[str, str] | None = None,
        programs: Sequence[str] = (),
        modules: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> None:
        super().__init__(name, disks, memory_mb, cpus)
        self._script = script
        self._variables = variables or {}
        self._programs = programs
        self._modules = modules
        self._devices = devices

    def _what_to_boot(self) -> list[str]:
        kernel = kernels.cloud(*self._modules)
        image = self.scratch / "initramfs"
        image.write_bytes(initramfs.with_script(kernel, self._script, self._variables, self._programs))
        append = "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable"
        return ["-kernel", str(kernel.image), "-initrd", str(image), "-append", append, *self._devices]


class QemuBoot(Qemu):
    """Boots from a disk by firmware: ``bios`` is SeaBIOS, ``uefi`` is OVMF."""

    # While a kernel moves what the firmware mapped, QEMU 10 may abort in iotlb_to_section() with more than one.
    _tcg_threads = "single"

    def __init__(
        self,
        disks: Sequence[VhostUserDisk],
        *,
        firmware: str = "bios",
        name: str = "boot",
        memory_mb: int = 384,
        cpus: int = 2,
    ) -> None:
        if not any(disk.boot for disk in disks):
            raise ValueError("no disk to boot from")
        if firmware not in ("bios", "uefi"):
            raise ValueError(f"firmware is bios or uefi, not {firmware!r}")
        super().__init__(name, disks, memory_mb, cpus)
        self._firmware = firmware

    def _what_to_boot(self) -> list[str]:
        if self._firmware == "bios":
            return []
        # The firmware writes its variables: each guest gets a copy.
        variables = self.scratch / "efi-vars"
        shutil.copyfile(_OVMF / "OVMF_VARS_4M.fd", variables)
        code = _OVMF / "OVMF_CODE_4M.fd"
        return [
            "-drive",
            f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
            "-drive",
            f"if=pflash,format=raw,unit=1,file={variables}",
        ]


def _reconnect_option(disk: VhostUserDisk) -> dict[str, int]:
    if disk.reconnect_ms == 0:
        return {}
    # QEMU 9.2 replaced the option in seconds by one in milliseconds.
    if version() >= (9, 2):
        return {"reconnect-ms": disk.reconnect_ms}
    return {"reconnect": max(1, disk.reconnect_ms // 1000)}


def _device_options(disk: VhostUserDisk, chardev: str) -> dict[str, str | int | bool]:
    """The device for `disk`, as QMP's device_add takes it."""
    options: dict[str, str | int | bool] = {
        "driver": f"vhost-user-{disk.transport}-pci",
        "chardev": chardev,
    }
    if disk.transport == "scsi":
        options["num_queues"] = disk.queues
        if disk.boot:
            options["boot_tpgt"] = disk.boot_target
    else:
        options["num-queues"] = disk.queues
        # OVMF drives a transitional device on the root bus as a legacy one, which it is not.
        options["disable-legacy"] = "on"
    if disk.packed:
        options["packed"] = "on"
    if disk.boot:
        options["bootindex"] = 1
    return options
