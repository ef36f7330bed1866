"""Makes the connector known in every process that uses os-brick: cinder-backup, Glance's Cinder store, scripts.

os-brick has no plug-in point, and of these processes none loads anything of ours. So the package installs the file
pollux-os-brick.pth, by which each Python process of its environment imports this module when it starts. All that the
module does then is to wait: once `os_brick.initiator.connector` has been imported, the connector is added to it. Where
os-brick is not there or not used, nothing happens. POLLUX_OS_BRICK=off in the environment switches it off.

Nothing but sys and os is imported here, since this runs in every Python process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

MODULE = 'os_brick.initiator.connector'
SWITCH = 'POLLUX_OS_BRICK'


class Waiter:
    """A finder that lets the others find the module, and acts when it has been loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _call_after(spec.loader)
        return spec


def _call_after(loader: Any) -> None:
    load = loader.exec_module

    def exec_module(module: Any) -> None:
        del loader.exec_module
        load(module)
        _register(module)
    loader.exec_module = exec_module


def _register(module: Any) -> None:
    from pollux.brick.register import extend

    try:
        extend(module)
    except Exception as error:  # noqa: BLE001
        # Whatever else the process does with os-brick must go on.
        import logging

        logging.getLogger(__name__).error('Pollux is switched OFF in this process: %s', error)


def install() -> None:
    """May be called again."""
    if os.environ.get(SWITCH, '').lower() == 'off' or any(isinstance(one, Waiter) for one in sys.meta_path):
        return
    if MODULE in sys.modules:
        _register(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, Waiter())  # type: ignore[arg-type]


install()
