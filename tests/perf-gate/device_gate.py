#!/usr/bin/env python3
"""Counts what requests to volumes ask of the pool's device, and compares it with device_figures.json.

For so many requests of a case: operations of the device, those among them that wait for the medium (flushes, and writes
with FUA), and how often the reactor sleeps until the device answers. The device is memory that answers in the reactor's
sleep only, so the counts are the same on every machine and have no tolerance; when one falls, its figure has to follow.
A case is named after the volume, the request, and how many are under way at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

FIGURES = Path(__file__).with_name("device_figures.json")
COUNTS = ("requests", "operations", "stable", "sleeps")
_LIMIT_S = 300

Counted = dict[str, dict[str, int]]


def count(program: Path) -> Counted:
    """By case. Raises RuntimeError when the program fails."""
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=_LIMIT_S)
    if ran.returncode or not ran.stdout:
        raise RuntimeError(f"{program.name} failed:\n{ran.stdout}{ran.stderr}")
    rows = (line.split() for line in ran.stdout.splitlines())
    return {name: dict(zip(COUNTS, map(int, numbers), strict=True)) for name, *numbers in rows}


def complaint(case: str, seen: dict[str, int] | None, figure: dict[str, int] | None) -> str:
    """Empty when all is well."""
    if seen is None:
        return f"{case} was not counted"
    if figure is None:
        return f"{case}: {FIGURES.name} has no figure: add it with --update"
    changes = [f"{what} {figure.get(what)} -> {seen[what]}" for what in COUNTS if seen[what] != figure.get(what)]
    if not changes:
        return ""
    return (
        f"{case}: {', '.join(changes)}. When that is right, write the new figures with --update, and say in the commit"
        " message what a larger one buys."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="pollux-device-gate")
    parser.add_argument("--junit", type=Path, help="write the outcome there")
    parser.add_argument("--update", action="store_true", help="make what is counted the new figures")
    arguments = parser.parse_args()
    counted = count(arguments.program)
    if arguments.update:
        lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(counts)}" for case, counts in counted.items())
        FIGURES.write_text(f"{{\n{lines}\n}}\n")
    figures: Counted = json.loads(FIGURES.read_text())
    suite = ElementTree.Element("testsuite", name="device-gate")
    failed = False
    for case in dict.fromkeys((*counted, *figures)):
        seen = counted.get(case)
        if seen:
            print(f"{case:<26}" + "".join(f"{seen[what]:>5} {what}" for what in COUNTS))
        entry = ElementTree.SubElement(suite, "testcase", classname="device-gate", name=case)
        if wrong := complaint(case, seen, figures.get(case)):
            failed = True
            print(wrong)
            ElementTree.SubElement(entry, "failure", message=wrong)
    if arguments.junit:
        ElementTree.ElementTree(suite).write(arguments.junit, encoding="utf-8", xml_declaration=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
