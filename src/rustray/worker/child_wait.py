"""How an executor waits for its next chunk: while they come quickly, it looks before it sleeps.

To be put to sleep, and woken on a core that has gone idle meanwhile, costs a task that comes alone
more than anything else on its way. So an executor of an embedded cluster that has not been kept
waiting of late looks for the next chunk a while. One that gets a chunk now and then sleeps at once,
and so does one of a worker that is a process of its own: between two of its tasks, head, worker and
client need the cores more.
"""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Final

from rustray.worker.given import ROOM, Ancillary

LOOK_S: Final = 700e-6
"""How long an executor looks.

One task at a time, an embedded cluster brings the next one after some 240 us, two at a time after
400 us, if its executors are awake; to the sleeping it takes 200 us longer. One at a time a task
took 268 us, and 434 with executors that sleep, two at a time 410 and 670; in a burst it was the
same (medians of interleaved runs). With head, worker and client as processes of their own, 2.5 ms
would be needed: one at a time gained nothing then, and two at a time took 17 % longer.
"""
LOOK_AFTER: Final = 3
"""Small messages in a row that have come within `LOOK_S`, before it looks for another one."""
SMALL_BYTES: Final = 32 << 10
MAX_LOOKS: Final = 5_000
"""Also where a task has stopped the clock, as tests do. Each takes a microsecond at least."""
_may_look = False


def look(*, is_wanted: bool) -> None:
    """Say whether the executors that are forked from this process may look."""
    global _may_look
    _may_look = is_wanted


class Mailbox:
    """The receiving end of a data channel.

    Attributes:
        buffer: Where what has come is.
        quick: How many small messages in a row have come within `LOOK_S`.
    """

    def __init__(self, data: socket.socket, room: int) -> None:
        """Prepare.

        Args:
            data: The channel; it blocks.
            room: Bytes that are taken at a time.
        """
        self.buffer = memoryview(bytearray(room))
        self.quick = 0
        self._receive = data.recvmsg_into
        poll = select.poll()
        poll.register(data.fileno(), select.POLLIN)
        self._poll = poll.poll

    def receive(self) -> tuple[int, Ancillary]:
        """Wait for data.

        Returns:
            How many bytes are in ``buffer``, 0 at the end; and what came beside them.
        """
        clock, poll = time.perf_counter, self._poll
        until = clock() + LOOK_S
        if _may_look and self.quick >= LOOK_AFTER:
            for _ in range(MAX_LOOKS):
                if poll(0) or clock() >= until:
                    break
                os.sched_yield()
        count, beside, _, _ = self._receive((self.buffer,), ROOM, socket.MSG_CMSG_CLOEXEC)
        is_quick = count <= SMALL_BYTES and clock() < until
        self.quick = self.quick + 1 if is_quick else 0
        return count, beside
