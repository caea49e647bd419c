"""Large copies: whole, and as careful as Python's own."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import pytest

from rustray.objects import copying, mapping
from rustray.objects.copying import copy

SIZE = 100_003


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy small things as large ones are."""
    monkeypatch.setattr(copying, "LARGE_BYTES", 1)


@pytest.mark.parametrize("size", [1, 2, 3, SIZE])
def test_a_copy_is_whole(size: int) -> None:
    """Also of memory that may not be written, and next to bytes that stay as they are."""
    source = os.urandom(size)
    for each in (source, memoryview(source), memoryview(bytearray(source))):
        target = bytearray(size + 2)
        copy(memoryview(target)[1:-1], each)
        assert bytes(target) == b"\0" + source + b"\0"


def test_others_go_on_while_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a function of the C library, which ctypes calls without the interpreter's lock."""
    libc = mapping.Libc.get()
    assert isinstance(libc, ctypes.CDLL)
    assert not isinstance(libc, ctypes.PyDLL)
    sizes: list[int] = []

    def memmove(to: int, start: int, size: int) -> None:
        sizes.append(size)
        libc.memmove(to, start, size)

    monkeypatch.setattr(mapping.Libc, "get", lambda: SimpleNamespace(memmove=memmove))
    target = bytearray(SIZE)
    copy(memoryview(target), b"x" * SIZE)
    assert sizes == [SIZE]
    assert target == b"x" * SIZE


def test_both_places_are_let_go() -> None:
    """Neither can be resized while somebody looks at it."""
    source, target = bytearray(b"x" * SIZE), bytearray(SIZE)
    with memoryview(target) as view, memoryview(source) as other:
        copy(view, other)
    source.clear()
    target.clear()


@pytest.mark.parametrize(
    ("target", "source", "error"),
    [
        (memoryview(bytearray(5)), b"x" * 6, ValueError),
        (memoryview(b"x" * 6), b"y" * 6, TypeError),
        (memoryview(bytearray(16)), memoryview(bytes(16)).cast("d"), ValueError),
    ],
)
def test_what_does_not_fit_is_refused(
    target: memoryview, source: bytes | memoryview, error: type[Exception]
) -> None:
    """As a small copy refuses it, and nothing is written beside."""
    with pytest.raises(error):
        copy(target, source)


def test_what_does_not_lie_together_is_copied() -> None:
    """As a small copy does it."""
    target = bytearray(3)
    copy(memoryview(target), memoryview(b"axbxcx")[::2])
    assert target == b"abc"


def test_a_program_may_set_up_the_interpreter_s_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `ctypes.pythonapi` are everybody's."""
    monkeypatch.setattr(ctypes.pythonapi.PyObject_GetBuffer, "argtypes", [ctypes.c_int] * 3)
    target = bytearray(SIZE)
    copy(memoryview(target), b"x" * SIZE)
    assert target == b"x" * SIZE
