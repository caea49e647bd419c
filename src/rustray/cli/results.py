"""Results of tasks: waiting for them, and showing them."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from rustray.cli import exits
from rustray.cli.output import Output, dumps, is_terminal
from rustray.cli.patience import Patience
from rustray.common.errors import GetTimeout, RustRayError
from rustray.rpc.api import HeadApi, RawResult
from rustray.task.codec import decode_value
from rustray.task.failures import decode_failure
from rustray.task.spec import Codec
from rustray.task.state import TaskState

_POLL_S: Final = 30.0
_QUIET_S: Final = 1.0
"""A wait shorter than this shows no progress bar."""
_EXPLAIN_S: Final = 3.0
"""A task that still waits to run after this time is explained."""


async def wait_for_result(api: HeadApi, task_id: str, patience: Patience) -> RawResult:
    """Wait until a task has ended.

    Raises:
        GetTimeout: the limit passed first; the task goes on.
        RustRayError: as `HeadApi.get_result`.
    """
    while True:
        left_s = patience.left_s()
        found = await api.get_result(task_id, _POLL_S if left_s is None else min(_POLL_S, left_s))
        if found.state.is_terminal:
            return found
        patience.heard()
        if patience.left_s() == 0.0:
            raise GetTimeout(
                f"task {task_id} has not ended after {patience.timeout_s:g} s (it is "
                f"{found.state.name}); it goes on: rustray tasks get {task_id} --wait"
            )


async def wait_with_progress(
    api: HeadApi, task_id: str, patience: Patience, output: Output
) -> RawResult:
    """`wait_for_result`, with a progress bar on stderr if a person waits for long."""
    waiting = asyncio.create_task(wait_for_result(api, task_id, patience))
    telling = asyncio.create_task(_tell_why(api, task_id, output))
    try:
        if output.as_json or not is_terminal(sys.stderr):
            return await waiting
        done, _ = await asyncio.wait({waiting}, timeout=_QUIET_S)
        if done:
            return await waiting
        return await _show_progress(waiting, task_id, patience.left_s())
    except asyncio.CancelledError:
        output.note(f"task {task_id} goes on: rustray tasks get {task_id} --wait, or tasks cancel")
        raise
    finally:
        waiting.cancel()
        telling.cancel()


async def _tell_why(api: HeadApi, task_id: str, output: Output) -> None:
    """Say once, after a while, why a task does not run."""
    await asyncio.sleep(_EXPLAIN_S)
    try:
        found = await api.explain(task_id)
    except RustRayError:
        return
    if found.state is TaskState.QUEUED:
        advice = f"; {found.advice}" if found.advice else ""
        output.note(f"task {task_id} waits: {found.summary.rstrip('.')}{advice}")


async def _show_progress(
    waiting: asyncio.Task[RawResult], task_id: str, timeout_s: float | None
) -> RawResult:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("task {task.description}"), BarColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        bar = progress.add_task(task_id, total=timeout_s)
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=0.2)
            if done:
                return await waiting
            if timeout_s is not None:
                progress.advance(bar, 0.2)


def result_as_dict(result: RawResult) -> dict[str, Any]:
    """Return a result as `--json` shows it."""
    value, error = read_result(result)
    return {
        "task_id": result.task_id,
        "state": result.state.name,
        "value": value,
        "error": error,
        "worker_id": result.worker_id or None,
        "attempts": result.attempts,
        "progress": result.progress,
        "message": result.message or None,
    }


def read_result(result: RawResult) -> tuple[Any, dict[str, Any] | None]:
    """Decode a result to (value, error); data only.

    A pickle is described, not loaded: loading runs code that a worker chose, with the rights
    of whoever looks.
    """
    if not result.state.is_terminal:
        return None, None
    if result.state is not TaskState.SUCCEEDED:
        info = decode_failure(result.payload)
        error: dict[str, Any] = {"code": info.code, "message": info.message}
        if info.error_type:
            error["error_type"] = info.error_type
        if info.origin:
            error["origin"] = info.origin
        if info.traceback:
            error["traceback"] = info.traceback
        return None, error
    if result.codec == Codec.PICKLE:
        return f"<a pickled Python object, {len(result.payload)} bytes: get it from Python>", None
    try:
        return decode_value(Codec(result.codec), result.payload), None
    except ValueError:
        return f"<{len(result.payload)} bytes in an unknown encoding>", None
    except RustRayError as error:
        return None, {"code": error.code, "message": str(error)}


def show_result(result: RawResult, output: Output) -> int:
    """Print a result, and return the exit code that it means."""
    shown = result_as_dict(result)
    output.value(shown, lambda out: _render(shown, out))
    if result.state.is_terminal and result.state is not TaskState.SUCCEEDED:
        return exits.TASK_FAILED
    return exits.OK


def _progress_text(shown: dict[str, Any]) -> str:
    if shown["progress"] is None:
        return ""
    words = (shown["message"] or "").split()
    return " ".join([f" {shown['progress']:.0%}", *words])


def _render(shown: dict[str, Any], output: Output) -> None:
    error = shown["error"]
    if error is not None:
        if error.get("traceback"):
            output.note(error["traceback"].rstrip())
        what = f"task {shown['task_id']} {shown['state'].lower()}"
        if error.get("origin"):
            what += f" and did not run: it needs the result of task {error['origin']}, which failed"
        output.note(f"{what}: {error['message']}")
    elif shown["state"] != TaskState.SUCCEEDED.name:
        output.text(f"{shown['task_id']} {shown['state']}{_progress_text(shown)}")
    elif isinstance(shown["value"], str):
        output.text(shown["value"])
    else:
        output.text(dumps(shown["value"]))
