"""The functions that an executor process knows, made ready to be called with payloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from rustray.common.errors import FunctionNotFound, PayloadError
from rustray.task import codec as codecs
from rustray.task import inputs
from rustray.task.failures import failure_from_exception, safe_text, shorten
from rustray.task.flat import MIN_BUFFER_BYTES
from rustray.task.functions import FunctionInfo, near_names, registry
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec
from rustray.worker.input_loader import load
from rustray.worker.wire import Definition

Call = tuple[Sequence[Any], dict[str, Any]]

_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no"})
_MAX_SHOWN: Final = 80


class Unresolvable(Exception):
    """The function of a task could not be had; `info` is the failure of each of its tasks."""

    def __init__(self, info: FailureInfo) -> None:
        super().__init__(info.message)
        self.info = info


MAX_STAYING_BYTES: Final = (2 << 30) - 1
"""The most that a result may have which stays with its worker."""


class Callee:
    """A function with the decoder of its arguments and the encoder of its results.

    Attributes:
        name: What messages call it.
        codec: Of arguments and results.
        is_ready: Whether `resolve` is done.
        decode: Payload to (args, kwargs).
        call: The function.
        encode: Result to bytes, or to parts where it is large.
        encode_item: Item of a generator to bytes.
        stream_window: Of a generator: items that may be under way; 0: it returns one value.
    """

    __slots__ = (
        "_decode_small",
        "_definition",
        "_table",
        "call",
        "codec",
        "decode",
        "encode",
        "encode_item",
        "is_ready",
        "may_return",
        "name",
        "stream_window",
    )

    def __init__(self, definition: Definition, table: FunctionTable) -> None:
        self._definition = definition
        self._table = table
        self.name = definition.function
        self.codec = Codec(definition.codec)
        self.stream_window = definition.stream_window
        self.may_return = MAX_STAYING_BYTES if definition.results_stay else 0
        self.is_ready = False
        self.decode: Callable[[bytes], Call] = codecs.value_decoder(self.codec)
        self._decode_small = self.decode
        self.encode = codecs.parts_encoder(self.codec)
        self.encode_item = codecs.value_encoder(self.codec)
        self.call: Callable[..., Any] = _no_function

    def resolve(self) -> None:
        """Find or unpickle the function; a failure becomes that of each call.

        No task may be interrupted meanwhile: what is made here is for all of them.
        """
        with self._table.lock:
            if not self.is_ready:
                self._resolve()

    def _resolve(self) -> None:
        info: FunctionInfo | None = None
        plain = self.decode
        try:
            if self._definition.code:
                self.call = self._table.load(self._definition)
            else:
                self.call, info = _registered(self.name)
        except Unresolvable as exc:
            self._fail_always(exc.info)
        else:
            if self.codec != Codec.PICKLE:
                self.decode = _data_decoder(self.decode, info)
            if self._definition.has_inputs:
                self.decode = inputs.filling(self.decode, _decoder_of, load)
            if self._definition.num_returns != 1:
                self.encode = inputs.returning(self.encode, self._definition.num_returns, self.name)
        self._decode_small = self.decode
        if self.decode is plain:
            self._decode_small = codecs.value_decoder(self.codec, is_small=True)
        self.is_ready = True

    def must_fetch(self, payload: bytes) -> bool:
        """Whether what a call takes has to come from a node first, which may take its time."""
        return self._definition.has_inputs and inputs.has_placed(payload)

    def decoder_of(self, data: bytes) -> Callable[[bytes], Call]:
        """Return what does as `decode` for payloads that are parts of these bytes."""
        return self._decode_small if len(data) < MIN_BUFFER_BYTES else self.decode

    def _fail_always(self, info: FailureInfo) -> None:
        def fail(*_args: Any, **_kwargs: Any) -> Any:
            raise Unresolvable(info)

        self.decode = lambda _payload: ((), {})
        self.call = fail


class FunctionTable:
    """Class number to `Callee`; code is unpickled once, however many classes share it.

    Attributes:
        callees: By class number.
        lock: Held while a function is made ready; an import in it may need it again.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.callees: dict[int, Callee] = {}
        self._loaded: dict[bytes, Callable[..., Any]] = {}

    def define(self, class_number: int, definition: Definition) -> None:
        """Take a definition; the function itself is made at its first task."""
        self.callees[class_number] = Callee(definition, self)

    def load(self, definition: Definition) -> Callable[..., Any]:
        """Unpickle a function that was sent as code.

        Raises:
            Unresolvable: that failed.
        """
        known = self._loaded.get(definition.code_hash)
        if known is not None:
            return known
        from rustray.task import pickling

        try:
            function = pickling.loads(definition.code)
        except BaseException as exc:
            raise Unresolvable(_load_failure(definition.function, exc)) from exc
        if not callable(function):
            text = f"what was sent as the function {definition.function!r} cannot be called"
            raise Unresolvable(FailureInfo(PayloadError.code, text))
        self._loaded[definition.code_hash] = function
        return function  # type: ignore[no-any-return]


def _decoder_of(codec: int) -> Callable[[bytes], Any]:
    return codecs.value_decoder(Codec(codec))


def _no_function(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("called before it was resolved")


def _load_failure(name: str, exc: BaseException) -> FailureInfo:
    """Describe why a function could not be unpickled."""
    reason = f"{type(exc).__name__}: {shorten(safe_text(exc), 400)}"
    advice = ""
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        advice = (
            f"; the module {exc.name!r} is missing on the worker: install it there, or have it "
            f"travel along with cloudpickle.register_pickle_by_value"
        )
    described = failure_from_exception(exc, Codec.MSGPACK, skip_frames=1)
    return FailureInfo(
        PayloadError.code,
        f"the function {name!r} cannot be unpickled on the worker: {reason}{advice}",
        error_type=described.error_type,
        traceback=described.traceback,
    )


def _registered(name: str) -> tuple[Callable[..., Any], FunctionInfo]:
    found = registry.functions.get(name)
    if found is not None:
        return found.call, found.info
    near = near_names(name, registry.functions)
    hint = f"; near names: {', '.join(near)}" if near else ""
    text = f"this worker has no function {name!r}{hint}"
    raise Unresolvable(FailureInfo(FunctionNotFound.code, text))


def _data_decoder(
    unpack: Callable[[bytes], Any], info: FunctionInfo | None
) -> Callable[[bytes], Call]:
    """Build the decoder for data: checks the shape and converts texts to annotated numbers."""
    check = codecs.check_call
    convert = ArgumentConverter(info) if info is not None else None
    if convert is None or not convert.is_needed:
        return lambda payload: check(unpack(payload))

    def decode(payload: bytes) -> Call:
        args, kwargs = check(unpack(payload))
        return convert(args, kwargs)

    return decode


class ArgumentConverter:
    """Turns arguments that arrive as text into what the signature wants: int, float, bool.

    Attributes:
        is_needed: Whether any parameter has such an annotation.
    """

    def __init__(self, info: FunctionInfo) -> None:
        wanted = {p.name: p.annotation for p in info.parameters if p.annotation in _CONVERTERS}
        self._by_name = {
            p.name: wanted[p.name]
            for p in info.parameters
            if p.kind in ("either", "keyword") and p.name in wanted
        }
        self._by_position = [
            (p.name, wanted.get(p.name, ""))
            for p in info.parameters
            if p.kind in ("positional", "either")
        ]
        self._rest = next(
            ((p.name, wanted.get(p.name, "")) for p in info.parameters if p.kind == "args"),
            ("", ""),
        )
        self._other = next(
            (wanted.get(p.name, "") for p in info.parameters if p.kind == "kwargs"), ""
        )
        self.is_needed = bool(wanted)

    def __call__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Call:
        """Convert the texts among the arguments.

        Raises:
            PayloadError: a text is no such value; names parameter, value and type.
        """
        if str in map(type, args):
            slots = self._by_position
            args = [
                _convert(arg, *(slots[i] if i < len(slots) else self._rest))
                for i, arg in enumerate(args)
            ]
        if str in map(type, kwargs.values()):
            kwargs = {
                name: _convert(arg, name, self._by_name.get(name, self._other))
                for name, arg in kwargs.items()
            }
        return args, kwargs


def _convert(value: Any, name: str, annotation: str) -> Any:
    if not annotation or type(value) is not str:
        return value
    try:
        return _CONVERTERS[annotation](value)
    except ValueError:
        kind = f"{'an' if annotation == 'int' else 'a'} {annotation}"
        hint = " (true, false, 1, 0, yes or no)" if annotation == "bool" else ""
        shown = repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "...")
        raise PayloadError(f"argument {name}={shown} is not {kind}{hint}") from None


def _to_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(text)


_CONVERTERS: Final[dict[str, Callable[[str], Any]]] = {
    "int": int,
    "float": float,
    "bool": _to_bool,
}
