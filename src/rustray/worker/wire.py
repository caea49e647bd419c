"""What the agent and its executor processes say to each other.

Three channels per executor, all within one machine (so in its byte order):

* *data* (stream socket): definitions and chunks to the executor, outcomes back. Every message
  is a 16-byte head (kind, number, length of the rest) and its body;
* *control* (packet socket): a few fixed-size packets that must not wait behind data;
* the *cell* (`rustray.worker.cell`): shared memory that says what runs right now.

Chunks are numbered from 1 per executor; a task is named by (chunk number, index in it). A task that
hands in tasks itself asks for a fourth channel; see `rustray.task.relay`.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import msgpack

from rustray.common.messages import HEAD
from rustray.common.messages import MessageSplitter as MessageSplitter
from rustray.task.columns import ENDS_TYPECODE, PayloadColumn
from rustray.task.frames import LeaseNews
from rustray.task.spec import TaskClass

CHILD_FDS: Final = 5
"""Descriptors of an executor: data, control, cell, stdout, stderr."""

# Kinds on the data channel.
DEFINE: Final = 1
RUN: Final = 2
OUTCOME: Final = 3
NEWS: Final = 4
"""What running tasks say of themselves; never after their outcome."""
RUN_SHARED: Final = 5
"""As `RUN`, with the arguments in memory whose descriptor has the chunk's number."""
OUTCOME_SHARED: Final = 6
"""As `OUTCOME`, of one task, with its result in memory whose descriptor came under a number."""
SETUP: Final = 7
"""Agent: the environment of the chunks that follow."""
ITEMS: Final = 8
"""What a generator has yielded; never after its outcome."""
UNRUN: Final = 9
"""Executor: the chunk with this number, of one task, never starts: it has not what it takes."""
GIVEN: Final = 10
"""Agent: what the chunk with this number takes, whose descriptor comes beside this message."""

_DEFINE: Final = struct.Struct("=BxxxIQI")
_RUN: Final = struct.Struct("=BxxxIQQQdQIIIIIIII10s2x")
_OUTCOME: Final = struct.Struct("=BxxxIQQQIII")
_RUN_BODY: Final = struct.Struct("=QQdQIIIIIIII10s2x")
_ITEMS: Final = struct.Struct("=BxxxIQQIII")
_ITEMS_BODY: Final = struct.Struct("=QIII")
_OUTCOME_BODY: Final = struct.Struct("=QQIII")
_SHARED: Final = struct.Struct("=BxxxIQQQIIIQ")
_SHARED_BODY: Final = struct.Struct("=QQIIIQ")
_END: Final = struct.Struct("=I")
_IDENTITY: Final = struct.Struct("=Q")
_ENDS_BYTES: Final = array(ENDS_TYPECODE).itemsize

# Kinds on the control channel.
RECLAIM: Final = 1
"""Agent: give back what has not started of the chunks up to this number."""
INTERRUPT: Final = 2
"""Agent: stop the task with this chunk number and index; a third number that is not 0: but leave
it alone if it looks by itself."""
FLUSH: Final = 3
"""Agent: send the results you hold, even while a task runs."""
RECLAIMED: Final = 4
"""Executor: of the chunks up to this number, of which this is the last that was begun, never start
all after it, nor its own tasks from this place on."""
OBJECT: Final = 5
"""Either: memory with this number, whose descriptor comes along."""
CREDIT: Final = 6
"""Agent: of the generator with this chunk number and index, so many items are consumed."""
RULING: Final = 8
"""Agent: of the chunks up to this number begin nothing after this one, nor its own tasks from this
place on."""
ALL: Final = (1 << 32) - 1
"""A place behind all tasks of a chunk."""

RELAY: Final = 6
"""Executor: with this packet travels the agent's end of another channel (`rustray.task.relay`)."""
CALLS: Final = 7
"""Executor: with this packet travels the agent's end of `rustray.worker.calls`."""

CONTROL: Final = struct.Struct("=BxxxIII")
"""kind, three numbers."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What an executor must know of a task class.

    Attributes:
        function: Registered name, or the qualified name of a function sent as code.
        codec: `Codec` of arguments and results.
        code_hash: Names the code, so that classes that share it share the function.
        code: The cloudpickled function, or b"" for a registered one.
        has_inputs: Values of other tasks are joined to the arguments.
        num_returns: How many values it returns that have references of their own.
        stream_window: Of a generator: items that may be under way; 0: it returns one value.
        results_stay: Large results need not travel to the head.
    """

    function: str
    codec: int
    code_hash: bytes
    code: bytes
    has_inputs: bool = False
    num_returns: int = 1
    stream_window: int = 0
    results_stay: bool = False

    @classmethod
    def of(cls, task_class: TaskClass, code: bytes) -> Definition:
        """Return what an executor must know of a class."""
        return cls(
            task_class.function,
            int(task_class.codec),
            task_class.code_hash,
            code,
            task_class.has_inputs,
            task_class.num_returns,
            task_class.stream_window,
            task_class.results_stay,
        )


@dataclass(frozen=True, slots=True)
class Environment:
    """What a process is to be like for good: a runtime_env whose packages are on disk.

    Attributes:
        variables: Environment variables.
        root: Where the packages are.
        working_dir: Hash of the package that is its current directory; "" for none.
        py_modules: Hashes of those on its import path.
    """

    variables: dict[str, str] = field(default_factory=dict)
    root: str = ""
    working_dir: str = ""
    py_modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """The environment of the chunks that follow.

    Attributes:
        variables: Environment variables to set, where one task runs at a time.
        gpu_ids: The GPUs of each of these tasks.
        alternative: Which of the ways to run them that their class allows was granted.
        environment: What the process is to be like; the same in all its setups.
    """

    variables: dict[str, str] = field(default_factory=dict)
    gpu_ids: tuple[str, ...] = ()
    alternative: int = 0
    environment: Environment | None = None


NO_SETUP: Final = Setup()


@dataclass(slots=True)
class RunChunk:
    """Consecutive tasks of one class and one lease, agent to executor.

    Attributes:
        class_number: A class that was defined to this executor before.
        lease: Their lease.
        offset: Position of the first one in the lease.
        attempt: Number of this attempt, from 1.
        prefix: The first 10 bytes of their task ids.
        first: Task sequence of the first one.
        payloads: Their encoded arguments.
        deadline_unix_s: When they will be stopped, 0 for never.
        have: Of a generator, which comes alone: items to pass over.
        consumed: Likewise: items that are consumed.
        follows: Of one task that takes the result of the one sent before it: lease and offset of
            that. Else (0, 0).
    """

    class_number: int
    lease: int
    offset: int
    attempt: int
    prefix: bytes
    first: int
    payloads: PayloadColumn
    deadline_unix_s: float = 0.0
    have: int = 0
    consumed: int = 0
    follows: tuple[int, int] = (0, 0)


@dataclass(slots=True, eq=False)
class Chunk:
    """Consecutive tasks of one class as the executor receives them.

    Attributes:
        number: The executor's number of the chunk, from 1.
        lease: Lease of all of them.
        first: Task sequence of the first one.
        class_number: What to run.
        offset: Position of the first one in the lease.
        attempt: From 1.
        prefix: The first 10 bytes of their task ids.
        ends: Where each task's arguments end in ``data``.
        start: Where those of the first one start.
        shift: What to add to ``ends``.
        data: The bytes that hold the arguments.
        deadline_unix_s: When they will be stopped, 0 for never.
        setup: Its environment.
        have, consumed, follows: See `RunChunk`.
    """

    number: int
    lease: int
    first: int
    class_number: int
    offset: int
    attempt: int
    prefix: bytes
    ends: array[int]
    start: int
    shift: int
    data: bytes
    deadline_unix_s: float = 0.0
    setup: Setup = NO_SETUP
    have: int = 0
    consumed: int = 0
    follows: tuple[int, int] = (0, 0)


def pack_setup(setup: Setup) -> bytes:
    """Encode the environment of the chunks that follow as one message."""
    own = setup.environment
    environment = own and (own.variables, own.root, own.working_dir, own.py_modules)
    body = json.dumps([setup.variables, setup.gpu_ids, setup.alternative, environment]).encode()
    return HEAD.pack(SETUP, 0, len(body)) + body


def unpack_setup(data: bytes, start: int, stop: int) -> Setup:
    """Decode the body of a `SETUP` message."""
    variables, gpu_ids, alternative, found = json.loads(data[start:stop])
    environment = None
    if found is not None:
        environment = Environment(found[0], found[1], found[2], tuple(found[3]))
    return Setup(variables, tuple(gpu_ids), alternative, environment)


def pack_definition(class_number: int, definition: Definition) -> bytes:
    """Encode a definition as one message."""
    d = definition
    facts = [d.function, d.codec, d.code_hash.hex(), d.has_inputs, d.num_returns]
    facts += [d.stream_window, d.results_stay]
    meta = json.dumps(facts).encode()
    length = 4 + len(meta) + len(definition.code)
    head = _DEFINE.pack(DEFINE, class_number, length, len(meta))
    return b"".join((head, meta, definition.code))


def unpack_definition(data: bytes, start: int, stop: int) -> Definition:
    """Decode the body of a `DEFINE` message."""
    code_at = start + 4 + int.from_bytes(data[start : start + 4], sys.byteorder)
    function, codec, code_hash, *shape = json.loads(data[start + 4 : code_at])
    return Definition(function, codec, bytes.fromhex(code_hash), data[code_at:stop], *shape)


def pack_run(number: int, chunk: RunChunk) -> tuple[bytes, bytes, bytes]:
    """Encode a chunk as the parts of one message; the payloads are not copied."""
    payloads = chunk.payloads
    ends = payloads.ends.tobytes()
    blob = payloads.blob
    length = _RUN_BODY.size + len(ends) + len(blob)
    head = _RUN.pack(
        RUN, number, length, chunk.lease, chunk.first, chunk.deadline_unix_s, chunk.follows[0],
        chunk.follows[1], chunk.class_number, chunk.offset, chunk.attempt, len(payloads.ends),
        payloads.base, chunk.have, chunk.consumed, chunk.prefix,
    )  # fmt: skip
    return head, ends, blob


def pack_run_shared(number: int, chunk: RunChunk) -> tuple[bytes, bytes]:
    """Encode a chunk whose arguments are in memory of their own."""
    ends = chunk.payloads.ends.tobytes()
    head = _RUN.pack(
        RUN_SHARED, number, _RUN_BODY.size + len(ends), chunk.lease, chunk.first,
        chunk.deadline_unix_s, *chunk.follows, chunk.class_number, chunk.offset, chunk.attempt,
        len(chunk.payloads.ends), chunk.payloads.base, chunk.have, chunk.consumed, chunk.prefix,
    )  # fmt: skip
    return head, ends


def unpack_run_shared(
    number: int, data: bytes, start: int, take: Callable[[int, int], bytes]
) -> Chunk:
    """Decode the body of a `RUN_SHARED` message; ``take`` maps the memory (number, size)."""
    chunk = unpack_run(number, data, start)
    base = chunk.start - chunk.shift
    chunk.data = take(number, chunk.ends[-1] - base)
    chunk.start, chunk.shift = 0, -base
    return chunk


def pack_given(number: int, identity: int, place: bytes) -> bytes:
    """Encode what a descriptor is of; its identity is its inode."""
    return HEAD.pack(GIVEN, number, _IDENTITY.size + len(place)) + _IDENTITY.pack(identity) + place


def unpack_given(data: bytes, start: int, stop: int) -> tuple[int, bytes]:
    """Decode the body of a `GIVEN` message: identity and packed place."""
    (identity,) = _IDENTITY.unpack_from(data, start)
    return identity, data[start + _IDENTITY.size : stop]


def unpack_run(number: int, data: bytes, start: int) -> Chunk:
    """Decode the body of a `RUN` message."""
    (
        lease, first, deadline_unix_s, follows, follows_offset, class_number, offset, attempt,
        count, base, have, consumed, prefix,
    ) = _RUN_BODY.unpack_from(data, start)  # fmt: skip
    ends: array[int] = array(ENDS_TYPECODE)
    ends_at = start + _RUN_BODY.size
    blob_at = ends_at + count * _ENDS_BYTES
    ends.frombytes(data[ends_at:blob_at])
    return Chunk(
        number, lease, first, class_number, offset, attempt, prefix, ends, blob_at, blob_at - base,
        data, deadline_unix_s, have=have, consumed=consumed, follows=(follows, follows_offset),
    )  # fmt: skip


def pack_outcome(
    number: int, lease: int, offset: int, state: int, run_us: int, items: Sequence[bytes]
) -> bytes:
    """Encode how consecutive tasks of a chunk ended as one message."""
    ends = array(ENDS_TYPECODE, accumulate(map(len, items)))
    length = _OUTCOME_BODY.size + len(items) * _ENDS_BYTES + ends[-1]
    head = _OUTCOME.pack(OUTCOME, number, length, lease, run_us, offset, state, len(items))
    return b"".join((head, ends.tobytes(), *items))


def pack_unrun(number: int) -> bytes:
    """Encode that a chunk of one task will never start."""
    return HEAD.pack(UNRUN, number, 0)


def unpack_outcome(data: bytes, start: int, stop: int) -> tuple[int, int, int, int, PayloadColumn]:
    """Decode the body of an `OUTCOME` message: lease, run_us, offset, state, payloads."""
    lease, run_us, offset, state, count = _OUTCOME_BODY.unpack_from(data, start)
    ends: array[int] = array(ENDS_TYPECODE)
    ends_at = start + _OUTCOME_BODY.size
    blob_at = ends_at + count * _ENDS_BYTES
    ends.frombytes(data[ends_at:blob_at])
    return lease, run_us, offset, state, PayloadColumn(data[blob_at:stop], ends)


def pack_outcome_shared(
    number: int, lease: int, offset: int, state: int, run_us: int, memory: int, size: int
) -> bytes:
    """Encode how one task ended whose result is in memory of its own."""
    return _SHARED.pack(
        OUTCOME_SHARED, number, _SHARED_BODY.size, lease, run_us, offset, state, memory, size
    )


def unpack_outcome_shared(data: bytes, start: int) -> tuple[int, int, int, int, int, int]:
    """Decode an `OUTCOME_SHARED` message: lease, run_us, offset, state, memory, size."""
    found: tuple[int, int, int, int, int, int] = _SHARED_BODY.unpack_from(data, start)
    return found


def last_ended(messages: Sequence[tuple[int, int, bytes, int, int]]) -> tuple[int, int] | None:
    """Return (lease, offset) of the last task that ended by these messages, None if none did.

    Raises:
        ValueError: a message is none.
    """
    for kind, _, data, start, stop in reversed(messages):
        if kind in (OUTCOME, OUTCOME_SHARED):
            if stop - start < _OUTCOME_BODY.size:
                raise ValueError("an outcome that is cut off")
            lease, _, offset, _, count = _OUTCOME_BODY.unpack_from(data, start)
            return lease, offset + (count - 1 if kind == OUTCOME else 0)
    return None


def pack_item(number: int, lease: int, offset: int, index: int, item: bytes) -> bytes:
    """Encode one item of a generator as a message."""
    length = _ITEMS_BODY.size + _ENDS_BYTES + len(item)
    head = _ITEMS.pack(ITEMS, number, length, lease, offset, index, 1)
    return b"".join((head, _END.pack(len(item)), item))


def unpack_items(data: bytes, start: int, stop: int) -> tuple[int, int, int, PayloadColumn]:
    """Decode the body of an `ITEMS` message: lease, offset, index of the first, payloads.

    Raises:
        ValueError: it is none.
    """
    if stop - start < _ITEMS_BODY.size:
        raise ValueError("malformed items")
    lease, offset, first, count = _ITEMS_BODY.unpack_from(data, start)
    ends: array[int] = array(ENDS_TYPECODE)
    ends_at = start + _ITEMS_BODY.size
    blob_at = ends_at + count * _ENDS_BYTES
    ends.frombytes(data[ends_at:blob_at])
    if not count or len(ends) != count or ends[-1] != stop - blob_at:
        raise ValueError("malformed items")
    return lease, offset, first, PayloadColumn(data[blob_at:stop], ends)


def pack_news(items: Sequence[LeaseNews], dropped: int) -> bytes:
    """Encode what tasks say of themselves, and how much was dropped since the last time."""
    rows = [(each.lease, each.offset, each.fraction, each.text, each.value) for each in items]
    body: bytes = msgpack.packb((dropped, rows), unicode_errors="replace")
    return HEAD.pack(NEWS, 0, len(body)) + body


def unpack_news(data: bytes, start: int, stop: int) -> tuple[list[LeaseNews], int]:
    """Decode the body of a `NEWS` message: the items, and how many were dropped.

    Raises:
        ValueError: it is none.
    """
    try:
        dropped, rows = msgpack.unpackb(data[start:stop])
        items = [LeaseNews(*row) for row in rows]
        total = int(dropped)
        for each in items:
            each.check()
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"malformed news: {error}") from None
    return items, total


def to_json(message: dict[str, Any]) -> bytes:
    """Encode a message between agent and zygote."""
    return json.dumps(message).encode("utf-8", "surrogatepass")


def from_json(packet: bytes) -> dict[str, Any]:
    """Decode a message between agent and zygote."""
    message: dict[str, Any] = json.loads(packet.decode("utf-8", "surrogatepass"))
    return message
