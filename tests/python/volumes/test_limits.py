"""Limits of I/O, from the specifications of volume types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pollux_testing import MIB

from python.services import Service, new_id

pytest.importorskip("cinder")

from cinder import objects
from cinder.volume import qos_specs

from python.volumes.helpers import (
    CONNECTOR,
    a_volume,
)


@pytest.fixture
def specification(_database: None, context: Any) -> Callable[..., Any]:
    def make(consumer: str, **specs: str) -> Any:
        return qos_specs.create(context, f"qos-{new_id()}", {"consumer": consumer, **specs})["id"]

    return make


def limits(service: Service, volume: Any) -> dict[str, int]:
    found = service.client().volume_describe(volume.id).qos
    return {name: value for name, value in vars(found).items() if value} if found else {}


@pytest.mark.parametrize("consumer", ["back-end", "front-end", "both"])
def test_limits_are_the_services_whoever_was_to_consume_them(
    driver: Any, service: Service, context: Any, specification: Any, consumer: str
) -> None:
    specs = {"total_iops_sec": "500", "read_bytes_sec": "1048576", "write_iops_sec_per_gb": "30"}
    made = a_volume(context, size=2, qos=specification(consumer, **specs))
    driver.create_volume(made)
    assert limits(service, made) == {"total_iops": 500, "read_bytes_per_s": MIB, "write_iops": 60}
    driver.extend_volume(made, 3)
    assert limits(service, made)["write_iops"] == 90
    driver.delete_volume(made)


@pytest.mark.parametrize(
    ("specs", "iops"),
    [
        ({"total_iops_sec_per_gb": "10"}, 40),
        ({"total_iops_sec_per_gb": "10", "total_iops_sec_per_gb_min": "100"}, 100),
        ({"total_iops_sec_per_gb": "10", "total_iops_sec_max": "25"}, 25),
        ({"total_iops_sec_per_gb": "10", "total_iops_sec_per_gb_min": "100", "total_iops_sec_max": "50"}, 50),
    ],
)
def test_limits_by_size_are_those_that_cinder_gives_to_nova(
    driver: Any, service: Service, context: Any, specification: Any, specs: dict[str, str], iops: int
) -> None:
    made = a_volume(context, size=4, qos=specification("both", **specs))
    driver.create_volume(made)
    assert limits(service, made) == {"total_iops": iops}
    driver.delete_volume(made)


def test_a_specification_that_changes_counts_from_the_next_attachment_on(
    driver: Any, service: Service, context: Any, specification: Any
) -> None:
    kind = specification("front-end", total_iops_sec="100")
    made = a_volume(context, qos=kind)
    driver.create_volume(made)
    qos_specs.update(context, kind, {"total_iops_sec": "200"})
    driver.initialize_connection(made, dict(CONNECTOR))
    assert limits(service, made) == {"total_iops": 200}
    made.volume_type.qos_specs_id = None
    driver.initialize_connection(made, dict(CONNECTOR))
    assert limits(service, made) == {}
    driver.terminate_connection(made, None)
    driver.delete_volume(made)


def test_what_cannot_be_enforced_is_left_out_with_a_warning(
    driver: Any, service: Service, context: Any, specification: Any, caplog: pytest.LogCaptureFixture
) -> None:
    specs = {"total_iops_sec": "100", "total_iops_sec_max": "1000", "size_iops_sec": "4096", "read_iops_sec": "many"}
    made = a_volume(context, qos=specification("back-end", **specs))
    driver.create_volume(made)
    assert limits(service, made) == {"total_iops": 100}
    warnings = "\n".join(one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "size_iops_sec, total_iops_sec_max cannot be enforced" in warnings
    assert "read_iops_sec is 'many'" in warnings
    driver.delete_volume(made)


def test_a_type_with_other_limits_changes_in_place(
    driver: Any, service: Service, context: Any, volume: Any, specification: Any
) -> None:
    limited = objects.VolumeType(id=new_id(), extra_specs={}, qos_specs_id=specification("both", read_iops_sec="7"))
    assert driver.retype(context, volume, limited, {}, {"host": volume.host}) == (True, None)
    assert limits(service, volume) == {"read_iops": 7}
    free = objects.VolumeType(id=new_id(), extra_specs={}, qos_specs_id=None)
    assert driver.retype(context, volume, free, {}, {"host": volume.host}) == (True, None)
    assert limits(service, volume) == {}
