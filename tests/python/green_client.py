"""Run by test_client.py in a process of its own: eventlet must patch Python before anything else is imported.

Arguments: address, ca, certificate, key, address of a listener that never answers.
"""

import eventlet

eventlet.monkey_patch()

import pathlib  # noqa: E402
import sys  # noqa: E402

from pollux import errors  # noqa: E402
from pollux.client import Client, Settings  # noqa: E402


def main() -> None:
    address, ca, certificate, key, silent = sys.argv[1:]
    files = {"ca": pathlib.Path(ca), "certificate": pathlib.Path(certificate), "key": pathlib.Path(key)}
    ticks = 0
    ended = False

    def tick() -> None:
        nonlocal ticks
        while not ended:
            ticks += 1
            eventlet.sleep(0.02)

    def give_up() -> str:
        try:
            Client(Settings(address=silent, deadline_ms=1000, **files)).describe()
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
    print("ticks", ticks)


main()
