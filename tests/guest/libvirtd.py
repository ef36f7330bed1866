"""A libvirt of the test's own, without systemd and beside any libvirt of the machine.

It runs in mount and PID namespaces of its own: its folders are private, and when its first process dies the
kernel kills every guest that it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import uuid
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from guest import initramfs
from guest.machine import Machine, VhostUserDisk, log_dir
from guest.timing import wait_until

_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
"""
# One for the boot disk, the others for disks that are plugged while the guest runs.
_PCIE_PORTS = 5


class LibvirtError(Exception):
    """libvirt refused something; the text is virsh's."""


class Libvirtd:
    """A context manager: inside, `virsh` works; leaving it ends libvirtd and its guests. Several are several hosts."""

    def __init__(self) -> None:
        # A short path: UNIX sockets are made below it.
        self._folder = tempfile.TemporaryDirectory(prefix="pollux-lv-")
        self.scratch = Path(self._folder.name)
        for part in ("etc", "run", "var/lib", "var/log", "var/cache"):
            (self.scratch / part).mkdir(parents=True)
        (self.scratch / "etc/qemu.conf").write_text(_QEMU_CONF)
        (self.scratch / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{self.scratch}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{uuid.uuid4()}"\n'
        )
        self.uri = f"qemu+unix:///system?socket={self.scratch}/libvirt-sock"
        self.log = log_dir() / f"libvirtd-{self.scratch.name}.log"
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "TERM"),
                    *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"),
                    *(str(initramfs.FILES / "libvirtd-init"), str(self.scratch)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, 30, f"libvirtd (log {self.log})")
        except TimeoutError:
            self.close()
            raise

    def virsh(self, *arguments: str) -> str:
        """Run a virsh command; what it printed. Raises LibvirtError when it fails."""
        done = self._virsh(*arguments)
        if done.returncode != 0:
            raise LibvirtError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def close(self) -> None:
        # unshare passes its own death on to the first process of the PID namespace.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
        self._folder.cleanup()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise LibvirtError(f"libvirtd ended: {self.log.read_text()}")
        return self._virsh("version").returncode == 0

    def _virsh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", "-c", self.uri, "-q", *arguments], capture_output=True, text=True, check=False, timeout=120
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Domain(Machine):
    """A transient libvirt domain that boots from `disk`, a vhostuser disk; others may be attached to it."""

    def __init__(self, libvirtd: Libvirtd, disk: VhostUserDisk, *, name: str = "domain", memory_mb: int = 384) -> None:
        super().__init__(name)
        self._libvirtd = libvirtd
        self._disk = disk
        self._memory_mb = memory_mb
        self.id = str(uuid.uuid4())

    def _launch(self) -> None:
        console = self.scratch / "console"
        console.touch()
        # The process of this machine is the one that follows its console.
        self._spawn(["tail", "-n", "+1", "-F", str(console)])
        self._virsh_xml("create", self._describe(console))

    def attach(self, disk: VhostUserDisk, target: str) -> None:
        """Hot-plug `disk`; `target` is libvirt's name for it, such as ``vdb``."""
        self._virsh_xml("attach-device", _disk_element(disk, target), self.id, "--live")

    def detach(self, disk: VhostUserDisk, target: str) -> None:
        """Ask the guest to release a disk; returns before it has."""
        self._virsh_xml("detach-device", _disk_element(disk, target), self.id, "--live")

    def targets(self) -> list[str]:
        """libvirt's names of the disks that the domain has now."""
        tree = ElementTree.fromstring(self._libvirtd.virsh("dumpxml", self.id))
        return [found.get("dev", "") for found in tree.iterfind("./devices/disk/target")]

    def shutdown(self, seconds: float = 30) -> None:
        """Press the power button and wait until the domain is gone."""
        self._libvirtd.virsh("shutdown", self.id, "--mode", "acpi")
        wait_until(lambda: not self._alive(), seconds, f"end of {self.name}")

    def close(self) -> None:
        if self._alive():
            self._libvirtd.virsh("destroy", self.id)
        super().close()

    def _alive(self) -> bool:
        return self.id in self._libvirtd.virsh("list", "--uuid").split()

    def _virsh_xml(self, verb: str, element: ElementTree.Element, *arguments: str) -> None:
        """A virsh command that takes a description in a file: as its only argument, or after the domain."""
        file = self.scratch / f"{verb}.xml"
        file.write_bytes(ElementTree.tostring(element))
        domain, options = arguments[:1], arguments[1:]
        self._libvirtd.virsh(verb, *domain, str(file), *options)

    def _describe(self, console: Path) -> ElementTree.Element:
        root = ElementTree.fromstring(
            f"""
            <domain type="qemu">
              <name>{self.name}-{self.id[:8]}</name>
              <uuid>{self.id}</uuid>
              <memory unit="MiB">{self._memory_mb}</memory>
              <memoryBacking><source type="memfd"/><access mode="shared"/></memoryBacking>
              <vcpu>2</vcpu>
              <os><type arch="x86_64" machine="q35">hvm</type></os>
              <features><acpi/><apic/></features>
              <cpu mode="maximum"/>
              <on_reboot>destroy</on_reboot>
              <devices>
                <emulator>/usr/bin/qemu-system-x86_64</emulator>
                <serial type="file"><source path="{console}" append="on"/></serial>
                <memballoon model="none"/>
                <controller type="pci" index="0" model="pcie-root"/>
              </devices>
            </domain>
            """
        )
        devices = root.find("devices")
        assert devices is not None
        boot = _disk_element(self._disk, "vda")
        ElementTree.SubElement(boot, "boot", order="1")
        devices.append(boot)
        for index in range(1, 1 + _PCIE_PORTS):
            ElementTree.SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
        return root


def _disk_element(disk: VhostUserDisk, target: str) -> ElementTree.Element:
    if disk.transport != "blk":
        raise ValueError("libvirt knows vhostuser disks as virtio-blk only")
    element = ElementTree.Element("disk", type="vhostuser", device="disk")
    ElementTree.SubElement(element, "driver", name="qemu", type="raw", queues=str(disk.queues))
    source = ElementTree.SubElement(element, "source", type="unix", path=str(disk.socket))
    if disk.reconnect_ms:
        seconds = str(max(1, disk.reconnect_ms // 1000))
        ElementTree.SubElement(source, "reconnect", enabled="yes", timeout=seconds)
    ElementTree.SubElement(element, "target", dev=target, bus="virtio")
    return element
