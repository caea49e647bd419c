"""Tasks for registered functions: from `TaskSpec` to the head, and from its answer to a result."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from rustray.client.failures import error_of
from rustray.common.durability import parse_durability
from rustray.common.errors import HeadUnavailable, PayloadError, RustRayError
from rustray.common.ids import PREFIX_BYTES, TaskId, split_task_id, task_id
from rustray.rpc.api import HeadApi, RawResult, SubmitItem, SubmitVerdict
from rustray.task.class_of import class_of
from rustray.task.codec import decode_value, encode_call
from rustray.task.inputs import split_parts
from rustray.task.result import TaskResult
from rustray.task.spec import Codec, TaskSpec, deadline_unix_s
from rustray.task.state import TaskState

_BACKOFF_FIRST_S: Final = 0.2
_BACKOFF_CAP_S: Final = 2.0
_SUBMIT_RETRY_S: Final = 30.0
_CALL_BYTES: Final = 4 << 20
_CALL_TASKS: Final = 5_000
_NAMED_IN_NOTE: Final = 20


class Submitter:
    """Mints ids and hands tasks in, each once even if a reply is lost."""

    def __init__(self) -> None:
        self._prefix = secrets.token_bytes(PREFIX_BYTES)
        self._sequence = itertools.count()

    async def submit(self, api: HeadApi, specs: Iterable[TaskSpec]) -> list[TaskId | RustRayError]:
        """Return the id or the refusal of each task, in order.

        Raises:
            HeadUnavailable: the head did not answer for 30 s.
            TypeError: an item is not a TaskSpec, or there is no list of them.
        """
        if isinstance(specs, TaskSpec):
            raise TypeError("expected a list of TaskSpec, not one: write [spec], or submit_task()")
        if not isinstance(specs, Iterable):
            raise TypeError(f"expected a list of TaskSpec, not {type(specs).__name__}")
        answers: list[TaskId | RustRayError] = []
        items: list[SubmitItem] = []
        places: list[int] = []
        for place, spec in enumerate(specs):
            try:
                item = self._item(spec)
            except PayloadError as error:
                answers.append(error)
                continue
            places.append(place)
            items.append(item)
            answers.append(task_id(item.prefix, item.sequence))
        if items:
            verdicts = [v for part in _messages(items) for v in await _submit(api, part)]
            for place, verdict in zip(places, verdicts, strict=True):
                answers[place] = verdict.error or TaskId(verdict.task_id)
        return answers

    def _item(self, spec: TaskSpec) -> SubmitItem:
        if not isinstance(spec, TaskSpec):
            raise TypeError(f"expected a TaskSpec, not {type(spec).__name__}")
        payload = encode_call(Codec.MSGPACK, tuple(spec.args), dict(sorted(spec.kwargs.items())))
        if spec.task_id is not None:
            prefix, sequence = split_task_id(spec.task_id)
            name = bytes(prefix)
        else:
            name, sequence = self._prefix, next(self._sequence)
        return SubmitItem(
            name,
            sequence,
            class_of(spec, Codec.MSGPACK),
            payload,
            uses_default_resources=spec.resource_requirements is None,
            uses_default_retries=spec.max_retries is None,
            deadline_unix_s=deadline_unix_s(spec.deadline),
            idempotency_key=spec.idempotency_key or "",
            rejects_duplicate=spec.on_duplicate == "reject",
            durability=parse_durability(spec.durability),
        )


def _messages(items: Sequence[SubmitItem]) -> Iterator[Sequence[SubmitItem]]:
    """Split tasks into calls that a message can carry; a bigger one goes alone."""
    start = size = 0
    for index, item in enumerate(items):
        size += len(item.payload)
        if index > start and (size > _CALL_BYTES or index - start >= _CALL_TASKS):
            yield items[start:index]
            start, size = index, len(item.payload)
    yield items[start:]


async def _submit(api: HeadApi, items: Sequence[SubmitItem]) -> list[SubmitVerdict]:
    """Submit; after a lost reply again, with the same ids, so that nothing runs twice."""
    deadline = time.monotonic() + _SUBMIT_RETRY_S
    attempt = 0
    while True:
        try:
            return await api.submit(items)
        except HeadUnavailable:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            attempt = await back_off(attempt, left)


def raise_first_refusal(answers: Sequence[TaskId | RustRayError]) -> None:
    """Raise the first error, with a note that names its task and the accepted ones."""
    for place, answer in enumerate(answers):
        if not isinstance(answer, RustRayError):
            continue
        if len(answers) > 1:
            accepted = [other for other in answers if isinstance(other, str)]
            more = len(accepted) - _NAMED_IN_NOTE
            named = ", ".join(accepted[:_NAMED_IN_NOTE]) or "none"
            answer.add_note(
                f"task {place} of {len(answers)} in the batch; accepted: {named}"
                + (f" and {more} more" if more > 0 else "")
            )
        raise answer


def decode_result(raw: RawResult, allow_pickle: bool) -> TaskResult:
    """Decode what the head answered about a task that has ended."""
    value: Any = None
    error: RustRayError | None = None
    codec = Codec(raw.codec) if raw.codec in set(Codec) else Codec.MSGPACK
    is_refused = codec is Codec.PICKLE and not allow_pickle
    if raw.state is not TaskState.SUCCEEDED:
        codec = Codec.MSGPACK if is_refused else codec
        error = error_of(raw.payload, raw.task_id, raw.worker_id, raw.attempts, codec)
    elif is_refused:
        error = PayloadError(
            "the result is a pickle, for the function was sent as code: the program that handed "
            "the task in decodes it, or a HeadNode(..., allow_pickle=True)"
        )
    else:
        try:
            value = _decoded(codec, raw)
        except PayloadError as undecodable:
            error = undecodable
    return TaskResult(raw.task_id, raw.state, value, error, raw.worker_id, raw.attempts)


def _decoded(codec: Codec, raw: RawResult) -> Any:
    """Decode what a task has returned: its value, or a list of its values."""
    if raw.num_returns == 1:
        return decode_value(codec, raw.payload)
    try:
        parts = split_parts(raw.payload)
    except ValueError as error:
        raise PayloadError(
            f"the values of task {raw.task_id} cannot be told apart: {error}"
        ) from None
    return [decode_value(codec, bytes(part)) for part in parts]


def decode_item(raw: RawResult, item: bytes, allow_pickle: bool) -> Any:
    """Decode an item of a stream.

    Raises:
        PayloadError: it cannot be decoded here.
    """
    return decode_result(
        replace(raw, state=TaskState.SUCCEEDED, payload=item), allow_pickle
    ).unwrap()


async def back_off(attempt: int, left_s: float | None) -> int:
    """Sleep 0.2 s x 2 up to 2 s, with full jitter, and return the next attempt's number."""
    cap = min(_BACKOFF_CAP_S, _BACKOFF_FIRST_S * 2**attempt)
    delay = random.uniform(0, cap)  # noqa: S311 - jitter, no secret
    await asyncio.sleep(delay if left_s is None else min(delay, left_s))
    return min(attempt + 1, 16)
