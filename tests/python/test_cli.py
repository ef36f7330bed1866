"""polluxctl against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pollux import sizes

from python.services import GIB, POOL, Service, new_id


def polluxctl(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pollux.cli.main", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def ctl(service: Service) -> Callable[..., Any]:
    """Runs a command as admin that must succeed; what it printed, read as JSON where the command has formats."""

    def run(*arguments: str, plain: bool = False) -> Any:
        extra = () if plain else ("-f", "json")
        done = polluxctl(*arguments, *extra, environment=service.environment())
        assert done.returncode == 0, done.stderr
        return done.stdout if plain else json.loads(done.stdout)

    return run


def test_a_volume_has_the_block_size_that_it_was_given(ctl: Callable[..., Any]) -> None:
    name = f"cli-{new_id()}"
    made = ctl("volume", "create", "--pool", POOL, "--size", "1G", "--block-size", "4096", name)
    assert made["block_bytes"] == 4096
    ctl("volume", "snapshot", name, f"{name}-snap")
    ctl("volume", "clone", f"{name}-snap", f"{name}-clone")
    for each in (name, f"{name}-snap", f"{name}-clone"):
        assert ctl("volume", "show", each)["block_bytes"] == 4096
    for each in (f"{name}-clone", f"{name}-snap", name):
        ctl("volume", "delete", each, plain=True)


def test_a_volume_from_creation_to_deletion(ctl: Callable[..., Any], service: Service) -> None:
    name, host = f"cli-{new_id()}", "compute-9"
    made = ctl("volume", "create", "--pool", POOL, "--size", "1G", name)
    assert (made["size_bytes"], made["provisioning"], made["block_bytes"]) == (GIB, "thin", 512)
    assert ctl("volume", "extend", name, "1.5G")["size_bytes"] == GIB * 3 // 2
    snapshot = ctl("volume", "snapshot", name, f"{name}-snap")
    assert snapshot["snapshot"] is True
    clone = ctl("volume", "clone", f"{name}-snap", f"{name}-clone")
    assert clone["size_bytes"] == GIB * 3 // 2
    listed = {row["Name"]: row for row in ctl("volume", "list", POOL)}
    assert listed[f"{name}-clone"]["Parent"] == snapshot["volume_id"]

    ctl("authorise", name, host, plain=True)
    assert [row["Host"] for row in ctl("authorisation", "list", "--volume", name)] == [host]
    ctl("unauthorise", name, host, plain=True)
    assert ctl("authorisation", "list", "--volume", name) == []

    attached = ctl("attach", f"{POOL}/{name}", "--client", new_id(), "--transport", "blk")
    assert Path(attached["socket_path"]).is_socket()
    assert [row["ID"] for row in ctl("attachment", "list", "--volume", name)] == [attached["attachment_id"]]
    busy = polluxctl("volume", "delete", name, environment=service.environment())
    assert busy.returncode == 4
    assert made["volume_id"] in busy.stderr
    assert attached["scsi_names"] is None
    ctl("detach", attached["attachment_id"], plain=True)
    named = ctl("attach", f"{POOL}/{name}", "--client", new_id(), "--scsi-names", "qemu")
    assert named["scsi_names"] == "qemu"
    ctl("detach", named["attachment_id"], plain=True)
    assert not Path(attached["socket_path"]).exists()

    opened = ctl("data", "open", name)
    assert opened["url"].startswith("nbd+unix:///")
    ctl("data", "close", opened["socket_id"], plain=True)
    ctl("volume", "revert", name, f"{name}-snap")
    assert ctl("volume", "stats", name)["errors"] == 0
    ctl("volume", "delete", f"{name}-clone", f"{name}-snap", name, plain=True)
    assert name not in {row["Name"] for row in ctl("volume", "list")}


def test_a_pool_is_created_shown_exported_and_imported(ctl: Callable[..., Any], tmp_path: Path) -> None:
    file, name = tmp_path / "pool.img", f"p-{new_id()[:8]}"
    made = ctl("pool", "create", name, "--file", str(file), "--size", "128M", "--cluster", "128K")
    assert made["cluster_bytes"] == 128 << 10
    ctl("volume", "create", "--pool", name, "--size", "64M", "kept")
    ctl("pool", "export", name, plain=True)
    assert name not in {row["Name"] for row in ctl("pool", "list")}
    assert ctl("pool", "import", "--file", str(file))["pool_id"] == made["pool_id"]
    assert [row["Name"] for row in ctl("volume", "list", name)] == ["kept"]
    assert ctl("pool", "show", name)["volumes"] == 1
    ctl("pool", "export", name, plain=True)


def test_a_device_with_a_file_system_is_not_formatted_by_mistake(
    service: Service, ctl: Callable[..., Any], tmp_path: Path
) -> None:
    file, name = tmp_path / "somebody's.img", f"p-{new_id()[:8]}"
    file.touch()
    os.truncate(file, 128 << 20)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-L", "precious", str(file)], check=True)
    before = file.read_bytes()
    refused = polluxctl("pool", "create", name, "--file", str(file), environment=service.environment())
    assert refused.returncode != 0
    assert "ext4 file system 'precious'" in refused.stderr
    assert file.read_bytes() == before
    assert name not in {row["Name"] for row in ctl("pool", "list")}
    made = ctl("pool", "create", name, "--file", str(file), "--overwrite")
    assert ctl("pool", "create", name, "--file", str(file), "--id", made["pool_id"])["pool_id"] == made["pool_id"]
    ctl("pool", "export", name, plain=True)


def test_a_controller_is_made_and_deleted(ctl: Callable[..., Any]) -> None:
    client = new_id()
    socket = ctl("controller", "ensure", client, "--queues", "2", plain=True).strip()
    assert Path(socket).is_socket()
    ctl("controller", "delete", client, plain=True)
    assert not Path(socket).exists()


def test_the_service_shows_itself(ctl: Callable[..., Any]) -> None:
    assert ctl("service", "show")["host_id"] == "test-host"
    assert ctl("service", "stats")["pools"] >= 1
    assert isinstance(ctl("job", "list"), list)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("volume", "show", "no-such-volume"), 3, "polluxctl volume list"),
        (("volume", "create", "--pool", "none", "--size", "1G", "x"), 3, "none"),
        (("volume", "create", "--pool", POOL, "--size", "100G", "--thick", "x"), 5, "needed"),
        (("volume", "create", "--pool", POOL, "--size", "big", "x"), 2, "512M"),
        (("volume", "show"), 2, "volume"),
    ],
)
def test_failures_have_their_exit_codes_and_say_what_to_do(
    service: Service, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = polluxctl(*arguments, environment=service.environment())
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_a_reader_is_told_that_it_may_not(service: Service) -> None:
    done = polluxctl("pool", "export", POOL, environment=service.environment("reader"))
    assert done.returncode == 6
    assert "reader" in done.stderr


def test_without_a_service_it_says_where_it_looked() -> None:
    done = polluxctl("pool", "list")
    assert done.returncode == 1
    assert "POLLUX_ADDRESS" in done.stderr


def test_help_has_examples() -> None:
    done = polluxctl("volume", "create", "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("512M", 512 << 20), ("10G", 10 << 30), ("1.5TiB", 3 << 39), ("2 gb", 2 << 30), ("0", 0)],
)
def test_sizes(text: str, expected: int) -> None:
    assert sizes.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1X", "G", "0.3", "1e9", "1.0001K"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|whole"):
        sizes.parse_bytes(text)
