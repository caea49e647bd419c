"""`HeadNode`: a head node, seen from an asyncio program."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, Literal, overload

from rustray.client.following import event_filter, follow
from rustray.client.head_map import MapCalls
from rustray.client.letters import LetterCalls
from rustray.client.logs import LogCalls
from rustray.client.node_coordination import CoordinationCalls
from rustray.client.stream_calls import StreamCalls
from rustray.client.submission import (
    Submitter,
    back_off,
    decode_result,
    raise_first_refusal,
)
from rustray.client.waiters import deadline_after
from rustray.common.errors import (
    GetTimeout,
    HeadUnavailable,
    RustRayError,
    TaskNotFound,
)
from rustray.common.ids import TaskId, split_task_id
from rustray.rpc.api import HeadApi, TaskFilter
from rustray.task.result import TaskEvent, TaskResult
from rustray.task.spec import TaskSpec
from rustray.task.state import TaskState
from rustray.task.views import (
    ClusterStatus,
    Explanation,
    TaskPage,
    TaskView,
    WorkerView,
)

_PAGE: Final = 1_000


class HeadNode(LetterCalls, LogCalls, CoordinationCalls, StreamCalls, MapCalls):
    """A connection to a head; use it as ``async with HeadNode(host, port) as head``.

    Every method raises a `RustRayError`: `HeadUnavailable` where no head answers,
    `AuthenticationError` and `AuthorizationError` for the token.

    Args:
        host: Name or address of the head.
        port: Its port.
        token: Access token; None takes ``RUSTRAY_TOKEN``, ``RUSTRAY_TOKEN_FILE``, or the
            local state directory's.
        ca_file: The head's CA certificate; None takes the local state directory's.
        allow_pickle: Decode results of functions that travelled as code. A pickle can run code
            here: say yes only where nobody else may hand in such tasks.
        connect_timeout_s: How long to wait for the head at first.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        allow_pickle: bool = False,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._address = f"{host}:{port}"
        self._token = token
        self._ca_file = ca_file
        self._allow_pickle = allow_pickle
        self._connect_timeout_s = connect_timeout_s
        self._api: HeadApi | None = None
        self._hangup: Any = None
        self._submitter = Submitter()

    @classmethod
    def over(cls, api: HeadApi) -> HeadNode:
        """Make one over an api that exists, such as an embedded head's; it is not closed."""
        node = cls()
        node._api = api
        return node

    async def connect(self) -> None:
        """Connect; ``async with`` does it."""
        if self._api is not None:
            return
        # Imported late: this is where gRPC comes in, which an embedded cluster never loads.
        from rustray.client.access import resolve
        from rustray.rpc.head_client import connect

        access = resolve(self._address, self._token, self._ca_file)
        client = await connect(
            access.address,
            token_source=access.token_source,
            ca_pem=access.ca_pem,
            insecure=access.insecure,
            timeout_s=self._connect_timeout_s,
        )
        self._api, self._hangup = client, client.close

    async def close(self) -> None:
        """Disconnect; tasks go on, locks are free. Idempotent."""
        await self._end_coordination()
        hangup, self._hangup = self._hangup, None
        if hangup is not None:
            self._api = None
            await hangup()

    async def __aenter__(self) -> HeadNode:
        await self.connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<HeadNode {self._address}>"

    # ---- tasks ------------------------------------------------------------------------

    async def submit_task(self, spec: TaskSpec) -> TaskId:
        """Hand in one task.

        Returns:
            Its id: 32 hex digits, good in any program that may talk to the head.

        Raises:
            FunctionNotFound: no worker offers the function (near names listed).
            PayloadError: an argument cannot travel, or does not fit the signature.
            ResourceNotAvailable: no worker could ever run it.
            ResourceExhausted: the head takes no more for now.
            DurabilityNotAvailable: the head keeps no journal, and the task asks for one.
        """
        return (await self.submit_tasks_batch([spec]))[0]

    @overload
    async def submit_tasks_batch(
        self, specs: Iterable[TaskSpec], *, return_errors: Literal[False] = False
    ) -> list[TaskId]: ...
    @overload
    async def submit_tasks_batch(
        self, specs: Iterable[TaskSpec], *, return_errors: Literal[True]
    ) -> list[TaskId | RustRayError]: ...
    async def submit_tasks_batch(
        self, specs: Iterable[TaskSpec], *, return_errors: bool = False
    ) -> Any:
        """Hand in many tasks with one call; each gets its own verdict.

        Args:
            specs: The tasks.
            return_errors: Put the error of a refused task in its place, instead of raising
                the first one. Either way the others are accepted and run.

        Returns:
            Their ids, in order.

        Raises:
            RustRayError: the first refusal (see `submit_task`); its notes name the task and
                the ids of those that were accepted.
            TypeError: ``specs`` holds something else, or is no list; nothing is handed in.
        """
        answers = await self._submitter.submit(self._connected, specs)
        if not return_errors:
            raise_first_refusal(answers)
        return answers

    async def get_task_result(
        self, task_id: str, timeout_s: float | None = None
    ) -> TaskResult | None:
        """Wait until a task has ended.

        While the head cannot be reached, the wait goes on.

        Args:
            task_id: 32 hex digits.
            timeout_s: Seconds to wait; None waits for ever.

        Returns:
            The result, also of a task that failed (see `TaskResult.unwrap`); None where the
            head knows no such task, or its result has expired.

        Raises:
            GetTimeout: the time passed; the task goes on.
            ValueError: not a task id, or the timeout is negative or no number.
        """
        split_task_id(task_id)
        deadline = deadline_after(timeout_s, "timeout_s")
        attempt = 0
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                raw = await self._connected.get_result(task_id, left)
            except TaskNotFound:
                return None
            except HeadUnavailable:
                if left == 0.0:
                    raise
                attempt = await back_off(attempt, left)
                continue
            attempt = 0
            if raw.state.is_terminal:
                return decode_result(raw, self._allow_pickle)
            if left is not None and left <= 0.0:
                raise GetTimeout(
                    f"task {task_id} had not ended after {timeout_s:g} s (it is "
                    f"{raw.state.name.lower()}); it goes on, ask again later"
                )

    async def cancel_task(self, task_id: str, *, force: bool = False) -> TaskState:
        """Cancel a task; one that has ended stays as it is.

        Args:
            task_id: 32 hex digits.
            force: Kill its executor instead of interrupting it.

        Returns:
            Its state afterwards: CANCELLING until the worker confirms.

        Raises:
            TaskNotFound: no such task.
            ValueError: not a task id.
        """
        split_task_id(task_id)
        verdict = (await self._connected.cancel([task_id], force))[0]
        if verdict.error is not None:
            raise verdict.error
        assert verdict.state is not None  # there is one where there is no error
        return verdict.state

    async def explain(self, task_id: str) -> Explanation:
        """Say why a task is where it is.

        Raises:
            TaskNotFound: no such task.
        """
        split_task_id(task_id)
        return await self._connected.explain(task_id)

    async def list_tasks(
        self,
        *,
        states: Sequence[TaskState] = (),
        function: str = "",
        worker_id: str = "",
        limit: int | None = None,
    ) -> list[TaskView]:
        """List tasks in order of acceptance, all pages of them.

        Args:
            states: Only those in one of these states.
            function: Only those of this function.
            worker_id: Only those of this worker.
            limit: At most so many.
        """
        found: list[TaskView] = []
        cursor = ""
        while limit is None or len(found) < limit:
            size = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page = await self.list_task_page(
                TaskFilter(tuple(states), function, worker_id), cursor, size
            )
            found.extend(page.tasks)
            cursor = page.next_cursor
            if not cursor:
                break
        return found

    async def list_task_page(
        self, where: TaskFilter, cursor: str = "", limit: int = 100
    ) -> TaskPage:
        """List one page of tasks; ``cursor`` is the `TaskPage.next_cursor` before it, or ""."""
        return await self._connected.list_tasks(where, cursor, limit)

    async def subscribe(
        self,
        *,
        task_ids: Sequence[str] = (),
        functions: Sequence[str] = (),
        states: Sequence[TaskState] = (),
        cursor: int = -1,
    ) -> AsyncIterator[TaskEvent]:
        """Follow the events of tasks; a lost connection is resumed where it broke off.

        Args:
            task_ids: Only of these tasks.
            functions: Only of these functions.
            states: Only entries into these states, and nothing that tasks say of themselves.
            cursor: Revision after which to start (`TaskEvent.revision` of the last event
                that was seen); -1 means from now on.

        Raises:
            RustRayError: the head no longer keeps what followed the cursor.
            ValueError: the cursor is no revision, or a state is none.
        """
        where = event_filter(task_ids, functions, states, cursor)
        async for event in follow(lambda: self._connected, where):
            yield event

    # ---- the cluster ------------------------------------------------------------------

    async def list_workers(self) -> list[WorkerView]:
        """List the workers."""
        return await self._connected.list_workers()

    async def get_status(self) -> ClusterStatus:
        """Return the cluster at a glance."""
        return await self._connected.status()

    async def drain_worker(self, worker_id: str) -> None:
        """Have a worker finish what runs, give back the rest, and leave.

        Raises:
            WorkerNotFound: no such worker.
        """
        await self._connected.drain_worker(worker_id)

    # ---- inside -----------------------------------------------------------------------

    @property
    def _connected(self) -> HeadApi:
        if self._api is None:
            raise HeadUnavailable(
                "not connected: use `async with HeadNode(...) as head`, or await head.connect()"
            )
        return self._api
