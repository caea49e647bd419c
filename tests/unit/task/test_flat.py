"""Large buffers travel beside their pickle, are read without a copy, and damage is noticed."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.common.errors import PayloadError
from rustray.task import flat, pickling
from rustray.task.codec import decode_call, decode_value, encode_call, encode_value
from rustray.task.spec import Codec

LARGE = flat.MIN_BUFFER_BYTES // 8


class Frame:
    """As pandas and Arrow do it: columns that give their memory to pickle protocol 5."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def __reduce_ex__(self, protocol: Any) -> Any:
        buffers = {name: pickle.PickleBuffer(column) for name, column in self.columns.items()}
        return Frame, (buffers,)


def test_a_large_array_is_a_view_of_the_payload() -> None:
    """What is read is the payload's own memory, and nobody can write to it."""
    array = np.arange(LARGE, dtype=np.int64)
    payload = encode_value(Codec.PICKLE, {"a": array, "text": "small"})
    assert payload[0] == flat.FIRST_BYTE
    found = decode_value(Codec.PICKLE, payload)
    assert np.array_equal(found["a"], array)
    assert np.shares_memory(found["a"], np.frombuffer(payload, np.uint8))
    assert not found["a"].flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


def test_a_small_array_is_a_plain_pickle_and_can_be_written_to() -> None:
    """Below the line nothing changes for users."""
    payload = encode_value(Codec.PICKLE, np.arange(LARGE - 1, dtype=np.int64))
    assert not flat.is_flat(payload)
    found = decode_value(Codec.PICKLE, payload)
    found[0] = 5
    assert found[0] == 5


def test_buffers_are_aligned_also_where_several_payloads_follow_each_other() -> None:
    """Each buffer begins at a multiple of 64 bytes, and so does the next payload."""
    values = [np.arange(LARGE + i, dtype=np.float64) for i in range(3)]
    parts = pickling.dumps_parts(values)
    assert isinstance(parts, flat.FlatValue)
    assert len(parts) == len(bytes(parts))
    assert len(parts) % flat.ALIGNMENT == 0
    payload = bytes(parts)
    base = np.frombuffer(payload, np.uint8).ctypes.data
    found = pickling.loads(payload)
    assert [(each.ctypes.data - base) % flat.ALIGNMENT for each in found] == [0, 0, 0]
    assert all(np.array_equal(a, b) for a, b in zip(values, found, strict=True))


def test_any_class_with_pickle_buffers_is_read_without_a_copy() -> None:
    """Not only numpy: whoever hands out PickleBuffers gets memory back."""
    frame = Frame({"x": np.arange(LARGE), "y": np.ones(LARGE), "z": np.zeros(3)})
    payload = encode_value(Codec.PICKLE, frame)
    found = decode_value(Codec.PICKLE, payload)
    whole = np.frombuffer(payload, np.uint8)
    for name, column in frame.columns.items():
        again = np.frombuffer(found.columns[name], column.dtype)
        assert np.array_equal(again, column)
        assert np.shares_memory(again, whole) == (name != "z")


def test_arguments_travel_the_same_way() -> None:
    """Positional and keyword arguments are shared as well."""
    array = np.arange(LARGE, dtype=np.int64)
    payload = encode_call(Codec.PICKLE, (1, array), {"again": array})
    args, kwargs = decode_call(Codec.PICKLE, payload)
    assert args[0] == 1
    assert np.array_equal(args[1], array)
    assert args[1] is kwargs["again"]  # pickle remembers, also what is beside it
    assert len(payload) < 2 * array.nbytes


@given(cut=st.integers(0, 300), flip=st.integers(0, 63))
def test_a_damaged_head_or_a_cut_payload_is_an_error_and_never_other_bytes(
    cut: int, flip: int
) -> None:
    """A cut is noticed by the size; a head that was changed is refused or harmless."""
    array = np.arange(LARGE, dtype=np.int64)
    payload = encode_value(Codec.PICKLE, array)
    if cut:
        with pytest.raises(PayloadError, match="cut or damaged"):
            decode_value(Codec.PICKLE, payload[:-cut])
    damaged = bytearray(payload)
    damaged[flip] ^= 0x55
    try:
        found = decode_value(Codec.PICKLE, bytes(damaged))
    except PayloadError:
        return
    assert isinstance(found, np.ndarray)  # only padding, or where a buffer begins within it
    assert found.nbytes <= len(payload)


def test_another_version_is_named() -> None:
    """A layout of later says so."""
    payload = bytearray(encode_value(Codec.PICKLE, np.zeros(LARGE)))
    payload[4] = 9
    with pytest.raises(PayloadError, match="version 9"):
        decode_value(Codec.PICKLE, bytes(payload))


@pytest.mark.parametrize("codec", [Codec.MSGPACK, Codec.JSON])
def test_a_data_codec_never_unpickles_such_a_payload(codec: Codec) -> None:
    """A pickle bomb under a data codec is bytes that are no such data."""
    fired: list[int] = []

    class Bomb:
        def __reduce__(self) -> Any:
            return fired.append, (1,)

    stream = pickle.dumps(Bomb(), 5)
    payload = bytes(flat.FlatValue(stream, [memoryview(bytes(flat.MIN_BUFFER_BYTES))]))
    for each in (payload, stream):
        with pytest.raises(PayloadError):
            decode_value(codec, each)
    assert fired == []
