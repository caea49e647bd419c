"""The part of `rustray.HeadNode` that is about generator tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from rustray.client.submission import back_off, decode_item, decode_result
from rustray.common.errors import HeadUnavailable
from rustray.common.ids import split_task_id
from rustray.rpc.api import HeadApi


class StreamCalls:
    """Reads the items of generators, by the ids of their tasks."""

    _allow_pickle: bool

    @property
    def _connected(self) -> HeadApi:
        raise NotImplementedError

    async def stream_task_result(self, task_id: str) -> AsyncIterator[Any]:
        """Yield the items of a generator task as they arrive.

        The task was handed in with ``TaskSpec(num_returns="streaming")``. Items that are passed are
        consumed: the generator goes on, and they are kept no longer. While the head cannot be
        reached, the wait goes on.

        Args:
            task_id: 32 hex digits.

        Raises:
            TaskNotFound: no such task, or its result has expired.
            PayloadError: it is no generator task, or an item cannot be decoded here.
            ObjectLost: somebody else has consumed its items.
            RustRayError: the typed error that the generator ended with, after its items.
            ValueError: not a task id.
        """
        split_task_id(task_id)
        count = attempt = 0
        while True:
            try:
                raw, items = await self._connected.get_items(task_id, count, None)
            except HeadUnavailable:
                attempt = await back_off(attempt, None)
                continue
            attempt = 0
            for item in items:
                count += 1
                yield decode_item(raw, item, self._allow_pickle)
            if raw.state.is_terminal and not items:
                decode_result(raw, self._allow_pickle).unwrap()
                return
