"""Limits of I/O, from the specifications of volume types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pollux import errors
from pollux.rpc import ttypes as rpc
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
    specs = {
        "total_iops_sec": "100", "total_iops_sec_max": "50", "size_iops_sec": "4096", "read_iops_sec": "many",
        "write_iops_sec_max": "1000", "read_bytes_sec": "1000", "read_bytes_sec_max": "2000",
        "read_bytes_sec_max_length": "4000",
    }
    made = a_volume(context, qos=specification("back-end", **specs))
    driver.create_volume(made)
    assert limits(service, made) == {
        "total_iops": 100, "read_bytes_per_s": 1000, "read_burst_bytes_per_s": 2000, "read_bytes_burst_s": 1,
    }
    warnings = "\n".join(one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "size_iops_sec, write_iops_sec_max cannot be enforced" in warnings
    assert "total_iops_sec_max is 50, below the limit" in warnings
    assert "read_bytes_sec_max_length is 4000, and must be 1 to 3600" in warnings
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


@pytest.mark.parametrize("consumer", ["back-end", "front-end"])
def test_a_maximum_beside_a_fixed_limit_is_a_burst(
    driver: Any, service: Service, context: Any, specification: Any, consumer: str
) -> None:
    specs = {
        "total_iops_sec": "100", "total_iops_sec_max": "1000", "total_iops_sec_max_length": "60",
        "write_bytes_sec": "4096", "write_bytes_sec_max": "8192",
        "read_iops_sec_per_gb": "10", "read_iops_sec_max": "15",
    }
    kind = specification(consumer, **specs)
    made = a_volume(context, size=2, qos=kind)
    driver.create_volume(made)
    expected = {
        "total_iops": 100, "total_burst_iops": 1000, "total_iops_burst_s": 60,
        "write_bytes_per_s": 4096, "write_burst_bytes_per_s": 8192, "write_bytes_burst_s": 1,
        "read_iops": 15,
    }
    assert limits(service, made) == expected
    # A burst alone that changes is a change.
    qos_specs.update(context, kind, {"total_iops_sec_max": "2000"})
    driver.initialize_connection(made, dict(CONNECTOR))
    assert limits(service, made) == {**expected, "total_burst_iops": 2000}
    driver.terminate_connection(made, None)
    driver.delete_volume(made)


def test_bursts_are_set_and_shown_by_the_command_line(service: Service) -> None:
    volume = service.create_volume().volume_id

    def polluxctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pollux.cli.main", "volume", "qos", "set", *arguments, volume],
                              env={**os.environ, **service.environment()}, capture_output=True, text=True, check=False)

    done = polluxctl("--total-iops", "100", "--total-burst-iops", "1k", "--total-iops-burst-s", "60", "-f", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["qos"] == {"total_iops": 100, "total_burst_iops": 1024, "total_iops_burst_s": 60}
    assert "--read-bytes-burst-s" in polluxctl("--help").stdout
    refused = polluxctl("--read-burst-iops", "100")
    assert refused.returncode != 0
    assert "a burst needs the limit" in refused.stderr
    service.client().volume_delete(volume)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"read_burst_iops": 5}, "needs the limit"),
        ({"read_iops": 10, "read_burst_iops": 5}, "lower than its limit"),
        ({"read_iops": 10, "read_burst_iops": -1}, "negative"),
        ({"read_iops": 10, "read_iops_burst_s": 5}, "without a burst"),
        ({"total_bytes_per_s": 10, "total_burst_bytes_per_s": 20, "total_bytes_burst_s": 3601}, "1 to 3600"),
        ({"total_bytes_per_s": 10, "total_burst_bytes_per_s": 20, "total_bytes_burst_s": -1}, "1 to 3600"),
    ],
)
def test_bursts_that_make_no_sense_are_refused(service: Service, wrong: dict[str, int], why: str) -> None:
    volume = service.create_volume().volume_id
    client = service.client()
    with pytest.raises(errors.Invalid, match=why):
        client.volume_set_qos(volume, rpc.QosLimits(**wrong))
    assert client.volume_describe(volume).qos is None
    client.volume_delete(volume)
