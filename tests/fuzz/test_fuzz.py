"""Each libFuzzer target runs for a while and must find nothing.

The targets are built with clang, AddressSanitizer and UndefinedBehaviorSanitizer in build/fuzz. An input that
breaks one is kept in the suite's log folder; run the target with that file as its argument to see it again.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

_REPO = Path(__file__).resolve().parents[2]
_BUILD = _REPO / "build" / "fuzz"
_CORPUS = Path(__file__).parent / "corpus"
# Seconds of fuzzing a target.
_SECONDS = {"quick": 5, "default": 20, "full": 60 * int(os.environ.get("POLLUX_TEST_SOAK", "1"))}
# Every target has a corpus.
_TARGETS = sorted(folder.name for folder in _CORPUS.iterdir() if folder.is_dir())
# Bytes of an input; longer ones teach nothing that shorter ones do not.
_LENGTH = {"virtqueue": 512, "vhost": 1024, "thrift": 1024}
_LENGTH_OF_OTHERS = 4096
_BUILD_S = 1800
_SHOWN = 4000


@pytest.fixture(scope="session")
def fuzzers() -> Path:
    """The folder of the targets, built."""
    for command in (
        ["cmake", "--preset", "fuzz"],
        ["cmake", "--build", "--preset", "fuzz", "--target", "fuzzers"],
    ):
        done = subprocess.run(command, cwd=_REPO, capture_output=True, text=True, timeout=_BUILD_S, check=False)
        assert done.returncode == 0, f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-_SHOWN:]}"
    return _BUILD / "tests" / "fuzz"


@pytest.mark.parametrize("target", _TARGETS)
def test_no_input_breaks(fuzzers: Path, tmp_path: Path, target: str) -> None:
    seconds = _SECONDS[os.environ.get("POLLUX_TEST_LEVEL", "default")]
    logs = Path(os.environ.get("POLLUX_TEST_LOGS", tmp_path))
    grown = tmp_path / "corpus"
    grown.mkdir()
    command = [
        str(fuzzers / f"fuzz_{target}"),
        f"-max_total_time={seconds}",
        f"-max_len={_LENGTH.get(target, _LENGTH_OF_OTHERS)}",
        "-timeout=60",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={logs}/{target}-",
        # New inputs go to the first folder; the tree's is only read.
        str(grown),
        str(_CORPUS / target),
    ]
    with open(logs / f"{target}.log", "w+b") as log:
        status = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds * 3 + 600, check=False
        ).returncode
        log.seek(0)
        text = log.read().decode(errors="replace")
    kept = [str(path) for path in logs.glob(f"{target}-*") if path.suffix != ".log"]
    assert not kept, f"{' '.join(command)}\ninputs: {kept}\n{text[-_SHOWN:]}"
    assert status == 0, text[-_SHOWN:]
    assert re.search(r"Done [1-9]\d* runs", text), text[-_SHOWN:]
