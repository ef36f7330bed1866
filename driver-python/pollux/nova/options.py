"""Section [pollux] of nova.conf."""

from __future__ import annotations

from typing import Any

from oslo_config import cfg

from pollux.options import client_opts

GROUP = cfg.OptGroup('pollux', title='Volumes of the Pollux storage service')

compute_opts = [
    cfg.StrOpt('prepared_guests', default='with_volumes', choices=[
                   ('with_volumes', 'those that start with a volume of Pollux'), ('all', 'every guest')],
               help='Which guests get when they start what a volume of Pollux needs: memory that the service can map, '
                    'and a scsi controller of the service. To others no volume can be attached while they run. A guest '
                    'with the controller migrates live only to hosts that have Pollux. For single guests, the extra '
                    'spec pollux:prepared of the flavor (true or false) goes before the property pollux_prepared of '
                    'the image, and that before this option. A guest that starts with a volume of Pollux is always '
                    'prepared.'),
    cfg.IntOpt('scsi_pci_slot', default=0x1c, min=1, max=0x1f,
               help="The PCI slot of that controller on the guest's root bus. libvirt does not know of the device, so "
                    'this must be a slot that it gives to nothing else: on q35 that rules out 0x1a, 0x1b and 0x1d to '
                    '0x1f, and low numbers everywhere.'),
    cfg.IntOpt('max_queues', default=4, min=1, max=128,
               help='Request queues of a controller or blk disk: as many as the guest has virtual CPUs, and no more '
                    "than this. The service's own limit is max_queues in polluxd.toml."),
]


def register(conf: Any) -> None:
    """May be called again."""
    conf.register_group(GROUP)
    conf.register_opts(client_opts + compute_opts, group=GROUP)


def list_opts() -> list[tuple[Any, list[Any]]]:
    return [(GROUP, client_opts + compute_opts)]
