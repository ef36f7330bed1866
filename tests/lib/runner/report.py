"""The end of a run: failed tests by name, a table of suites, and the line that counts all tests."""

from __future__ import annotations

from allinone.progress import Progress

from runner.suites import Outcome


def close(outcomes: list[Outcome], progress: Progress) -> int:
    """Print the closing lines; the exit status: 0 when tests ran and none failed."""
    for outcome in outcomes:
        for failure in outcome.failures:
            progress.plain(f"FAILED {failure}")
    progress.plain(_table(outcomes, progress.elapsed_s()))
    passed = sum(outcome.passed for outcome in outcomes)
    failed = sum(outcome.failed for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    progress.plain(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


def _table(outcomes: list[Outcome], total_s: float) -> str:
    rows: list[tuple[str, ...]] = [("suite", "seconds", "passed", "failed", "skipped", "")]
    for outcome in outcomes:
        counts = (str(count) for count in (outcome.passed, outcome.failed, outcome.skipped))
        rows.append((outcome.name, f"{outcome.seconds:.1f}", *counts, outcome.note))
    rows.append(("all", f"{total_s:.1f}", "", "", "", "preparation included"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]).rstrip()
        for row in rows
    )
