"""Guests without volumes of Pollux, as a Nova with the package makes them, migrate live between two libvirts: they have
nothing of the service, which runs on one host alone."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from guest import initramfs, kernels
from guest.libvirtd import Libvirtd
from guest.timing import wait_until

from python.services import Service, new_id

pytest.importorskip("nova")

import nova.conf
from pollux.brick import clients
from pollux.nova import hook, options

from python.test_nova import NovaDriver, guest_config

CONF = nova.conf.CONF
_BOOT_S = 120
_TICK_S = 60
_SCRIPT = """. /lib/guest.sh
n=0
while :; do
	n=$((n + 1))
	mark "TICK $n"
	sleep 0.2
done
"""

pytestmark = [
    pytest.mark.skipif(os.environ.get("POLLUX_TEST_LEVEL") != "full", reason="only in the full run"),
    pytest.mark.skipif(os.geteuid() != 0, reason="libvirt's namespaces need root"),
]


@pytest.fixture
def _installed(service: Service) -> Iterator[None]:
    options.register(CONF)
    CONF.set_override("virt_type", "qemu", group="libvirt")
    settings = service.settings("compute")
    assert hook.enable()
    clients.configure({"address": settings.address, "ca": settings.ca, "certificate": settings.certificate,
                       "key": settings.key})
    yield
    clients.configure({})
    CONF.reset()


def as_nova_makes_it(folder: Path) -> ElementTree.Element:
    """A guest's description, and with it what lets the test see that the guest lives: a kernel and a console."""
    instance = SimpleNamespace(uuid=new_id(), host=CONF.host, system_metadata={},
                               flavor=SimpleNamespace(vcpus=1, extra_specs={}))
    text = guest_config(NovaDriver(), instance)
    # What QEMU would wait for at the destination, where no service has made it.
    assert "commandline" not in text
    root = ElementTree.fromstring(text)
    kernel = kernels.cloud()
    (folder / "initramfs").write_bytes(initramfs.with_script(kernel, _SCRIPT, {}))
    system = root.find("os")
    assert system is not None
    for name, text in (("kernel", str(kernel.image)), ("initrd", str(folder / "initramfs")),
                       ("cmdline", "console=ttyS0 quiet")):
        ElementTree.SubElement(system, name).text = text
    for size in root.iterfind("memory"):
        size.text = str(256 << 10)
    # It has no device at all so far.
    assert root.find("devices") is None
    devices = ElementTree.SubElement(root, "devices")
    serial = ElementTree.SubElement(devices, "serial", type="file")
    ElementTree.SubElement(serial, "source", path=str(folder / "console"), append="on")
    return root


def ticks(folder: Path) -> int:
    found = re.findall(r"@@TICK (\d+)", (folder / "console").read_text(errors="replace"))
    return int(found[-1]) if found else 0


def await_tick(folder: Path, number: int, seconds: float) -> None:
    wait_until(lambda: ticks(folder) >= number, seconds, f"tick {number} of the guest")


@pytest.mark.usefixtures("_installed")
def test_a_guest_without_our_volumes_migrates_live(tmp_path: Path) -> None:
    root = as_nova_makes_it(tmp_path)
    (tmp_path / "domain.xml").write_bytes(ElementTree.tostring(root))
    (tmp_path / "console").touch()
    guest = root.findtext("uuid")
    with Libvirtd() as here, Libvirtd() as there:
        here.virsh("create", str(tmp_path / "domain.xml"))
        await_tick(tmp_path, 3, _BOOT_S)
        here.virsh("migrate", "--live", str(guest), there.uri, "--migrateuri", f"unix://{there.scratch}/migration")
        assert here.virsh("list", "--uuid") == ""
        assert there.virsh("list", "--uuid") == guest
        assert there.virsh("domstate", str(guest)) == "running"
        # It has not started anew.
        await_tick(tmp_path, ticks(tmp_path) + 3, _TICK_S)
        assert (tmp_path / "console").read_text(errors="replace").count("@@READY") == 1
