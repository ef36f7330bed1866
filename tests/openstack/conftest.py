"""One cloud for the suite: the demo brings it up and leaves it running for the tests that follow, then it is stopped.

It has a state folder of its own, which stays between runs so that the Python environment is installed once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "devstack" / "allinone.d"))

from allinone import polluxd
from allinone.cloud import Cloud
from allinone.demo import VOLUME, Demo
from allinone.openstack import OpenStack
from allinone.progress import Progress
from allinone.settings import Settings

REPO = Path(__file__).resolve().parents[2]
STATE = Path(os.environ.get("POLLUX_TEST_ALLINONE_STATE", "/var/lib/pollux-allinone-tests"))
FIRST_RUN_S = 30 * 60


def allinone(*arguments: str, log: Path, timeout_s: float) -> int:
    with log.open("ab") as stream:
        command = [str(REPO / "devstack" / "allinone"), "--state", str(STATE), *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                              timeout=timeout_s, check=False).returncode


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("POLLUX_TEST_LOGS")
    return Path(kept) if kept else tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def demo(logs: Path) -> Iterator[dict[str, Any]]:
    """What `devstack/allinone demo --json` reports. The cloud goes on running until the end of the session."""
    log, report = logs / "allinone.log", logs / "demo.json"
    try:
        status = allinone("demo", "--keep", "--json", str(report), log=log, timeout_s=FIRST_RUN_S)
        if not report.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
            pytest.fail(f"the cloud did not come up (status {status}):\n{tail}")
        yield json.loads(report.read_text())
    finally:
        for path in (STATE / "logs").glob("*.log"):
            shutil.copy(path, logs)
        if allinone("down", log=log, timeout_s=300) != 0:
            pytest.fail(f"`allinone down` failed: see {log}")


@pytest.fixture(scope="session")
def cloud(demo: dict[str, Any], logs: Path) -> Iterator[Cloud]:
    with (logs / "user.log").open("w") as stream:
        yield Cloud(Settings(state=STATE, repo=REPO), Progress(stream))


@pytest.fixture(scope="session")
def openstack(cloud: Cloud) -> OpenStack:
    """The `openstack` command."""
    return Demo(cloud).openstack


@pytest.fixture(scope="session")
def same(cloud: Cloud, openstack: OpenStack) -> Callable[[str, str], bool]:
    """Whether two volumes hold the same bytes; they are named."""

    def compare(one: str, other: str) -> bool:
        sockets = []
        try:
            for name in (one, other):
                volume_id = openstack.find(VOLUME, name)["id"]
                sockets.append(json.loads(polluxd.polluxctl(
                    cloud.context, "data", "open", "--read-only", volume_id, "-f", "json")))
            done = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", *(each["url"] for each in sockets)],
                                  capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode in (0, 1), done.stderr
            return done.returncode == 0
        finally:
            for each in sockets:
                polluxd.polluxctl(cloud.context, "data", "close", each["socket_id"])

    return compare
