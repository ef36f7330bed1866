"""Processes of Cinder that have cinder.conf and no driver, such as cinder-backup."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from python.services import Service

pytest.importorskip("cinder")

from oslo_config import cfg
from pollux import errors
from pollux import options as client_options
from pollux.brick import clients
from pollux.brick.connector import PolluxConnector

from python.volumes.helpers import section_of


def test_they_find_the_service_that_holds_a_volume_among_the_back_ends(
    service: Service, start_service: Callable[..., Service]
) -> None:
    # By which such a process is known; importing it takes objects that are registered.
    import cinder.service
    from cinder.volume import configuration, manager

    assert cinder.service
    other = start_service("second", host_id="second-host")
    clients.configure({})
    with contextlib.ExitStack() as undo:
        cfg.CONF.set_override("enabled_backends", ["lvm-1", "pollux-1", "pollux-2"])
        undo.callback(cfg.CONF.clear_override, "enabled_backends")
        for name, one in (("pollux-1", service), ("pollux-2", other)):
            section = configuration.Configuration(manager.volume_backend_opts, config_group=name)
            section.append_config_values(client_options.client_opts)
            for option, value in {"volume_driver": clients.DRIVER, **section_of(one)}.items():
                cfg.CONF.set_override(option, value, group=name)
                undo.callback(cfg.CONF.clear_override, option, group=name)
        assert PolluxConnector.get_connector_properties("sudo") == {"pollux_host": "cinder-1"}
        for home, one in (("test-host", service), ("second-host", other)):
            assert clients.client_of(home).settings.address == one.address
        with pytest.raises(errors.NotFound, match="elsewhere"):
            clients.client_of("elsewhere")
