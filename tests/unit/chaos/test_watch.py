"""The watch tells when a draining worker's executors end, and nothing of those that live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from chaos.history import read
from chaos.watch import Watch
from helpers.cluster import Node
from helpers.waiting import eventually

_SLEEPS = "[sys.executable, '-c', 'import time; time.sleep(60)']"
_STARTS = f"subprocess.Popen({_SLEEPS})"
_ZYGOTE = f"import subprocess, sys; two = {_STARTS}, {_STARTS}; two[0].wait(); two[1].wait()"
_WORKER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_ZYGOTE!r}]).wait()"


def test_ends_of_executors_are_written_down_when_they_are_seen(tmp_path: Path) -> None:
    """One is killed: it alone is told; then its worker goes, and with it the other."""
    log = tmp_path / "worker.log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", _WORKER], stdout=output, stderr=output)
    node, watch = Node("worker-1.1", process, log), Watch(tmp_path)

    def told() -> list[tuple[str, int]]:
        found = [record for record in read(tmp_path) if record["k"] == "exec_gone"]
        return [(record["w"], record["pid"]) for record in found]

    try:
        eventually(lambda: len(node.executor_pids()) == 2, 10)
        first, second = sorted(node.executor_pids())
        watch.follow("worker-1.1", node)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: told() == [("worker-1.1", first)], 10)
        os.kill(second, signal.SIGKILL)
        eventually(lambda: told()[1:] == [("worker-1.1", second)], 10)
    finally:
        watch.close()
        for pid in node.executor_pids():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
