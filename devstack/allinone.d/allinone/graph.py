"""Runs tasks that wait for one another, several at a time: this is how two cores start a dozen services."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence

from .errors import AllInOneError


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    after: Sequence[str]
    action: Callable[[], object]


def run(tasks: Sequence[Task], workers: int) -> None:
    """Run every task once all that it comes `after` are done. At the first failure nothing new begins; it is raised
    when those that had begun are over."""
    waiting = {task.name: task for task in tasks}
    unknown = {name for task in tasks for name in task.after} - waiting.keys()
    if unknown:
        raise ValueError(f'tasks wait for what is no task: {sorted(unknown)}')
    done: set[str] = set()
    running: dict[concurrent.futures.Future[object], str] = {}
    failure: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        while True:
            ready = [task for task in waiting.values() if done.issuperset(task.after)]
            for task in ready if failure is None else []:
                if len(running) >= workers:
                    break
                del waiting[task.name]
                running[pool.submit(task.action)] = task.name
            if not running:
                break
            over, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in over:
                done.add(running.pop(future))
                failure = failure or future.exception()
    if failure:
        raise failure
    if waiting:
        raise AllInOneError(f'these steps wait for one another: {sorted(waiting)}')
