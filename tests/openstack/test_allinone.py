"""What devstack/allinone stands on: finding what the machine lacks, order, and ending all that it started."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "devstack" / "allinone.d"))

from allinone import debian, files, graph, network_stub, process, requirements, wait
from allinone.errors import AllInOneError
from allinone.process import Processes
from allinone.settings import Ports, Settings

REPO = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------- apt sources


def apt_folder(root: Path, name: str, text: str) -> Path:
    (root / "sources.list.d").mkdir(parents=True)
    (root / name).write_text(text)
    return root


def test_backports_are_a_copy_of_a_deb822_entry_with_its_mirror_and_key(tmp_path: Path) -> None:
    apt = apt_folder(tmp_path, "sources.list.d/debian.sources", """\
Types: deb
URIs: http://security.mirror.example/debian-security
Suites: bookworm-security
Components: main

# the main archive
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/some.gpg
""")
    suffix, text = debian.own_entry(apt)
    assert suffix == ".sources"
    assert text == ("Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n"
                    "Components: main contrib\nSigned-By: /usr/share/keyrings/some.gpg\n")
    assert not debian.suite_known(apt)
    (apt / "sources.list.d" / f"pollux-backports{suffix}").write_text(text)
    assert debian.suite_known(apt)


def test_backports_are_a_copy_of_a_one_line_entry_with_its_options(tmp_path: Path) -> None:
    apt = apt_folder(tmp_path, "sources.list", "# deb http://old.example/debian bookworm main\n"
                                               "deb-src http://mirror.example/debian bookworm main\n"
                                               "deb [arch=amd64] http://mirror.example/debian bookworm main\n")
    assert debian.own_entry(apt) == (
        ".list", "deb [arch=amd64] http://mirror.example/debian bookworm-backports main\n")


def test_a_machine_without_a_source_for_bookworm_is_told_so(tmp_path: Path) -> None:
    apt = apt_folder(tmp_path, "sources.list", "deb http://mirror.example/debian trixie main\n")
    with pytest.raises(AllInOneError, match="bookworm"):
        debian.own_entry(apt)


# ---------------------------------------------------------------- requirements


def test_all_that_is_missing_is_named_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(state=tmp_path / "state", repo=REPO, ports=Ports(glance=taken.getsockname()[1]),
                            needed_memory_bytes=1 << 60, needed_disk_bytes=1 << 60)
        with pytest.raises(AllInOneError) as raised:
            requirements.check(settings, Processes(settings))
    text = str(raised.value)
    assert "nothing was changed" in text
    assert "GiB of available memory" in text
    assert "GiB of free disk space" in text
    assert "(glance) on 127.0.0.1 is taken" in text
    assert not settings.state.exists()


# ---------------------------------------------------------------- order


def test_a_task_runs_after_all_that_it_waits_for() -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: order.append(name)
    graph.run([graph.Task("d", ("b", "c"), note("d")), graph.Task("b", ("a",), note("b")),
               graph.Task("c", ("a",), note("c")), graph.Task("a", (), note("a"))], workers=3)
    assert order[0] == "a"
    assert order[-1] == "d"
    assert sorted(order) == ["a", "b", "c", "d"]


def test_independent_tasks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=30)
    graph.run([graph.Task("one", (), meeting.wait), graph.Task("two", (), meeting.wait)], workers=2)


def test_after_a_failure_nothing_new_begins_and_the_failure_is_raised() -> None:
    begun: list[str] = []

    def fail() -> None:
        raise AllInOneError("broken")
    with pytest.raises(AllInOneError, match="broken"):
        graph.run([graph.Task("bad", (), fail), graph.Task("next", ("bad",), lambda: begun.append("next"))], workers=2)
    assert begun == []


def test_tasks_that_wait_for_one_another_are_an_error() -> None:
    with pytest.raises(AllInOneError, match="one another"):
        graph.run([graph.Task("a", ("b",), int), graph.Task("b", ("a",), int)], workers=2)


# ---------------------------------------------------------------- processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """In a namespace of their own, in which the folder `outside` shows what `inside` holds."""
    (tmp_path / "outside").mkdir()
    running = Processes(Settings(state=tmp_path / "state", repo=REPO))
    running.open_namespace({tmp_path / "outside": tmp_path / "inside"})
    yield running
    running.sweep()


def gone(pid: int) -> bool:
    return process.identify(pid) is None


def test_a_process_that_ignores_termination_is_killed_after_its_grace(processes: Processes) -> None:
    processes.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    identity = processes.identity("stubborn")
    assert identity
    wait.until("it runs", lambda: "ready" in processes.log("stubborn").read_text(), 20)
    processes.stop("stubborn", grace_s=0.5)
    assert gone(identity.pid)
    assert "stubborn" not in processes.names()


def test_what_detached_itself_ends_with_the_namespace(processes: Processes, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    processes.run("parent", ["sh", "-c", f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 1000' > /dev/null 2>&1 &"])
    detached = int(wait.until("it detached", lambda: pid_file.exists() and pid_file.read_text().strip(), 20))
    assert [stranger.pid for stranger in processes.strangers()] == [detached]
    processes.sweep()
    assert gone(detached)
    assert processes.names() == []


def test_mounts_are_seen_inside_the_namespace_alone(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "inside" / "file").write_text("here")
    assert processes.run("look", ["cat", str(tmp_path / "outside" / "file")]) == "here"
    assert not (tmp_path / "outside" / "file").exists()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_a_pid_that_another_process_has_by_now_is_left_alone(processes: Processes) -> None:
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        try:
            identity = process.identify(bystander.pid)
            assert identity
            stale = dataclasses.replace(identity, start_ticks=identity.start_ticks - 1)
            record = processes._settings.run / "stale.json"
            files.write_json(record, dataclasses.asdict(stale) | {"argv": []})
            assert not processes.running("stale")
            processes.stop("stale")
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_starting_twice_starts_once_and_a_failed_command_says_where_to_look(processes: Processes) -> None:
    assert processes.start("one", ["sleep", "1000"])
    assert not processes.start("one", ["sleep", "1000"])
    with pytest.raises(AllInOneError, match=r"bad\.log"):
        processes.run("bad", ["sh", "-c", "echo reason; exit 3"])
    assert "reason" in processes.log("bad").read_text()


def test_services_inherit_nothing_of_the_callers_environment(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_PASSWORD", "secret")
    assert "secret" not in processes.run("env", ["env"])


# ---------------------------------------------------------------- files, waiting, the network stand-in


def test_a_private_file_is_private_from_the_first_byte_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    assert files.write_ini(path, {"DEFAULT": {"on": True, "left_out": None}, "x": {"n": 3}})
    assert path.read_text() == "[DEFAULT]\non = true\n\n[x]\nn = 3\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not files.write_ini(path, {"DEFAULT": {"on": True}, "x": {"n": 3}})
    assert os.listdir(tmp_path) == ["a.conf"]


def test_passwords_stay_the_same_from_run_to_run(tmp_path: Path) -> None:
    first = files.passwords(tmp_path / "p.json", ("a", "b"))
    second = files.passwords(tmp_path / "p.json", ("a", "b", "c"))
    assert {name: second[name] for name in first} == first
    assert len(set(second.values())) == 3


def test_waiting_ends_at_its_deadline_with_a_hint() -> None:
    begun = time.monotonic()
    with pytest.raises(AllInOneError, match="the moon: not within 0 s; look up"):
        wait.until("the moon", lambda: False, 0.2, 0.05, hint="look up")
    assert time.monotonic() - begun < 10


def test_the_network_stand_in_has_no_networks_and_makes_none() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), network_stub.Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            with urllib.request.urlopen(f"{base}/v2.0/security-groups?fields=id") as answer:
                assert json.load(answer) == {"security_groups": []}
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{base}/v2.0/ports", data=b"{}")
            assert refused.value.code == 501
        finally:
            server.shutdown()
            thread.join()
