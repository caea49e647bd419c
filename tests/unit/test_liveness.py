"""Whether a worker's process on this host is gone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from rustray.head.liveness import is_process_gone


def test_a_process_is_gone_when_the_kernel_lists_it_no_more() -> None:
    """One that runs is not; one that has ended is, also before its parent has asked for it."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_process_gone(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_process_gone(child.pid)
    child.communicate()
    assert is_process_gone(child.pid)


def test_nothing_is_known_without_a_descriptor_to_look_with() -> None:
    """Regression (a soak): the look failed, and its traceback was all that came of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open("rb") as lowest:
        number = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        gone = is_process_gone(os.getpid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not gone
