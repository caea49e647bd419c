"""The zygote's own end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from rustray.worker.zygote import Zygote


@pytest.fixture
def _signals() -> Iterator[None]:
    """Give this process its handling of children back."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_signals")
def test_a_zygote_that_ends_is_woken_by_nobody() -> None:
    """Its descriptor for signals goes before the socket behind it.

    Regression: an executor that died last made a worker's log end in a traceback.
    """
    agent, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.close()
    with control:
        Zygote(control).serve()
    assert signal.set_wakeup_fd(-1) == -1
