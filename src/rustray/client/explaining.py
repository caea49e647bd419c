"""`rustray.explain`: why a task is where it is, for programs that do not await."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from rustray.client import context
from rustray.client.generators import RefGenerator
from rustray.client.refs import Batch, TaskRef
from rustray.common.errors import GetTimeout, TaskNotFound
from rustray.common.ids import split_task_id
from rustray.common.ids import task_id as joined
from rustray.task.state import TaskState
from rustray.task.views import Explanation

_LOOK_S: Final = 0.02
_IN_TASK: Final = (
    "rustray.explain() is for programs; of a task that a task has handed in, "
    "`rustray tasks explain ID` tells, with its task_id"
)
_NOT_TAKEN: Final = (
    "the head has not taken it yet: it takes no more for now, and this program hands it in again "
    "and again"
)


def explain(task: TaskRef[Any] | RefGenerator[Any] | str, *, timeout: float = 10.0) -> Explanation:
    """Say why a task is where it is: what it waits for, and what would get it on.

    ``print(rustray.explain(ref))`` shows what ``rustray tasks explain`` does.

    Args:
        task: A reference, what a generator task has returned, or the id of any task of the cluster
            that the program may see.
        timeout: Seconds to wait for the head's answer.

    Raises:
        TaskNotFound: the head does not know it (any more).
        HeadUnavailable: the head cannot be reached.
        GetTimeout: there was no answer in time.
        RuntimeError: there is no cluster to ask, or this is a task.
        ValueError: not a task id.
        TypeError: neither a reference nor a text.
    """
    runtime = context.current_runtime()
    if runtime is None:
        context.refuse_in_executor(_IN_TASK)
        raise RuntimeError("there is no cluster to ask: call rustray.init() first")
    if isinstance(task, RefGenerator):
        task = task.completed()
    if not isinstance(task, TaskRef | str):
        raise TypeError(
            f"expected one task reference or id, not {type(task).__name__}: {task!r:.80}"
        )
    name = task.task_id if isinstance(task, TaskRef) else joined(*split_task_id(task))
    until_s = time.monotonic() + timeout
    while True:
        is_on_its_way = isinstance(task, TaskRef) and _is_on_its_way(task)
        try:
            return runtime.explain(name, max(until_s - time.monotonic(), _LOOK_S))
        except TaskNotFound:
            if not is_on_its_way:
                raise
        except TimeoutError:
            raise GetTimeout(f"the head has not answered within {timeout:g} s; ask again") from None
        if time.monotonic() >= until_s:
            return Explanation(name, TaskState.QUEUED, _NOT_TAKEN)
        time.sleep(_LOOK_S)


async def aexplain(
    task: TaskRef[Any] | RefGenerator[Any] | str,
    *,
    timeout: float = 10.0,  # noqa: ASYNC109 - as in explain
) -> Explanation:
    """`explain` for coroutines."""
    return await asyncio.to_thread(explain, task, timeout=timeout)


def _is_on_its_way(task: TaskRef[Any]) -> bool:
    """Whether the head may not have it yet."""
    task = task._batch.origin_of(task)
    batch = task._batch
    return type(batch) is Batch and not task.is_done and task._index not in batch.settled
