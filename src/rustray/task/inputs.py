"""What a task takes from other tasks: references on the way in, values on the way to where it runs.

A reference among the arguments of a call is an *input*. In the encoded call a `Slot` stands in its
place; beside it travel the ids of the inputs, which the head reads without looking into the call.
When all of them are there, their encoded values are joined to the call, and the executor puts each
where its slot is. So the head handles values as what they are to it: bytes and a codec.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

from rustray.common.errors import PayloadError
from rustray.common.ids import PREFIX_BYTES
from rustray.common.records import record
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.flat import FlatValue

WHOLE: Final = (1 << 32) - 1
"""Index of an input that is all that its task returned."""
MAX_INPUTS: Final = 100_000
"""Inputs of one task."""
LOST: Final = 0
"""Stands for a codec where a value could not be had; what follows says why."""
PLACED: Final = 255
"""Stands for a codec where the value is with a node; then come a `_PLACED`, place and token."""
_PLACED: Final = struct.Struct("<BIH")
"""Codec of the value, index (see `InputId`), bytes of the packed place."""
SEQUENCE_BYTES: Final = 6
_ID: Final = struct.Struct(f">{PREFIX_BYTES}s{SEQUENCE_BYTES}sI")
ID_BYTES: Final = _ID.size
_COUNT: Final = struct.Struct("<I")
_ENDS_TYPECODE: Final = "Q"


@record
class InputId:
    """One value that a task takes.

    Attributes:
        prefix: First 10 bytes of the id of the task that makes it.
        sequence: The rest of that id.
        index: Which of the values that it returns; `WHOLE` for a task that returns one.
    """

    prefix: bytes
    sequence: int
    index: int = WHOLE


@record
class InputValue:
    """The value of one input, still encoded, in what its task has returned.

    Attributes:
        codec: Number of its encoding.
        payloads: A column with one item, which may be on a disk still.
        index: See `InputId`.
        token: Opens it where it is with another node.
    """

    codec: int
    payloads: PayloadColumn
    index: int
    token: str = ""


class Slot:
    """Stands in an encoded call for the input of this index."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[type[Slot], tuple[int]]:
        return Slot, (self.index,)


def same(value: Any) -> Any:
    """Return what was taken: how a task gets at the result of a reference that it was given."""
    return value


def pack_inputs(inputs: Iterable[InputId]) -> bytes:
    """Encode the ids of one task's inputs, 20 bytes each."""
    return b"".join(
        _ID.pack(one.prefix, one.sequence.to_bytes(SEQUENCE_BYTES, "big"), one.index)
        for one in inputs
    )


def unpack_inputs(item: bytes) -> Iterator[InputId]:
    """Decode what `pack_inputs` has encoded.

    Raises:
        ValueError: it has no such length.
    """
    if len(item) % ID_BYTES:
        raise ValueError(f"{len(item)} bytes are no list of inputs")
    for prefix, sequence, index in _ID.iter_unpack(item):
        yield InputId(prefix, int.from_bytes(sequence, "big"), index)


def check_inputs(column: PayloadColumn, count: int) -> PayloadColumn:
    """Return the column, if it can be the inputs of so many tasks.

    Raises:
        ValueError: it cannot.
    """
    if len(column) != count:
        raise ValueError(f"inputs of {len(column)} tasks, and arguments of {count}")
    ends = column.ends.tolist()
    if ends != sorted(ends) or any((end - column.base) % ID_BYTES for end in ends):
        raise ValueError("inputs that are no ids")
    return column


def producers_of(item: bytes) -> list[tuple[bytes, int]]:
    """Return the (prefix, sequence) of the tasks that make a task's inputs, each once, in order."""
    found: dict[tuple[bytes, int], None] = {}
    for prefix, sequence, _ in _ID.iter_unpack(item):
        found[prefix, int.from_bytes(sequence, "big")] = None
    return list(found)


def join_parts(parts: Sequence[bytes]) -> bytes:
    """Encode several byte strings as one: their number, where each ends, and they themselves."""
    ends = array(_ENDS_TYPECODE, accumulate(map(len, parts)))
    return b"".join((_COUNT.pack(len(parts)), ends.tobytes(), *parts))


def split_parts(data: bytes | memoryview) -> list[memoryview]:
    """Decode what `join_parts` has encoded, without a copy.

    Raises:
        ValueError: it is not that.
    """
    view = memoryview(data)
    if len(view) < _COUNT.size:
        raise ValueError("no parts")
    (count,) = _COUNT.unpack_from(view)
    start = _COUNT.size + 8 * count
    if start > len(view):
        raise ValueError("parts are cut off")
    ends = array(_ENDS_TYPECODE, bytes(view[_COUNT.size : start]))
    if (ends[-1] if count else 0) != len(view) - start:
        raise ValueError("parts do not end where they should")
    bounds = [0, *ends]
    if any(low > high for low, high in zip(bounds, ends, strict=False)):
        raise ValueError("parts are out of order")
    return [view[start + low : start + high] for low, high in zip(bounds, ends, strict=False)]


def part_of(data: bytes, index: int) -> bytes:
    """Return one of the byte strings that `join_parts` has joined.

    Raises:
        ValueError: there is none of this number.
    """
    return bytes(view_of_part(data, index))


def view_of_part(data: bytes | memoryview, index: int) -> memoryview:
    """Do as `part_of`, without a copy."""
    parts = split_parts(data)
    if index >= len(parts):
        raise ValueError(f"there is no value {index} among {len(parts)}")
    return parts[index]


def join_call(call: bytes, values: Sequence[InputValue]) -> bytes:
    """Encode a call with the values of its inputs; all of them are in memory."""
    parts = [call]
    for value in values:
        codec, payload = value.codec, value.payloads[0]
        if isinstance(value.payloads, PlacedColumn):
            head = _PLACED.pack(codec, value.index, len(payload))
            parts.append(b"".join((bytes((PLACED,)), head, payload, value.token.encode())))
            continue
        if value.index != WHOLE and codec != LOST:
            try:
                payload = part_of(payload, value.index)
            except ValueError as error:  # a worker has lied, or is broken
                codec, payload = LOST, f"an input cannot be read: {error}".encode()
        parts.append(bytes((codec,)) + payload)
    return join_parts(parts)


Call = tuple[Sequence[Any], dict[str, Any]]
DecoderOf = Callable[[int], Callable[[Any], Any]]
Load = Callable[[bytes, str], memoryview]
"""Brings what is at a packed place, which a token opens, into this process; raises `InputLost`."""


LACKS: Final = "input "
"""Phase of the failure of a task that could not have an input; the object's name follows."""


class InputLost(Exception):
    """The value of an input is with a node, and cannot be had from there.

    Attributes:
        object_id: Its name there.
    """

    def __init__(self, object_id: str, text: str) -> None:
        super().__init__(text)
        self.object_id = object_id


def cannot_load(place: bytes, token: str) -> memoryview:
    """Stand in for a `Load` where nothing is with a node."""
    raise InputLost("", "the value is with a worker, and cannot be had from there here")


def filling(
    decode: Callable[[Any], Call], decoder_of: DecoderOf, load: Load = cannot_load
) -> Callable[[bytes], Call]:
    """Make a decoder of calls that puts the values of inputs where their slots are.

    Args:
        decode: Decodes the call itself.
        decoder_of: Returns the decoder of values of a codec's number.
        load: Brings values that are with a node.
    """

    def decode_filled(payload: bytes) -> Call:
        call, *encoded = split_parts(payload)
        args, kwargs = decode(call)
        values = [_value_of(one, decoder_of, load) for one in encoded]
        if values:
            args = [values[each.index] if type(each) is Slot else each for each in args]
            kwargs = {
                name: values[each.index] if type(each) is Slot else each
                for name, each in kwargs.items()
            }
        return args, kwargs

    return decode_filled


def has_placed(payload: bytes) -> bool:
    """Whether a value of a call that was joined is with a node."""
    return any(part[0] == PLACED for part in split_parts(payload)[1:])


def placed_in(payload: bytes, most: int) -> list[bytes]:
    """Return the packed places of values that a call takes; none of a call of more than ``most``.

    Raises:
        ValueError: it is no call that was joined.
    """
    if len(payload) < _COUNT.size or not 1 < _COUNT.unpack_from(payload)[0] <= 1 + most:
        return []
    return [_place_of(part)[2] for part in split_parts(payload)[1:] if part[0] == PLACED]


def loaded(encoded: memoryview, load: Load) -> tuple[int, memoryview]:
    """Return codec and bytes of an input whose value is with a node (its first byte is `PLACED`).

    Raises:
        InputLost: it cannot be had from there.
    """
    codec, index, place, token = _place_of(encoded)
    whole = load(place, token)
    return codec, whole if index == WHOLE else view_of_part(whole, index)


def _place_of(encoded: memoryview) -> tuple[int, int, bytes, str]:
    """Return codec, index, packed place and token of an input that is with a node."""
    codec, index, size = _PLACED.unpack_from(encoded, 1)
    start = 1 + _PLACED.size
    token = bytes(encoded[start + size :]).decode()
    return codec, index, bytes(encoded[start : start + size]), token


def _value_of(encoded: memoryview, decoder_of: DecoderOf, load: Load) -> Any:
    if encoded[0] == PLACED:
        codec, value = loaded(encoded, load)
        return decoder_of(codec)(value)
    if encoded[0] == LOST:
        raise PayloadError(bytes(encoded[1:]).decode(errors="replace"))
    return decoder_of(encoded[0])(encoded[1:])


def returning(
    encode: Callable[[Any], bytes | FlatValue], count: int, name: str
) -> Callable[[Any], bytes]:
    """Make an encoder of several values that have references of their own.

    Args:
        encode: Encodes one value.
        count: How many there have to be.
        name: Of the function, for the error.
    """

    def encode_each(values: Any) -> bytes:
        try:
            found = list(values)
        except TypeError:
            raise WrongReturn(
                f"{name} has num_returns={count}, and returned a {type(values).__name__}; "
                f"return a tuple or list of {count} values"
            ) from None
        if len(found) != count:
            raise WrongReturn(
                f"{name} has num_returns={count}, and returned {len(found)} values; return as "
                "many as that, or change num_returns"
            )
        return join_parts([bytes(encode(value)) for value in found])

    return encode_each


class WrongReturn(ValueError):
    """A function has not returned as many values as it said."""
