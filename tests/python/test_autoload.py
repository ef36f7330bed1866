"""The connector in processes that load nothing of Pollux by themselves, such as cinder-backup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("os_brick")

PACKAGE = Path(__file__).resolve().parents[2] / "driver-python"
CONNECTOR = "pollux.brick.connector.PolluxConnector"
#: A path of Python as an environment has it in which the wheel is installed.
START = "import site; site.addsitedir({folder!r})\n"


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    for name in ("pollux", "pollux-os-brick.pth"):
        (tmp_path / name).symlink_to(PACKAGE / name)
    return tmp_path


def run(site_packages: Path, code: str, **environment: str) -> str:
    # The folder first, so that the package is that of this checkout.
    surroundings = {**os.environ, "PYTHONPATH": str(site_packages), **environment}
    done = subprocess.run([sys.executable, "-c", START.format(folder=str(site_packages)) + code], env=surroundings,
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


FACTORY = """
from os_brick.initiator import connector
print(type(connector.InitiatorConnector.factory("pollux", "sudo")).__module__)
"""


def test_a_process_that_knows_nothing_of_pollux_has_its_connector(site_packages: Path) -> None:
    assert run(site_packages, FACTORY) == "pollux.brick.connector"


def test_every_way_of_importing_os_brick_leads_to_the_connector_once(site_packages: Path) -> None:
    code = f"""
import importlib
import os_brick.initiator.connector as module
importlib.reload(module)
import pollux.brick
pollux.brick.register()
from os_brick.initiator.connector import unix_connector_list, get_connector_mapping
print(unix_connector_list.count({CONNECTOR!r}), [get_connector_mapping(one).get("POLLUX") is not None
                                                 for one in ("x86_64", "s390x", "ppc64le")])
print(module.__spec__.loader.get_filename() == module.__file__)
"""
    assert run(site_packages, code).splitlines() == ["1 [True, True, True]", "True"]


def test_the_switch_turns_it_off(site_packages: Path) -> None:
    code = """
from os_brick.initiator import connector
print("POLLUX" in connector.get_connector_mapping("x86_64"))
"""
    assert run(site_packages, code, POLLUX_OS_BRICK="off") == "False"
    assert run(site_packages, code) == "True"


def test_a_process_without_os_brick_is_left_alone(site_packages: Path) -> None:
    code = f"""
import sys
before = set(sys.modules)
sys.path = [one for one in sys.path if "site-packages" not in one] + [{str(site_packages)!r}]
try:
    import os_brick.initiator.connector
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(site_packages, code) == "os_brick"
    loaded = run(site_packages, "import sys; print(*sorted(one for one in sys.modules if one.startswith('pollux')))")
    assert loaded.split() == ["pollux", *(f"pollux.{one}" for one in ("brick", "brick.autoload", "brick.register",
                                                                      "errors"))]


def test_an_unknown_os_brick_works_on_without_the_connector(site_packages: Path) -> None:
    package = site_packages / "os_brick" / "initiator"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("")
    (package / "connector.py").write_text("works = True\n")
    code = """
import logging
logging.basicConfig(level=logging.ERROR)
from os_brick.initiator import connector
print(connector.works)
"""
    assert run(site_packages, code) == "True"
