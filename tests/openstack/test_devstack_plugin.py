"""The devstack plugin, run phase by phase as stack.sh does, with devstack's own functions replaced by recorders.

devstack needs systemd as the first process and takes the machine over; what the plugin is answerable for are the
files it writes and the functions it calls, in which order.
"""

from __future__ import annotations

import configparser
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PLUGIN = REPO / "devstack"

# What devstack defines before it sources a plugin. iniset really writes; the others record their arguments.
STUBS = r"""
set -euo pipefail
record() { printf '%s\n' "$*" >> "$CALLS"; }
sudo() { "$@"; }
hostname() { echo host1; }
is_service_enabled() { [[ ",$ENABLED_SERVICES," == *",$1,"* ]]; }
enable_service() { ENABLED_SERVICES+=",$1"; }
echo_summary() { :; }
for name in install_package pip_install run_process stop_process wait_for_service cmake openstack; do
    eval "$name() { record $name \"\$@\"; }"
done
polluxctl() {
    record polluxctl "$@"
    if [[ $1 == certs ]]; then mkdir -p "$3"; touch "$3/ca.pem"; fi
    # There is no pool until one is created.
    case " $* " in
        *" pool show "*) [[ -e $POOL_MADE ]] ;;
        *" pool create "*) touch "$POOL_MADE" ;;
    esac
}
iniset() {
    /usr/bin/python3 - "$@" <<'PY'
import configparser, sys
path, section, key, value = sys.argv[1:]
ini = configparser.ConfigParser(interpolation=None)
ini.optionxform = str
ini.read(path)
if not ini.has_section(section):
    ini.add_section(section)
ini.set(section, key, value)
with open(path, "w") as stream:
    ini.write(stream)
PY
}
"""

# The order of stack.sh: override-defaults and settings early, then each phase; lib/cinder configures its back ends
# between the phases pre-install and install, and asks for the function by its name.
STACK = r"""
source "$PLUGIN/override-defaults"
source "$PLUGIN/settings"
source "$PLUGIN/plugin.sh" stack pre-install
for backend in ${CINDER_ENABLED_BACKENDS//,/ }; do
    if type "configure_cinder_backend_${backend%%:*}" > /dev/null 2>&1; then
        "configure_cinder_backend_${backend%%:*}" "${backend##*:}"
    fi
done
source "$PLUGIN/plugin.sh" stack install
source "$PLUGIN/plugin.sh" stack post-config
source "$PLUGIN/plugin.sh" stack extra
source "$PLUGIN/plugin.sh" stack test-config
"""


@dataclass
class Devstack:
    root: Path

    def run(self, script: str, **variables: str) -> None:
        environment = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "PLUGIN": str(PLUGIN),
            "POLLUX_DIR": str(REPO),
            "CALLS": str(self.root / "calls"),
            "POOL_MADE": str(self.root / "pool-made"),
            "DEST": str(self.root),
            "DATA_DIR": str(self.root / "data"),
            "STACK_USER": "root",
            "ENABLED_SERVICES": "c-vol,n-cpu",
            "CINDER_CONF": str(self.root / "cinder.conf"),
            "NOVA_CONF": str(self.root / "nova.conf"),
            "TEMPEST_CONFIG": str(self.root / "tempest.conf"),
            "POLLUX_CONF_DIR": str(self.root / "etc"),
            "POLLUX_RUNTIME_DIR": str(self.root / "run"),
        }
        done = subprocess.run(
            ["bash", "-c", STUBS + script], env=environment | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def ini(self, name: str) -> configparser.ConfigParser:
        parsed = configparser.ConfigParser(interpolation=None)
        parsed.read(self.root / name)
        return parsed


@pytest.fixture
def devstack(tmp_path: Path) -> Devstack:
    return Devstack(tmp_path)


def index(calls: list[str], start: str) -> int:
    """Position of the only call that begins with `start`."""
    (position,) = (number for number, call in enumerate(calls) if call.startswith(start))
    return position


def test_cinder_gets_the_back_end(devstack: Devstack) -> None:
    devstack.run(STACK)
    backend = devstack.ini("cinder.conf")["pollux-1"]
    assert backend["volume_backend_name"] == "pollux-1"
    assert backend["volume_driver"] == "pollux.cinder.driver.PolluxDriver"
    assert backend["pollux_certificate"] == str(devstack.root / "etc/certs/cinder.pem")


def test_nova_conf_names_the_local_service_and_sends_service_tokens(devstack: Devstack) -> None:
    devstack.run(STACK)
    nova = devstack.ini("nova.conf")
    assert nova["pollux"]["pollux_certificate"] == str(devstack.root / "etc/certs/compute.pem")
    assert nova["service_user"]["send_service_user_token"] == "True"


def test_the_service_runs_before_cinder_and_nova_are_started(devstack: Devstack) -> None:
    devstack.run(STACK)
    calls = devstack.calls()
    order = ["install_package ", "cmake --preset", "pip_install ", "polluxctl certs init", "run_process polluxd ",
             "wait_for_service ", "openstack "]
    positions = [index(calls, start) for start in order]
    assert positions == sorted(positions)
    config = tomllib.loads((devstack.root / "etc/polluxd.toml").read_text())
    assert config["service"]["host_id"] == "host1"
    assert config["control"]["listen"] == "127.0.0.1:9640"
    assert config["control"]["ca"] == str(devstack.root / "etc/certs/ca.pem")


def test_the_pool_is_made_once_however_often_the_phase_runs(devstack: Devstack) -> None:
    devstack.run(STACK)
    devstack.run(STACK)
    assert sum(" pool create " in call for call in devstack.calls()) == 1
    assert sum(call.startswith("polluxctl certs init") for call in devstack.calls()) == 1


def test_every_pollux_back_end_gets_its_transport_and_no_other_does(devstack: Devstack) -> None:
    devstack.run(STACK, CINDER_ENABLED_BACKENDS="pollux:fast,lvm:lvmdriver-1,pollux:slow", POLLUX_TRANSPORT="blk")
    typed = [call.split() for call in devstack.calls() if call.startswith("openstack ")]
    assert [words[-1] for words in typed] == ["fast", "slow"]
    assert all("pollux:transport=blk" in words for words in typed)
    assert devstack.ini("cinder.conf").sections() == ["fast", "slow"]


def test_unstack_and_clean_take_back_what_was_made(devstack: Devstack) -> None:
    devstack.run(STACK)
    devstack.run('source "$PLUGIN/settings"\nsource "$PLUGIN/plugin.sh" unstack\nsource "$PLUGIN/plugin.sh" clean\n')
    assert devstack.calls()[-1] == "stop_process polluxd"
    assert not (devstack.root / "etc").exists()
    assert not (devstack.root / "data/pollux").exists()
    assert not (devstack.root / "run").exists()


def test_nothing_happens_when_the_service_is_disabled(devstack: Devstack) -> None:
    disabled = STACK.replace("source \"$PLUGIN/plugin.sh\" stack pre-install",
                             "ENABLED_SERVICES=c-vol\nsource \"$PLUGIN/plugin.sh\" stack pre-install")
    devstack.run(disabled)
    assert devstack.calls() == []
    assert not (devstack.root / "etc").exists()
