#!/usr/bin/env python3
"""Counts the instructions that the data path spends on a request and compares them with figures.json.

callgrind counts them, so the machine's speed and its other work do not matter; the compiler, the build type (release
preset) and the code do. A case fails when it needs more than the figure by TOLERANCE, and also when it needs less by
as much: then the figure has to follow, or the next loss up to it would go unseen.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

FIGURES = Path(__file__).with_name("figures.json")
TOLERANCE = 0.03
_LIMIT_S = 300
# Every processor copies memory with the same code, so that the figures hold on all of them.
_TUNABLES = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX2_Usable,-AVX512F,-AVX512VL,-ERMS,-FSRM,-Prefer_ERMS"


@dataclass(frozen=True)
class Verdict:
    case: str
    seen: float
    figure: float | None

    def complaint(self) -> str:
        """Empty when all is well."""
        if self.figure is None:
            return f"{self.case}: {self.seen:.0f} instructions a request, and {FIGURES.name} has no figure: add it"
        change = self.seen / self.figure - 1
        if abs(change) <= TOLERANCE:
            return ""
        head = f"{self.case}: {self.seen:.0f} instructions a request, {change:+.1%} against {self.figure:.0f}"
        if change > 0:
            return (
                f"{head}. Find out where they go: run the program under callgrind as gate.py does and look with"
                " callgrind_annotate. Only when what they buy is worth it, write the new figures with --update, and"
                " say in the commit message what the request pays for."
            )
        return f"{head}. Well done: write the new figures with --update, in the same commit."


def count(program: Path) -> dict[str, float]:
    """Instructions a request by case. Raises RuntimeError when the program fails."""
    with tempfile.TemporaryDirectory(prefix="perf-gate-") as folder:
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no"]
        command += ["--toggle-collect=pollux::vhost::VhostQueue::poll()", f"--callgrind-out-file={folder}/out"]
        ran = subprocess.run(
            [*command, str(program)],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            env={**os.environ, "GLIBC_TUNABLES": _TUNABLES},
        )
        if ran.returncode:
            raise RuntimeError(f"{program.name} failed:\n{ran.stdout}{ran.stderr}")
        requests = dict(re.findall(r"^(\w+/\w+/[\w-]+) (\d+)$", ran.stdout, re.MULTILINE))
        counted = {}
        for dump in Path(folder).glob("out.*"):
            text = dump.read_text()
            case = re.search(r"^desc: Trigger: Client Request: (\S+)$", text, re.MULTILINE)
            total = re.search(r"^summary: (\d+)$", text, re.MULTILINE)
            if case and total:
                counted[case[1]] = int(total[1]) / int(requests[case[1]])
    if set(counted) != set(requests) or not counted or not all(counted.values()):
        raise RuntimeError(f"callgrind counted {sorted(counted)} of {sorted(requests)}")
    return dict(sorted(counted.items()))


def _junit(path: Path, verdicts: list[Verdict]) -> None:
    suite = ElementTree.Element("testsuite", name="perf-gate")
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="perf-gate", name=verdict.case)
        if verdict.complaint():
            ElementTree.SubElement(case, "failure", message=verdict.complaint())
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="pollux-perf-gate of a release build")
    parser.add_argument("--junit", type=Path, help="write the outcome there")
    parser.add_argument("--update", action="store_true", help="make what is counted the new figures")
    arguments = parser.parse_args()
    counted = count(arguments.program)
    if arguments.update:
        FIGURES.write_text(json.dumps({case: round(seen) for case, seen in counted.items()}, indent=2) + "\n")
    figures = json.loads(FIGURES.read_text())
    verdicts = [Verdict(case, seen, figures.get(case)) for case, seen in counted.items()]
    for verdict in verdicts:
        shown = "none" if verdict.figure is None else f"{verdict.figure:.0f}"
        print(f"{verdict.case:<20} {verdict.seen:8.1f} instructions a request, figure {shown}")
    complaints = [verdict.complaint() for verdict in verdicts if verdict.complaint()]
    complaints += [f"{case} was not counted" for case in sorted(set(figures) - set(counted))]
    for complaint in complaints:
        print(complaint)
    if arguments.junit:
        _junit(arguments.junit, verdicts)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
