"""Run by test_client.py in a process of its own: eventlet must patch Python before anything else is imported.

Arguments: address, ca, certificate, key, address of a listener that never answers.
"""

import eventlet

eventlet.monkey_patch()

import pathlib  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

from pollux import errors  # noqa: E402
from pollux.client import Client, Settings  # noqa: E402


def main() -> None:
    address, ca, certificate, key, silent = sys.argv[1:]
    files = {"ca": pathlib.Path(ca), "certificate": pathlib.Path(certificate), "key": pathlib.Path(key)}
    longest_gap_s = 0.0
    ended = False

    def tick() -> None:
        nonlocal longest_gap_s
        last = time.monotonic()
        while not ended:
            eventlet.sleep(0.02)
            longest_gap_s, last = max(longest_gap_s, time.monotonic() - last), time.monotonic()

    def give_up() -> str:
        try:
            Client(Settings(address=silent, deadline_ms=4000, **files)).describe()
        except errors.Unreachable:
            return "gave up"
        return "was answered"

    client = Client(Settings(address=address, **files))
    ticker = eventlet.spawn(tick)
    waiting = eventlet.spawn(give_up)
    pool = eventlet.GreenPool(20)
    served = list(pool.imap(lambda _: client.describe().host_id, range(200)))
    print("served", len(served))
    print(waiting.wait())
    ended = True
    ticker.wait()
    print(f"longest gap {longest_gap_s:.2f} s")


main()
