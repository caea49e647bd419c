"""What tasks say and print, as protobuf and back; decoders raise ValueError for what cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rustray.common import ids
from rustray.common.ids import MAX_SEQUENCE, PREFIX_BYTES
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.api import LogFilter, LogPage
from rustray.rpc.convert import moment_from_wire, seconds_from_wire, text, total
from rustray.task.frames import LeaseNews, WorkerFrame
from rustray.task.output import (
    MAX_ATTEMPTS,
    MAX_RECORDS,
    LogRecord,
    OutputAnswer,
    OutputPiece,
    OutputQuestion,
)

MAX_ANSWERS: Final = 1_000
"""Answers, and prefixes, of one frame."""
_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_NAME: Final = 1_024


def put_questions(target: Any, questions: Iterable[OutputQuestion]) -> None:
    """Write questions of the head."""
    for each in questions:
        target.add(
            number=each.number,
            prefix=each.prefix,
            sequence=each.sequence,
            attempt=each.attempt,
            cursor=each.cursor,
            wait_s=each.wait_s,
            is_live=each.is_live,
            is_withdrawn=each.is_withdrawn,
        )


def get_questions(messages: Sequence[wire.OutputQuestion]) -> list[OutputQuestion]:
    """Read questions of the head."""
    return [
        OutputQuestion(
            m.number,
            m.prefix,
            m.sequence,
            m.attempt,
            m.cursor,
            seconds_from_wire("wait_s", m.wait_s),
            m.is_live,
            m.is_withdrawn,
        )
        for m in messages[:]
    ]


def get_news(message: wire.LeaseNews) -> LeaseNews:
    """Read what a running task says of itself."""
    fraction = message.fraction if message.HasField("fraction") else None
    news = LeaseNews(message.lease, message.offset, fraction, message.text, message.value)
    news.check()
    return news


def put_words(target: Any, frame: WorkerFrame) -> None:
    """Write what a worker passes on of running tasks: news and output."""
    for news in frame.news:
        target.news.add(
            lease=news.lease, offset=news.offset, fraction=news.fraction,
            text=text(news.text), value=news.value,
        )  # fmt: skip
    target.printing.extend(frame.printing)
    for each in frame.output:
        message = target.output.add(
            number=each.number,
            attempt=each.attempt,
            next=each.next,
            dropped_bytes=each.dropped_bytes,
            attempts=each.attempts,
        )
        for piece in each.pieces:
            message.pieces.add(
                prefix=piece.prefix,
                sequence=piece.sequence,
                attempt=piece.attempt,
                is_stderr=piece.is_stderr,
                time_unix_s=piece.time_unix_s,
                data=piece.data,
                function=text(piece.function)[:_MAX_NAME],
                pid=piece.pid,
            )


def get_output(message: wire.WorkerFrame) -> tuple[list[bytes], list[OutputAnswer]]:
    """Read what a worker says of output: who prints, and answers, which go on to clients."""
    if len(message.printing) > MAX_ANSWERS or len(message.output) > MAX_ANSWERS:
        raise ValueError(f"more than {MAX_ANSWERS} answers about output in a frame of a worker")
    answers = [_get_answer(m) for m in message.output[:]] if message.output else []
    return [get_prefix(prefix) for prefix in message.printing], answers


def _get_answer(message: wire.OutputAnswer) -> OutputAnswer:
    if len(message.pieces) > MAX_RECORDS or len(message.attempts) > MAX_ATTEMPTS:
        raise ValueError("an answer about output is too long")
    pieces = [_get_piece(m) for m in message.pieces[:]]
    if sum(len(piece.data) for piece in pieces) > _MAX_ANSWER_BYTES:
        raise ValueError("an answer about output has too many bytes")
    return OutputAnswer(
        message.number,
        message.attempt,
        pieces,
        message.next,
        message.dropped_bytes,
        tuple(message.attempts),
    )


def _get_piece(message: wire.OutputPiece) -> OutputPiece:
    if message.sequence > MAX_SEQUENCE:
        raise ValueError(f"{message.sequence} is no sequence of a task")
    if len(message.function) > _MAX_NAME:
        raise ValueError("the name of a function is too long")
    return OutputPiece(
        get_prefix(message.prefix),
        message.sequence,
        message.attempt,
        message.is_stderr,
        moment_from_wire(message.time_unix_s),
        message.data,
        message.function,
        message.pid,
    )


def get_prefix(prefix: bytes) -> bytes:
    """Check the prefix of a session."""
    if len(prefix) != PREFIX_BYTES:
        raise ValueError(f"a task id's prefix has {PREFIX_BYTES} bytes, not {len(prefix)}")
    return prefix


# ── Client and head ─────────────────────────────────────────────────────────────────────────────


def put_log_filter(where: LogFilter) -> wire.TaskLogsRequest:
    """Encode which output is meant."""
    return wire.TaskLogsRequest(
        task_id=text(where.task_id),
        attempt=where.attempt,
        cursor=where.cursor,
        follow=where.follow,
        goes_on=where.goes_on,
    )


def get_log_filter(message: wire.TaskLogsRequest) -> LogFilter:
    """Decode which output is meant; the task's id comes out in its one spelling.

    Raises:
        ValueError: it is no task id.
    """
    name = ids.task_id(*ids.split_task_id(message.task_id))
    return LogFilter(name, message.attempt, message.cursor, message.follow, message.goes_on)


def put_log_page(page: LogPage) -> wire.LogsResponse:
    """Encode output."""
    response = wire.LogsResponse(attempt=page.attempt, cursor=page.cursor)
    for each in page.records:
        response.records.add(
            task_id=each.task_id,
            attempt=each.attempt,
            is_stderr=each.stream == "stderr",
            time_unix_s=each.time_unix_s,
            data=each.data,
            function=text(each.function),
            worker_id=text(each.worker_id),
            pid=each.pid,
            dropped_bytes=each.dropped_bytes,
        )
    return response


@total("output of tasks")
def get_log_page(message: wire.LogsResponse) -> LogPage:
    """Decode output."""
    records = tuple(
        LogRecord(
            m.task_id,
            m.attempt,
            "stderr" if m.is_stderr else "stdout",
            m.data,
            m.time_unix_s,
            m.worker_id,
            m.pid,
            m.function,
            m.dropped_bytes,
        )
        for m in message.records[:]
    )
    return LogPage(records, message.attempt, message.cursor)
