"""All Python of the project keeps to the rules of .ruff.toml and driver-python/pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_python_keeps_to_the_rules_of_the_project() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "."]
    checked = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
