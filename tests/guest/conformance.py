"""What ``iscsi-test-cu`` said, test by test.

Its own summary counts a test that it skipped as passed, so that the lines between a test's name and its
end have to be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"
# Of two outcomes of one test the later one here counts.
WEIGHT = (SKIPPED, PASSED, FAILED)

_SUITE = re.compile(r"Suite: (\S+)")
_TEST = re.compile(r"\s+Test: (\S+) \.\.\.(.*)")
_END = re.compile(r"(?:^|\.\.\.)\s*(passed|FAILED)$")


def results(lines: Iterable[str]) -> dict[str, str]:
    """The outcome of each ``suite.test`` in the tool's output; one that did not end has failed."""
    found: dict[str, str] = {}
    suite, test, skipped = "", "", False
    for line in lines:
        if match := _SUITE.match(line):
            suite = match[1]
            continue
        if match := _TEST.match(line):
            test, skipped = f"{suite}.{match[1]}", False
            found[test] = FAILED
            text = match[2]
        else:
            text = line
        if not test:
            continue
        skipped = skipped or "[SKIPPED]" in text
        if match := _END.search(text.strip()):
            found[test] = FAILED if match[1] == "FAILED" else SKIPPED if skipped else PASSED
            test = ""
    return found
