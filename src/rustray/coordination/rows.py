"""What is kept over a restart of the head, as rows of bytes: key to value.

=====  =====================================  ====================================================
first  rest of the key                        value (msgpack)
=====  =====================================  ====================================================
``g``  fence                                  holder, has a lease, term, number, name, limit
``a``  lane, holder                           owner, has a lease, term, number, name, the answer
``e``  name                                   name; the event is set
``q``  number of the queue, of the chunk      name, limit, items
``o``  number of the queue, of the chunk      how many of the chunk's items are gone
=====  =====================================  ====================================================

Who waits is not kept: whoever waits asks again.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from rustray.coordination.messages import Answer, Kind, Name, Verdict

GRANT: Final = b"g"
ANSWER: Final = b"a"
EVENT: Final = b"e"
CHUNK: Final = b"q"
OFFSET: Final = b"o"
_NUMBER: Final = struct.Struct(">Q")
_PAIR: Final = struct.Struct(">QQ")


def _pack(*values: Any) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed


def _name_of(name: Name) -> tuple[int, str, str, str]:
    return int(name.kind), name.owner, name.space, name.name


def get_name(value: Any) -> Name:
    """Rebuild a name."""
    kind, owner, space, name = value
    return Name(Kind(kind), owner, space, name)


def unpack(value: bytes) -> list[Any]:
    """Decode the value of a row."""
    found: list[Any] = msgpack.unpackb(value)
    return found


def grant_key(fence: int) -> bytes:
    """Of something held."""
    return GRANT + _NUMBER.pack(fence)


def grant_value(whose: tuple[bytes, bool, int], number: int, name: Name, limit: int) -> bytes:
    """Of something held.

    Args:
        whose: Holder, whether it has a lease, and its term.
        number: Of the request.
        name: Of what.
        limit: Its permits.
    """
    return _pack(*whose, number, _name_of(name), limit)


def answer_key(holder: bytes, lane: int) -> bytes:
    """Of an answer that its holder may not have yet."""
    return ANSWER + _NUMBER.pack(lane) + holder


def answer_value(whose: tuple[str, bool, int], number: int, name: Name, answer: Answer) -> bytes:
    """Of an answer that its holder may not have yet.

    Args:
        whose: Owner, whether the holder has a lease, and its term.
        number: Of the request.
        name: What it is about.
        answer: What was said.
    """
    return _pack(
        *whose, number, _name_of(name), int(answer.verdict), answer.fence, answer.count,
        answer.items,
    )  # fmt: skip


def event_key(name: Name) -> bytes:
    """Of an event that is set."""
    return EVENT + event_value(name)


def event_value(name: Name) -> bytes:
    """Of an event that is set."""
    return _pack(*_name_of(name))


def chunk_key(queue: int, sequence: int) -> bytes:
    """Of items that came together."""
    return CHUNK + _PAIR.pack(queue, sequence)


def chunk_value(name: Name, limit: int, items: tuple[bytes, ...]) -> bytes:
    """Of items that came together."""
    return _pack(_name_of(name), limit, items)


def offset_key(queue: int, sequence: int) -> bytes:
    """Of a chunk that some are gone of."""
    return OFFSET + _PAIR.pack(queue, sequence)


def offset_value(taken: int) -> bytes:
    """Of a chunk that some are gone of."""
    return _pack(taken)


def split_number(rest: bytes) -> tuple[int, bytes]:
    """Take a number off the front of a key."""
    return _NUMBER.unpack_from(rest)[0], rest[_NUMBER.size :]


def get_answer(values: list[Any]) -> tuple[tuple[str, bool, int], int, Name, Answer]:
    """Rebuild what `answer_value` was made of."""
    owner, has_lease, term, number, name, verdict, fence, count, items = values
    return (
        (owner, bool(has_lease), int(term)), int(number), get_name(name),
        Answer(Verdict(verdict), int(fence), int(count), tuple(items)),
    )  # fmt: skip
