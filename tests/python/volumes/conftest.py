"""Fixtures of the Cinder driver's tests: the driver against a real service, without Cinder's own services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from python.services import Service

pytest.importorskip("cinder")

import cinder.privsep
from cinder import context as cinder_context
from cinder import objects
from cinder.db import api as database_api
from cinder.db import models
from oslo_config import cfg

from python.volumes.helpers import (
    Images,
    a_volume,
    make_driver,
)


@pytest.fixture(scope="session", autouse=True)
def _cinder(tmp_path_factory: pytest.TempPathFactory) -> None:
    objects.register_all()
    cfg.CONF([], project="cinder", default_config_files=[])
    cfg.CONF.set_override("image_conversion_dir", str(tmp_path_factory.mktemp("conversion")))
    cfg.CONF.set_override("allow_compression_on_image_upload", True)
    # Looking into an image is privileged in Cinder; here it needs no helper process.
    cinder.privsep.sys_admin_pctxt.set_client_mode(False)


@pytest.fixture
def context() -> Any:
    return cinder_context.RequestContext("user", "project", is_admin=True)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


@pytest.fixture
def driver(service: Service) -> Iterator[Any]:
    made = make_driver(service)
    made.check_for_setup_error()
    yield made
    made.client.close()


@pytest.fixture
def volume(driver: Any, context: Any) -> Iterator[Any]:
    made = a_volume(context)
    driver.create_volume(made)
    yield made
    driver.delete_volume(made)


@pytest.fixture(scope="session")
def _database(_cinder: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cinder's tables, which hold the specifications."""
    cfg.CONF.set_override("connection", f"sqlite:///{tmp_path_factory.mktemp('db') / 'cinder'}", group="database")
    models.BASE.metadata.create_all(database_api.get_engine())
