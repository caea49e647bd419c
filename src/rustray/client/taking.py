"""Calls whose arguments are references: what is encoded, and what the head is told to wait for."""

from __future__ import annotations

import pickle
from typing import Any, Final

from rustray.client.generators import ItemRef
from rustray.client.refs import SUCCEEDED, TaskRef
from rustray.client.values import Placed
from rustray.task.codec import decode_value, encode_call
from rustray.task.flat import FlatValue
from rustray.task.inputs import Slot
from rustray.task.pickling import PROTOCOL, dumps_call_parts, is_plain, loads
from rustray.task.spec import Codec

INLINE_BYTES: Final = 100 << 10
"""A value that is here already, up to this size, goes along with the call."""


class _Inline:
    """Stands in an encoded call for a value that is encoded already."""

    __slots__ = ("_codec", "_payload")

    def __init__(self, codec: Codec, payload: bytes) -> None:
        self._codec = codec
        self._payload = payload

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._codec is Codec.PICKLE:
            return loads, (bytes(self._payload),)
        return decode_value, (self._codec, bytes(self._payload))


_has_none: Final = frozenset((TaskRef, ItemRef)).isdisjoint


def takes_any(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an argument is a reference; those inside of other arguments stay references."""
    has_none = _has_none(map(type, args))
    return not has_none or (bool(kwargs) and not _has_none(map(type, kwargs.values())))


def encode_taking(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bytes | FlatValue, tuple[TaskRef[Any], ...]]:
    """Encode a call, with slots where its references are.

    Returns:
        The call, and the references in the order of the slots, each once.

    Raises:
        PayloadError: an argument cannot travel; names it.
    """
    taken: dict[int, tuple[Slot, TaskRef[Any]]] = {}

    def placed(value: Any) -> Any:
        kind = type(value)
        if kind is not TaskRef and kind is not ItemRef:
            return value
        data = value._data
        if kind is ItemRef:  # its consumer has it, and maybe nobody else any more
            return _Inline(value._batch.entry.task_class.codec, data)
        if value._state == SUCCEEDED and type(data) is not Placed and len(data) <= INLINE_BYTES:
            return _Inline(value._batch.entry.task_class.codec, data)
        known = taken.get(id(value))
        if known is None:
            known = taken[id(value)] = (Slot(len(taken)), value)
        return known[0]

    new_args = tuple(map(placed, args))
    new_kwargs = {name: placed(value) for name, value in kwargs.items()}
    values = [*new_args, *new_kwargs.values()]
    payload: bytes | FlatValue
    if all(type(value) in (Slot, _Inline) or is_plain(value) for value in values):
        payload = pickle.dumps((new_args, new_kwargs), PROTOCOL)
    else:
        try:
            payload = dumps_call_parts(new_args, new_kwargs)
        except Exception:
            payload = encode_call(Codec.PICKLE, new_args, new_kwargs)  # says which one it was
    return payload, tuple(ref for _, ref in taken.values())
