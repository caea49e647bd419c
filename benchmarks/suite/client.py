"""One of several client processes: ``python -m suite.client SYSTEM ADDRESS SECONDS WINDOW``.

Says "ready", waits for a line, submits windows of no-ops, and prints its figures as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from suite import tasks
from suite.measures import windows_for
from suite.systems import CLASSES


def main(name: str, address: str, seconds: str, window: str) -> None:
    """Be a client."""
    with tempfile.TemporaryDirectory() as directory:
        system = CLASSES[name](Path(directory), address=address)
        system.load()
        system.start()
        submit = system.prepare(tasks.noop)
        windows_for(system, submit, 0.0, int(window))
        print("ready", flush=True)
        sys.stdin.readline()
        number, _, begin, end = windows_for(system, submit, float(seconds), int(window))
        print(json.dumps({"tasks": number, "begin": begin, "end": end}), flush=True)
        system.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
