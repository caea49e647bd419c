"""Values that stay with workers, for those who ask the head: where they are, or they themselves."""

from __future__ import annotations

from dataclasses import replace

from rustray.common.errors import CommunicationError, ObjectLost, TaskExpired
from rustray.head.core import HeadCore
from rustray.head.driver import HeadDriver
from rustray.head.item_reads import LONGEST_WAIT_S
from rustray.head.output_service import parse_id
from rustray.objects.segment import Segment
from rustray.rpc.api import RawResult
from rustray.scheduler.events import ValueWanted
from rustray.scheduler.placed import object_views, unknown
from rustray.scheduler.value_commands import FreeObject
from rustray.scheduler.view import TaskSnapshot
from rustray.security.roles import Caller
from rustray.task.place import Place
from rustray.task.state import TaskState
from rustray.task.views import ObjectTotal, ObjectView


class ValueService:
    """The part of the head's service that knows of results."""

    _core: HeadCore
    _driver: HeadDriver
    _caller: Caller

    def _snapshot(self, prefix: bytes, sequence: int) -> TaskSnapshot:
        raise NotImplementedError

    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        """Wait for a task's end; a value that stays with a worker is brought here first."""
        return await self._wait(task_id, timeout_s, takes_places=False, missing="")

    async def locate_result(
        self, task_id: str, timeout_s: float | None, missing: str = ""
    ) -> RawResult:
        """Wait for a task's end; of a value that stays with a worker say where it is."""
        return await self._wait(task_id, timeout_s, takes_places=True, missing=missing)

    async def _wait(
        self, task_id: str, timeout_s: float | None, *, takes_places: bool, missing: str
    ) -> RawResult:
        prefix, sequence = parse_id(task_id)
        driver = self._driver
        wait_s = min(LONGEST_WAIT_S if timeout_s is None else timeout_s, LONGEST_WAIT_S)
        deadline = driver.now() + wait_s
        asked = ""
        while True:
            found = self._snapshot(prefix, sequence)
            left_s = deadline - driver.now()
            place = found.place
            is_here = place is None or (
                takes_places and not found.is_lost and place.object_id != missing
            )
            if place is not None and not is_here and place.object_id != asked:
                asked = place.object_id  # made again, it is another one
                # Also where nobody waits: whoever asks again and again has it in the end.
                driver.handle(ValueWanted(prefix, sequence, place.object_id))
                continue  # it may be under way again by now
            if (found.state.is_terminal and is_here) or left_s <= 0:
                await driver.safe(found.durability)  # what could be taken back is not told
                if place is not None and not is_here:
                    found = replace(found, payload=b"", state=TaskState.RUNNING, place=None)
                return await self._answer(found)
            if place is not None and found.trouble:
                raise ObjectLost(found.trouble)
            await self._core.waiters.wait(prefix, sequence, left_s)

    async def _answer(self, found: TaskSnapshot) -> RawResult:
        if found.stored is not None:
            column = await self._driver.read_results(found.stored)
            found = replace(found, payload=column[0])
        result = raw_result(found)
        if found.place is None or not result.payload:
            return result
        token = self._driver.object_token(found.place, self._caller.subject)
        return replace(result, is_placed=True, object_token=token)

    async def list_objects(self, limit: int) -> tuple[list[ObjectView], list[ObjectTotal]]:
        """List the largest values that stay with workers, and what each worker keeps."""
        return object_views(self._driver.scheduler.state, self._driver.now(), limit)

    async def fetch_object(self, place: Place, token: str) -> Segment:
        """See `HeadApi`; who is in the head's process can only go through the head."""
        raise CommunicationError(f"no way to worker {place.worker_id} but through the head")


def unneeded(driver: HeadDriver, worker_id: str, object_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of a worker's objects it may let go of now; of others it is told in time."""
    names = unknown(driver.scheduler.state, worker_id, object_ids)
    if driver.is_safe:
        return names
    for name in names:
        driver.free(FreeObject(worker_id, name))
    return ()


def raw_result(found: TaskSnapshot) -> RawResult:
    """Return a task as it is told.

    Raises:
        TaskExpired: its result has expired.
    """
    if found.state.is_terminal and found.payload is None:
        raise TaskExpired(
            f"the result of task {found.task_id} has expired "
            "(it was kept for its time to live, or as long as memory allowed)"
        )
    progress = found.progress
    return RawResult(
        found.task_id,
        found.state,
        found.codec,
        found.payload or b"",
        found.worker_id,
        found.attempts,
        None if progress is None else progress.fraction,
        "" if progress is None else progress.message,
        num_returns=found.num_returns,
    )
