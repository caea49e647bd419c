"""msgpack with the Python types that plain msgpack lacks.

=====  ===========================================================================
code   meaning
=====  ===========================================================================
1      tuple: a msgpack array
2      set: a msgpack array
3      frozenset: a msgpack array
4      complex: a msgpack array of two floats
5      datetime: ISO 8601 text
6      date: ISO 8601 text
7      timedelta: a msgpack array of days, seconds, microseconds
8      integer beyond 64 bit: two's complement, little-endian
9      numpy array of a plain dtype: a msgpack array of dtype, shape, C-order bytes
=====  ===========================================================================

Subclasses of dict, list, str, int, float and bytes travel as their base, named tuples as
tuples, numpy scalars as numbers. Nothing here can run code while it decodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any, Final

import msgpack

TUPLE: Final = 1
SET: Final = 2
FROZENSET: Final = 3
COMPLEX: Final = 4
DATETIME: Final = 5
DATE: Final = 6
TIMEDELTA: Final = 7
BIG_INT: Final = 8
NDARRAY: Final = 9

_PLAIN_DTYPES: Final = "biufcSUmM"


def pack(value: Any) -> bytes:
    """Encode a value.

    Raises:
        TypeError: of a type that cannot travel; or what msgpack raises.
    """
    packed: bytes = msgpack.packb(value, default=_extend, strict_types=True, use_bin_type=True)
    return packed


def unpack(payload: bytes) -> Any:
    """Decode a value.

    Raises:
        ValueError: or another Exception of msgpack: not our msgpack.
    """
    return msgpack.unpackb(payload, ext_hook=_restore, strict_map_key=False, raw=False)


def _pack_int(value: int) -> msgpack.ExtType:
    return msgpack.ExtType(
        BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    )


_ENCODERS: Final[dict[type, Callable[[Any], msgpack.ExtType]]] = {
    tuple: lambda v: msgpack.ExtType(TUPLE, pack(list(v))),
    set: lambda v: msgpack.ExtType(SET, pack(list(v))),
    frozenset: lambda v: msgpack.ExtType(FROZENSET, pack(list(v))),
    complex: lambda v: msgpack.ExtType(COMPLEX, pack([v.real, v.imag])),
    datetime: lambda v: msgpack.ExtType(DATETIME, v.isoformat().encode()),
    date: lambda v: msgpack.ExtType(DATE, v.isoformat().encode()),
    timedelta: lambda v: msgpack.ExtType(TIMEDELTA, pack([v.days, v.seconds, v.microseconds])),
    int: _pack_int,
}
_BASES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (dict, dict),
    (list, list),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes),
    (tuple, lambda v: _ENCODERS[tuple](v)),
)


def _extend(value: Any) -> Any:
    encoder = _ENCODERS.get(type(value))
    if encoder is not None:
        return encoder(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return _pack_array(value)
        if isinstance(value, numpy.generic):
            item = value.item()
            if type(item) is not type(value):
                return item
    for base, convert in _BASES:
        if isinstance(value, base):
            return convert(value)
    raise TypeError(f"a {type_name(value)} cannot travel as msgpack")


def _pack_array(array: Any) -> msgpack.ExtType:
    if array.dtype.kind not in _PLAIN_DTYPES:
        raise TypeError(f"a numpy array of dtype {array.dtype} cannot travel as msgpack")
    parts = [array.dtype.str, list(array.shape), array.tobytes()]
    return msgpack.ExtType(NDARRAY, pack(parts))


def _unpack_array(data: bytes) -> Any:
    import numpy

    dtype_text, shape, raw = unpack(data)
    dtype = numpy.dtype(dtype_text)
    if dtype.kind not in _PLAIN_DTYPES:
        raise ValueError(f"refused dtype {dtype}")
    return numpy.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


_DECODERS: Final[dict[int, Callable[[bytes], Any]]] = {
    TUPLE: lambda d: tuple(unpack(d)),
    SET: lambda d: set(unpack(d)),
    FROZENSET: lambda d: frozenset(unpack(d)),
    COMPLEX: lambda d: complex(*unpack(d)),
    DATETIME: lambda d: datetime.fromisoformat(d.decode()),
    DATE: lambda d: date.fromisoformat(d.decode()),
    TIMEDELTA: lambda d: timedelta(*unpack(d)),
    BIG_INT: lambda d: int.from_bytes(d, "little", signed=True),
    NDARRAY: _unpack_array,
}


def _restore(code: int, data: bytes) -> Any:
    decoder = _DECODERS.get(code)
    if decoder is None:
        raise ValueError(f"unknown msgpack extension {code}")
    return decoder(data)


def type_name(value: object) -> str:
    """Return the class of a value as people write it, e.g. ``_thread.lock`` or ``generator``."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
