"""Find out which part of a value cannot be encoded, for the error message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Final

from rustray.task.extensions import type_name

_MAX_TRIES: Final = 2_000
_MAX_DEPTH: Final = 24


def locate(encode: Callable[[Any], Any], value: Any, root: str) -> str:
    """Name the innermost part that ``encode`` refuses.

    Args:
        encode: Raises for what cannot be encoded.
        value: What was refused as a whole.
        root: How to call the value itself.

    Returns:
        A path like ``args[1]['x'].lock (a _thread.lock)``. At most 2,000 parts are tried;
        where none of them fails alone, the path stops at what holds them.
    """
    tries = _MAX_TRIES
    path = root
    seen: set[int] = set()
    for _ in range(_MAX_DEPTH):
        seen.add(id(value))
        for step, part in _parts(value):
            tries -= 1
            if tries < 0:
                break
            if id(part) in seen or _encodes(encode, part):
                continue
            path += step
            value = part
            break
        else:
            break
        if tries < 0:
            break
    return f"{path} (a {type_name(value)})"


def _encodes(encode: Callable[[Any], Any], part: Any) -> bool:
    try:
        encode(part)
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (how to reach it, part) for everything that a value directly holds."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r:.80}]", part
        for key in value:
            yield f".key({key!r:.80})", key
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, set | frozenset):
        for part in value:
            yield f".item({part!r:.80})", part
    elif isinstance(value, FunctionType):
        yield from _captured(value)
    elif not hasattr(type(value), "__rustray_opaque__"):
        yield from _attributes(value)


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".<closure {name}>", cell.cell_contents
        except ValueError:
            continue
    for name in code.co_names:
        if name in function.__globals__:
            yield f".<global {name}>", function.__globals__[name]
    for index, default in enumerate(function.__defaults__ or ()):
        yield f".<default {index}>", default


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        for name, part in held.items():
            yield f".{name}", part
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)
