"""How Pollux gets into an unmodified nova-compute: as an os_vif plug-in.

nova-compute loads every plug-in of the group os_vif before its compute driver. This one plugs no interfaces. While it
loads, it makes the volume driver and the connector known and wraps what pollux.nova.wraps lists. It never raises: when
Nova is not as expected, nothing is changed, an error says so in the log, and attaching a volume of Pollux fails with
"driver type pollux not found".
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any, Self

from os_vif import plugin as os_vif_plugin
from os_vif.objects import host_info
from oslo_log import log as logging

from pollux import __version__, connection, errors

LOG = logging.getLogger(__name__)
VOLUME_DRIVER = 'pollux.nova.volume.LibvirtPolluxVolumeDriver'


def enable() -> bool:
    """Hook Pollux into this process; whether it is. Never raises. May be called again."""
    try:
        _enable()
    except Exception as error:
        LOG.error('Pollux %s is switched OFF in this nova-compute: %s. Guests cannot use its volumes. Nova is %s; '
                  'install the release of Pollux that is made for it', __version__, error, _version('nova'),
                  exc_info=not isinstance(error, errors.PolluxError))
        return False
    LOG.info('Pollux %s is switched on: volume driver and wraps for Nova %s, os-brick %s', __version__,
             _version('nova'), _version('os-brick'))
    return True


def _enable() -> None:
    import nova.conf
    from nova.virt.libvirt import driver

    from pollux import brick
    from pollux import options as client_options
    from pollux.brick import clients
    from pollux.nova import options, wraps

    if not isinstance(getattr(driver, 'VOLUME_DRIVERS', None), dict):
        raise errors.Unsupported('nova.virt.libvirt.driver has no VOLUME_DRIVERS')
    wraps.check(driver.LibvirtDriver)
    options.register(nova.conf.CONF)
    brick.register()
    clients.configure(client_options.given(nova.conf.CONF.pollux))
    wraps.install(driver.LibvirtDriver)
    # Last: with this, Nova takes volumes of ours.
    driver.VOLUME_DRIVERS.setdefault(connection.PROTOCOL, VOLUME_DRIVER)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'unknown'


class PolluxPlugin(os_vif_plugin.PluginBase):
    """Plugs nothing."""

    @classmethod
    def load(cls, plugin_name: str) -> Self:
        # Others use os_vif too; only nova-compute has guests.
        if 'nova.cmd.compute' in sys.modules or 'pollux.nova.compute' in sys.modules:
            enable()
        return super().load(plugin_name)

    def describe(self) -> host_info.HostPluginInfo:
        return host_info.HostPluginInfo(plugin_name='pollux', vif_info=[])

    def plug(self, vif: Any, instance_info: Any) -> None:
        raise NotImplementedError('Pollux plugs no interfaces')

    def unplug(self, vif: Any, instance_info: Any) -> None:
        raise NotImplementedError('Pollux plugs no interfaces')
