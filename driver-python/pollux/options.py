"""The oslo.config options by which OpenStack's services are told how to reach polluxd; the same in Cinder and Nova."""

from __future__ import annotations

from typing import Any

from oslo_config import cfg

client_opts = [
    cfg.StrOpt('pollux_address',
               help='HOST:PORT of the polluxd. Cinder: of the service whose pools it offers. Nova: of the service on '
                    'this host. This option, those of the certificate and pollux_server_name have as their defaults '
                    'what the environment (POLLUX_ADDRESS, ...) or /etc/pollux/client.toml says.'),
    cfg.StrOpt('pollux_ca',
               help="PEM file of the authority that signed the service's certificate."),
    cfg.StrOpt('pollux_certificate',
               help='PEM file of the certificate by which the service knows us. Its organisational unit must be '
                    "'cinder' for Cinder and 'compute' for Nova; for Nova, its common name is the host that Cinder "
                    'authorises.'),
    cfg.StrOpt('pollux_key',
               help='PEM file of its key.'),
    cfg.StrOpt('pollux_server_name',
               help="The name that the service's certificate must have, where the address does not give it."),
    cfg.IntOpt('pollux_deadline_ms', default=60_000, min=100,
               help='A call to the service that has not succeeded after so many milliseconds has failed, '
                    'repetitions included.'),
    cfg.IntOpt('pollux_connect_ms', default=10_000, min=100,
               help='How many milliseconds to go on trying to reach a service that does not answer. A restart of the '
                    'service should fit in.'),
]


def given(configuration: Any) -> dict[str, Any]:
    """What `pollux.client.settings.load` takes, from a section that has `client_opts`."""
    return {option.name.removeprefix('pollux_'): getattr(configuration, option.name) for option in client_opts}
