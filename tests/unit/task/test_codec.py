"""Arguments, results and failures survive the trip as bytes, and what cannot says so."""

from __future__ import annotations

import datetime as dt
import enum
import os
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.common.errors import PayloadError
from rustray.task import codec, pickling
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


class Level(enum.StrEnum):
    LOW = "low"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)
DATA_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.binary()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.datetimes()
    | st.dates()
    | st.timedeltas(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text("abc"), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_json_values_survive_every_codec(value: Any) -> None:
    """A value that JSON has comes back equal from each codec."""
    for each in Codec:
        assert codec.decode_value(each, codec.encode_value(each, value)) == value


@given(DATA_VALUES)
def test_data_survives_msgpack_and_pickle_with_its_types(value: Any) -> None:
    """Tuples, sets, complex numbers, dates and big integers keep type and value."""
    for each in (Codec.MSGPACK, Codec.PICKLE):
        back = codec.decode_value(each, codec.encode_value(each, value))
        assert back == value
        assert type(back) is type(value)


@given(st.lists(DATA_VALUES, max_size=3), st.dictionaries(st.text("xyz", min_size=1), DATA_VALUES))
def test_calls_survive(args: list[Any], kwargs: dict[str, Any]) -> None:
    """Positional arguments come back as a tuple, keyword arguments as a dict."""
    for each in (Codec.MSGPACK, Codec.PICKLE):
        payload = codec.encode_call(each, tuple(args), kwargs)
        assert codec.decode_call(each, payload) == (tuple(args), kwargs)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(1, 2), (1, 2)),
        (Colour.RED, 1),
        (Level.LOW, "low"),
        (OrderedDict(a=1), {"a": 1}),
        (np.float64(1.5), 1.5),
        (np.int32(7), 7),
        (np.bool_(True), True),
        ({1: "a", (1, 2): "b"}, {1: "a", (1, 2): "b"}),
        (float("inf"), float("inf")),
        (
            dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=8))),
            dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=8))),
        ),
    ],
)
def test_subclasses_travel_in_msgpack_as_their_base(value: Any, expected: Any) -> None:
    """Named tuples, enums, ordered dicts and numpy scalars arrive as plain data."""
    assert codec.decode_value(Codec.MSGPACK, codec.encode_value(Codec.MSGPACK, value)) == expected


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 4)),
        np.array(3.5),
        np.array([True, False]),
        np.array(["ab", "c"]),
        np.arange(12.0).reshape(3, 4).T,
        np.array(["2026-01-01"], dtype="datetime64[D]"),
    ],
)
def test_arrays_survive_msgpack_writable(array: np.ndarray[Any, Any]) -> None:
    """A numpy array comes back with dtype, shape and values, and may be written to."""
    back = codec.decode_value(Codec.MSGPACK, codec.encode_value(Codec.MSGPACK, array))
    assert back.dtype == array.dtype
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_numpy_results_become_plain_json() -> None:
    """Programs of other languages get numbers and nested arrays."""
    payload = codec.encode_value(Codec.JSON, {"m": np.eye(2), "n": np.int64(3)})
    assert codec.decode_value(Codec.JSON, payload) == {"m": [[1.0, 0.0], [0.0, 1.0]], "n": 3}


class Holder:
    def __init__(self, inner: Any) -> None:
        self.lock = inner


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class BadReduce:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def captures(lock: Any) -> Any:
    """Return a closure over the lock."""

    def inner() -> Any:
        return lock

    return inner


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((threading.Lock(),), {}, "args[0] (a _thread.lock)"),
        ((1, {"x": Holder(threading.Lock())}), {}, "args[1]['x'].lock (a _thread.lock)"),
        ((), {"k": [1, (2, threading.Lock())]}, "kwargs['k'][1][1] (a _thread.lock)"),
        ((Slotted((i for i in [1])),), {}, "args[0].inner (a generator)"),
        ((captures(threading.Lock()),), {}, "args[0].<closure lock> (a _thread.lock)"),
        (([BadReduce()],), {}, "args[0][0] (a "),
    ],
)
def test_the_error_names_the_part_that_cannot_be_pickled(
    args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> None:
    """The message has the path to the innermost part and its type."""
    with pytest.raises(PayloadError) as caught:
        codec.encode_call(Codec.PICKLE, args, kwargs)
    assert f"argument {where}" in str(caught.value)


@pytest.mark.parametrize(
    ("each", "value", "where"),
    [
        (Codec.MSGPACK, {"a": [1, object()]}, "result['a'][1] (a object)"),
        (Codec.MSGPACK, np.array([object()]), "result (a numpy.ndarray)"),
        (Codec.MSGPACK, "\ud800", "result (a str)"),
        (Codec.JSON, [{1, 2}], "result[0] (a set)"),
        (Codec.JSON, float("nan"), "result (a float)"),
        (Codec.JSON, b"x", "result (a bytes)"),
    ],
)
def test_the_error_names_the_part_of_a_result(each: Codec, value: Any, where: str) -> None:
    """Data codecs refuse what they cannot carry and say where it is."""
    with pytest.raises(PayloadError) as caught:
        codec.encode_value(each, value, "result")
    assert where in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    """A list inside itself does not recurse for ever in the data codecs."""
    value: list[Any] = []
    value.append(value)
    for each in (Codec.MSGPACK, Codec.JSON):
        with pytest.raises(PayloadError):
            codec.encode_value(each, value)


@given(st.binary(max_size=60))
def test_garbage_never_decodes_into_anything_but_a_payload_error(data: bytes) -> None:
    """Bytes that are no call give PayloadError in the data codecs, and no other error."""
    for each in (Codec.MSGPACK, Codec.JSON):
        try:
            args, kwargs = codec.decode_call(each, data)
        except PayloadError:
            continue
        assert isinstance(args, tuple)
        assert isinstance(kwargs, dict)


@pytest.mark.parametrize("each", list(Codec))
@pytest.mark.parametrize("value", [None, 5, [], [[1]], [1, {}], [[], []], [[], {1: 2}]])
def test_a_payload_that_is_no_call_is_refused(each: Codec, value: Any) -> None:
    """Only a pair of a list and a map with text keys is a call (JSON turns 1 into "1")."""
    if each is Codec.JSON and value == [[], {1: 2}]:
        return
    with pytest.raises(PayloadError):
        codec.decode_call(each, codec.encode_value(each, value))


def test_a_pickle_that_needs_a_missing_module_names_it() -> None:
    """The message says which module is missing."""
    payload = b"cno_such_module_here\nThing\n."
    with pytest.raises(PayloadError, match="no_such_module_here"):
        codec.decode_value(Codec.PICKLE, payload)


MAIN_ROUND_TRIP = """
import pickle, sys
from rustray.task import codec
from rustray.task.spec import Codec
class Local:
    def __init__(self, n): self.n = n
def helper(x): return x + 1
payload = codec.encode_call(Codec.PICKLE, (Local(3), [helper], lambda: 7), {"k": {"a": (Local,)}})
sys.stdout.buffer.write(payload)
"""


def test_classes_and_functions_of_a_script_travel_by_value() -> None:
    """What lives in ``__main__`` decodes in a process that has another ``__main__``."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN_ROUND_TRIP],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
        env=ENVIRONMENT,
    )
    args, kwargs = codec.decode_call(Codec.PICKLE, done.stdout)
    assert args[0].n == 3
    assert args[1][0](1) == 2
    assert args[2]() == 7
    assert kwargs["k"]["a"][0].__name__ == "Local"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, True),
        ((1, "a", None), True),
        ({"a": [1, {"b": (2,)}]}, True),
        ([[[[[1]]]]], False),
        ([0] * 600, False),
        (Colour.RED, False),
        (Point(1, 2), False),
        ([Holder(1)], False),
        (bytearray(b"x"), True),
    ],
)
def test_only_exact_builtin_types_take_the_short_way(value: Any, expected: bool) -> None:
    """Instances of any other class may need cloudpickle."""
    assert pickling.is_plain(value) is expected


def test_data_codecs_do_not_load_pickle_tools() -> None:
    """A process that only carries data never imports cloudpickle."""
    code = (
        "import sys; from rustray.task import codec; from rustray.task.spec import Codec;"
        "codec.encode_call(Codec.MSGPACK, (1,), {}); codec.decode_failure(b'x');"
        "sys.exit('cloudpickle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env=ENVIRONMENT)
    assert done.returncode == 0


@given(st.binary(max_size=80))
def test_decode_failure_is_total(data: bytes) -> None:
    """Any bytes at all give a FailureInfo."""
    assert isinstance(codec.decode_failure(data), FailureInfo)


@pytest.mark.parametrize(
    "info",
    [
        FailureInfo("X", "message"),
        FailureInfo("X", "m", "builtins.ValueError", "tb", b"c", b"p", "run", 0, 9),
        FailureInfo("X", "m", exit_code=-1),
    ],
)
def test_a_failure_survives(info: FailureInfo) -> None:
    """Every field comes back, an exit code of 0 too."""
    assert codec.decode_failure(codec.encode_failure(info)) == info


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Untold(Exception):
    """Cannot be found by its name, and its code cannot travel."""

    lock = threading.Lock()


Untold.__qualname__ = "Nobody"


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def raised(exc: BaseException, cause: BaseException | None = None) -> BaseException:
    """Raise and catch, so that the exception has a traceback."""
    try:
        raise exc from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("exc", "message", "is_pickled"),
    [
        (ValueError("bad"), "bad", True),
        (BadText(), "<the text of this BadText raised RuntimeError>", True),
        (TwoArguments(1, 2), "1 and 2", True),
        (OSError(2, "gone"), "[Errno 2] gone", True),
        (ValueError(threading.Lock()), None, True),
        (Untold(), "", False),
        (ValueError("x" * 100_000), None, True),
        (ValueError("\ud800"), "?", True),
        (SystemExit(3), "3", True),
    ],
)
def test_any_exception_becomes_a_failure(
    exc: BaseException, message: str | None, is_pickled: bool
) -> None:
    """Text, class and traceback are there, the pickle only where a copy comes out of it."""
    info = codec.failure_from_exception(raised(exc), Codec.PICKLE)
    assert message is None or info.message == message
    assert len(info.message) < 10_000
    assert info.error_type.endswith(type(exc).__qualname__)
    assert "Traceback" in info.traceback
    assert bool(info.pickled) is is_pickled
    assert codec.decode_failure(codec.encode_failure(info)) == info


def test_data_tasks_carry_no_pickled_exception() -> None:
    """Only PICKLE tasks may ship a pickle."""
    assert codec.failure_from_exception(raised(ValueError("x")), Codec.MSGPACK).pickled == b""


def test_causes_are_nested_and_bounded() -> None:
    """``raise ... from`` is kept for four levels."""
    exc: BaseException = raised(ValueError("level 0"))
    for level in range(1, 10):
        exc = raised(ValueError(f"level {level}"), exc)
    info = codec.failure_from_exception(exc, Codec.PICKLE)
    seen = []
    while info.cause:
        info = codec.decode_failure(info.cause)
        seen.append(info.message)
    assert seen == ["level 8", "level 7", "level 6", "level 5"]


def test_a_cause_that_is_its_own_cause_ends() -> None:
    """A cycle of causes does not recurse for ever."""
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert codec.failure_from_exception(raised(first, second), Codec.PICKLE).message == "a"


def recurse(depth: int) -> int:
    """Raise far down, with a long text."""
    return recurse(depth - 1) + 1 if depth else int("x" * 70_000)


def test_long_tracebacks_keep_head_and_tail() -> None:
    """Over 64 KiB the middle is cut; where it came from and what it was stay."""
    try:
        recurse(3)
    except ValueError as exc:
        info = codec.failure_from_exception(exc, Codec.MSGPACK, skip_frames=1)
    assert info.traceback.startswith("Traceback")
    assert "test_long_tracebacks" not in info.traceback
    assert len(info.traceback) <= 66 * 1024
