"""Pickle for functions that travel as code: plain pickle where that is safe, else cloudpickle.

Plain pickle writes classes and functions of ``__main__`` by reference, and the executor's
``__main__`` does not have them. So only values made of exact builtin types take the short
way; everything else goes through cloudpickle, which writes such classes by value. Buffers of
100 KiB and more (numpy arrays, for one) are laid beside the pickle, see `rustray.task.flat`.

Imported only where the codec PICKLE is used: the head never loads this module.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final

import cloudpickle

from rustray.task import flat
from rustray.task.flat import BEGINNING, FlatValue

PROTOCOL: Final = 5
ATOMS: Final = frozenset({int, str, float, bytes, bool, type(None), complex})
"""Exact types that pickle writes without looking at any class."""

_CONTAINERS: Final = frozenset({tuple, list, dict, set, frozenset})
_MAX_SCAN: Final = 512
_is_atomic: Final = ATOMS.issuperset
_dumps: Final = pickle.dumps
_cloud_dumps: Final[Callable[..., bytes]] = cloudpickle.dumps
_loads: Final = pickle.loads


def is_plain(value: Any, depth: int = 4) -> bool:
    """Say whether plain pickle certainly writes this correctly.

    False is always safe: containers over 512 items or 4 levels are not looked through, for
    there cloudpickle's fixed cost does not matter.
    """
    kind = type(value)
    if kind in ATOMS:
        return True
    if kind not in _CONTAINERS:
        return kind is bytearray
    if len(value) > _MAX_SCAN:
        return False
    items = [*value, *value.values()] if kind is dict else value
    if _is_atomic(map(type, items)):
        return True
    return depth > 1 and all(is_plain(item, depth - 1) for item in items)


def loads(payload: bytes | memoryview) -> Any:
    """Unpickle; large buffers in what comes back are read-only views of the payload."""
    if payload[:1] == BEGINNING:
        return flat.decode(payload)
    return _loads(payload)


def dumps(value: Any) -> bytes:
    """Pickle any value; what pickle raises passes through."""
    if type(value) in ATOMS or is_plain(value):
        return _dumps(value, PROTOCOL)
    return bytes(flat.encode(_cloud_dumps, value, PROTOCOL))


def dumps_parts(value: Any) -> bytes | FlatValue:
    """Do as `dumps`, without the copy that joins large buffers to the rest."""
    if type(value) in ATOMS or is_plain(value):
        return _dumps(value, PROTOCOL)
    return flat.encode(_cloud_dumps, value, PROTOCOL)


def dumps_call_parts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | FlatValue:
    """Pickle the arguments of one call; what pickle raises passes through.

    Large buffers are still where they were: they must not change before they are written.
    """
    if _is_atomic(map(type, args)):
        if not kwargs or _is_atomic(map(type, kwargs.values())):
            return _dumps((args, kwargs), PROTOCOL)
    elif is_plain(args) and (not kwargs or is_plain(kwargs)):
        return _dumps((args, kwargs), PROTOCOL)
    return flat.encode(_cloud_dumps, (args, kwargs), PROTOCOL)


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Do as `dumps_call_parts`, with all of it in one piece."""
    return bytes(dumps_call_parts(args, kwargs))
