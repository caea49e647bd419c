"""Arguments, results and failures as bytes, and back.

===========  =====================================================================
codec        carries
===========  =====================================================================
``PICKLE``   any Python object; decoding runs code, so only executors and the
             client that asked decode it, never the head
``MSGPACK``  data and the types of `rustray.task.extensions`
``JSON``     what JSON has; tuples become arrays, numpy numbers and arrays plain ones
===========  =====================================================================

A call is the pair ``[args, kwargs]``. pickle and cloudpickle are loaded at the first use of
``PICKLE``: a process that never uses it never has them.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

from rustray.common.errors import PayloadError
from rustray.task.extensions import pack, type_name, unpack
from rustray.task.failures import (
    decode_failure,
    encode_failure,
    failure_from_exception,
    safe_text,
    shorten,
)
from rustray.task.flat import FlatValue
from rustray.task.locate import locate
from rustray.task.spec import Codec

__all__ = [
    "call_encoder",
    "decode_call",
    "decode_failure",
    "decode_value",
    "encode_call",
    "encode_failure",
    "encode_value",
    "explain_decode_error",
    "failure_from_exception",
    "find_unserializable",
    "parts_encoder",
    "value_decoder",
    "value_encoder",
]

_VERBS: Final = {
    Codec.PICKLE: "be pickled",
    Codec.MSGPACK: "travel as msgpack",
    Codec.JSON: "travel as JSON",
}
_MAX_REASON: Final = 400


def _plain_number(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return value.tolist()
    raise TypeError(f"a {type_name(value)} cannot travel as JSON")


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_json_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain_number
).encode
_json_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _encode_json(value: Any) -> bytes:
    return _json_encode(value).encode()


def _load_json(payload: bytes) -> Any:
    return _json_decode(bytes(payload).decode())


def value_encoder(codec: Codec) -> Callable[[Any], bytes]:
    """Return the bare encoder of a codec, for loops; it raises what the library raises."""
    if codec == Codec.PICKLE:
        from rustray.task import pickling

        return pickling.dumps
    return pack if codec == Codec.MSGPACK else _encode_json


def parts_encoder(codec: Codec) -> Callable[[Any], bytes | FlatValue]:
    """Return an encoder as `value_encoder` does; it leaves large buffers where they are."""
    if codec == Codec.PICKLE:
        from rustray.task import pickling

        return pickling.dumps_parts
    return value_encoder(codec)


def value_decoder(codec: Codec, *, is_small: bool = False) -> Callable[[bytes], Any]:
    """Return the bare decoder of a codec, for loops; it raises what the library raises.

    Args:
        codec: The codec.
        is_small: It gets less than `MIN_BUFFER_BYTES` at a time: no `FlatValue`.
    """
    if codec == Codec.PICKLE:
        if is_small:
            return pickle.loads
        from rustray.task import pickling

        return pickling.loads
    return unpack if codec == Codec.MSGPACK else _load_json


def call_encoder(codec: Codec) -> Callable[[tuple[Any, ...], dict[str, Any]], bytes]:
    """Return the bare encoder of calls, for loops.

    It raises what the library raises; `encode_call` says then which argument it was.
    """
    if codec == Codec.PICKLE:
        from rustray.task import pickling

        return pickling.dumps_call
    encode = value_encoder(codec)
    return lambda args, kwargs: encode([list(args), kwargs])


def encode_value(codec: Codec, value: Any, what: str = "value") -> bytes:
    """Encode one value.

    Args:
        codec: How.
        value: What.
        what: How the error message calls it.

    Raises:
        PayloadError: it cannot be encoded; the message says which part of it and why.
    """
    encode = value_encoder(codec)
    try:
        return encode(value)
    except Exception as exc:
        path = locate(encode, value, what)
        raise PayloadError(f"the {what} cannot {_VERBS[codec]}: {path}: {_reason(exc)}") from exc


def decode_value(codec: Codec, payload: bytes) -> Any:
    """Decode one value.

    Raises:
        PayloadError: the bytes are not that, or the pickle needs what is not here.
    """
    try:
        return value_decoder(codec)(payload)
    except Exception as exc:
        raise PayloadError(explain_decode_error(codec, exc, "value")) from exc


def encode_call(codec: Codec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Encode the arguments of one call.

    Raises:
        PayloadError: one of them cannot be encoded; the message names it and the part of it.
    """
    try:
        return call_encoder(codec)(args, kwargs)
    except Exception as exc:
        path = find_unserializable(codec, (args, kwargs))
        raise PayloadError(f"argument {path} cannot {_VERBS[codec]}: {_reason(exc)}") from exc


def decode_call(codec: Codec, payload: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Decode the arguments of one call.

    Raises:
        PayloadError: the bytes are not a call in this codec.
    """
    try:
        args, kwargs = check_call(value_decoder(codec)(payload))
    except PayloadError:
        raise
    except Exception as exc:
        raise PayloadError(explain_decode_error(codec, exc, "arguments")) from exc
    return tuple(args), kwargs


def check_call(call: Any) -> tuple[list[Any] | tuple[Any, ...], dict[str, Any]]:
    """Take a decoded call apart.

    Raises:
        PayloadError: it is not ``[args, kwargs]``.
    """
    if isinstance(call, list | tuple) and len(call) == 2:
        args, kwargs = call
        if isinstance(args, list | tuple) and isinstance(kwargs, dict):
            for key in kwargs:
                if not isinstance(key, str):
                    raise PayloadError(f"keyword argument {key!r:.80} must be named by a text")
            return args, kwargs
    raise PayloadError("the arguments must be a pair [list of arguments, map of keyword arguments]")


def find_unserializable(codec: Codec, value: Any, root: str = "") -> str:
    """Name the innermost part of a value that cannot be encoded.

    Args:
        codec: How it should have been encoded.
        value: What; a pair (args tuple, kwargs dict) if ``root`` is "".
        root: How to call the value itself.

    Returns:
        A path like ``args[1]['x'].lock (a _thread.lock)``.
    """
    encode = value_encoder(codec)
    if root:
        return locate(encode, value, root)
    args, kwargs = value
    for name, part in (("args", list(args)), ("kwargs", kwargs)):
        try:
            encode(part)
        except Exception:
            return locate(encode, part, name)
    return "args and kwargs together"


def explain_decode_error(codec: Codec, exc: BaseException, what: str) -> str:
    """Say in words why something could not be decoded."""
    if isinstance(exc, PayloadError):
        return str(exc)
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        return (
            f"the {what} cannot be unpickled: they need the Python module {exc.name!r}, which is "
            f"not installed or not on the path there"
        )
    name = {Codec.PICKLE: "pickle", Codec.MSGPACK: "msgpack", Codec.JSON: "JSON"}[codec]
    return f"the {what} cannot be decoded as {name}: {_reason(exc)}"


def _reason(exc: BaseException) -> str:
    text = shorten(safe_text(exc), _MAX_REASON)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
