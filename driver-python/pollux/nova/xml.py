"""Pieces of domain XML that Nova's own classes cannot make, and questions about the XML of a running guest.

libvirt knows vhost-user-blk as <disk type='vhostuser'>. It knows nothing of vhost-user-scsi: the controller goes
through <qemu:commandline>, and the volumes on it are not in the XML at all.
"""

from __future__ import annotations

import dataclasses
import re

from lxml import etree

QEMU_NAMESPACE = 'http://libvirt.org/schemas/domain/qemu/1.0'
#: Name of the controller's character device, by which it is found again in a running guest's XML.
CONTROLLER = 'pollux-scsi'
_RECONNECT_MS = 1000

# QEMU's version as libvirt counts: major * 1,000,000 + minor * 1,000 + release.
_SCSI_RECONNECTS = 8_002_000
_RECONNECT_IN_MS = 9_002_000


@dataclasses.dataclass(frozen=True)
class Controller:
    """The scsi controller of a guest."""

    socket: str
    queues: int
    bus: str
    slot: int
    #: The target that the guest boots from; None when it boots from something else.
    boot_target: int | None = None


def can_reconnect(qemu_version: int) -> bool:
    """Whether a scsi guest outlives a restart of the service. Before 8.2, QEMU ends when it is told to reconnect."""
    return qemu_version >= _SCSI_RECONNECTS


def controller_commandline(controller: Controller, qemu_version: int) -> etree._Element:
    """<qemu:commandline> with the controller."""
    chardev = f'socket,id={CONTROLLER},path={_escape(controller.socket)}'
    if qemu_version >= _RECONNECT_IN_MS:
        chardev += f',reconnect-ms={_RECONNECT_MS}'
    elif can_reconnect(qemu_version):
        chardev += f',reconnect={_RECONNECT_MS // 1000}'
    device = (f'vhost-user-scsi-pci,id={CONTROLLER}-0,chardev={CONTROLLER},num_queues={controller.queues},'
              f'bus={controller.bus},addr={controller.slot:#x}')
    if controller.boot_target is not None:
        # libvirt numbers its own boot devices from 1.
        device += f',bootindex=0,boot_tpgt={controller.boot_target}'
    root = etree.Element(f'{{{QEMU_NAMESPACE}}}commandline', nsmap={'qemu': QEMU_NAMESPACE})
    for value in ('-chardev', chardev, '-device', device):
        etree.SubElement(root, f'{{{QEMU_NAMESPACE}}}arg', value=value)
    return root


def vhostuser_disk(*, socket: str, queues: int, target_dev: str, alias: str | None) -> etree._Element:
    """<disk> of a volume with transport blk. serial, cache, discard, readonly and iotune are refused by libvirt."""
    disk = etree.Element('disk', type='vhostuser', device='disk')
    etree.SubElement(disk, 'driver', name='qemu', type='raw', queues=str(queues))
    source = etree.SubElement(disk, 'source', type='unix', path=socket)
    etree.SubElement(source, 'reconnect', enabled='yes', timeout=str(_RECONNECT_MS // 1000))
    etree.SubElement(disk, 'target', dev=target_dev, bus='virtio')
    if alias:
        etree.SubElement(disk, 'alias', name=alias)
    return disk


def root_bus(machine_type: str | None) -> str:
    """The name that QEMU gives to the PCI root bus of a machine type."""
    kind = machine_type or ''
    return 'pcie.0' if 'q35' in kind or kind.startswith('virt') else 'pci.0'


def has_controller(domain_xml: str) -> bool:
    """Whether a guest was started with a scsi controller of the service."""
    return controller_queues(domain_xml) is not None


def controller_queues(domain_xml: str) -> int | None:
    """The number of queues of the scsi controller that a guest was started with; None without one."""
    arguments = etree.fromstring(domain_xml).iterfind(f'./{{{QEMU_NAMESPACE}}}commandline/{{{QEMU_NAMESPACE}}}arg')
    for argument in arguments:
        found = re.search(rf',chardev={CONTROLLER},num_queues=(\d+),', argument.get('value') or '')
        if found:
            return int(found[1])
    return None


def has_shared_memory(domain_xml: str) -> bool:
    """Whether a guest's memory can be mapped by the service."""
    domain = etree.fromstring(domain_xml)
    if domain.find("./memoryBacking/access[@mode='shared']") is not None:
        return True
    cells = domain.findall('./cpu/numa/cell')
    return bool(cells) and all(cell.get('memAccess') == 'shared' for cell in cells)


def _escape(value: str) -> str:
    # QEMU splits options at commas; a doubled one stands for itself.
    return value.replace(',', ',,')
