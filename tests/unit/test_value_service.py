"""`get_result` of a value that stays with a worker, while that is lost and made again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from helpers.scheduling import PREFIX, Bench
from helpers.waiting import aeventually
from rustray.common.ids import SessionPrefix, task_id
from rustray.head.value_service import ValueService
from rustray.head.waits import ResultWaiters
from rustray.scheduler import commands as c
from rustray.scheduler.view import TaskSnapshot
from rustray.task.spec import TaskClass

STAYS = TaskClass("f", results_stay=True)


class Service(ValueService):
    """The service on a scheduler alone."""

    def __init__(self, bench: Bench) -> None:
        waiters = ResultWaiters()

        async def safe(_level: object) -> None:
            pass

        def tell() -> None:
            for command in bench.commands:
                if isinstance(command, c.DeliverOutcome):
                    waiters.on_outcome(command)

        self.bench, self.tell = bench, tell
        self._core: Any = SimpleNamespace(waiters=waiters)
        self._driver: Any = SimpleNamespace(
            now=lambda: bench.now, handle=bench.feed, safe=safe, object_token=lambda *_: "token"
        )
        self._caller: Any = SimpleNamespace(subject="me")

    def _snapshot(self, prefix: bytes, sequence: int) -> TaskSnapshot:
        found = self.bench.scheduler.task(prefix, sequence)
        assert found is not None
        return found


async def test_who_waits_for_a_value_that_is_made_again_gets_the_new_one() -> None:
    """Bug: it had asked for the old one, never asked for the new, and waited up to five minutes."""
    bench = Bench()
    first, second = bench.join("w-1", cpus=1), bench.join("w-2", cpus=1)
    (number,) = bench.submit(1, STAYS)
    holder, other = (first, second) if first.held else (second, first)
    bench.end_placed(holder, next(iter(holder.held)), 0)
    service = Service(bench)
    name = task_id(SessionPrefix(PREFIX), number)
    waiting = asyncio.create_task(service.get_result(name, 60.0))
    await asyncio.sleep(0)
    bench.die(holder)
    new = bench.end_placed(other, next(iter(other.held)), 0)
    service.tell()
    await aeventually(lambda: bool(other.asked), 5.0)
    assert other.asked == [new]
    bench.surrender(other, new, b"made again")
    service.tell()
    assert (await asyncio.wait_for(waiting, 5.0)).payload == b"made again"
