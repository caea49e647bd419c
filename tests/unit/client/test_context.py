"""`init`, `shutdown`, automatic start, forks."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

import rustray
from helpers.fake_head import FakeHead
from rustray.common.errors import ConfigError, RustRayError
from rustray.runtime import parse_address, start


@rustray.remote
def double(x: int) -> int:
    """Return twice the argument."""
    return 2 * x


def in_child(work: Callable[[], bool]) -> bool:
    """Run in a forked child and return what it says."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_init_twice_is_an_error_unless_it_is_allowed(head: FakeHead) -> None:
    """RuntimeError, or the present context."""
    with pytest.raises(RuntimeError, match="already"):
        rustray.init()
    assert rustray.init(ignore_reinit_error=True).address == ""


def test_the_first_remote_call_starts_by_itself(head: FakeHead) -> None:
    """Without init, as Ray does it; a later session sends the function anew."""
    assert rustray.get(double.remote(1)) == 2
    rustray.shutdown()
    assert not rustray.is_initialized()
    assert rustray.get(double.remote(2)) == 4
    assert rustray.is_initialized()


def test_leaving_the_with_block_shuts_down_its_own_session_only(head: FakeHead) -> None:
    """A context that is no longer the present one leaves the present one alone."""
    rustray.shutdown()
    old = rustray.init()
    rustray.shutdown()
    with rustray.init():
        old.__exit__(None, None, None)
        assert rustray.get(double.remote(3)) == 6
    assert not rustray.is_initialized()


def test_rustray_address_is_taken_from_the_environment(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RUSTRAY_ADDRESS stands in for the argument."""
    rustray.shutdown()
    monkeypatch.setenv("RUSTRAY_ADDRESS", "rustray://head.example:8000")
    assert rustray.init().address == "rustray://head.example:8000"


def test_a_forked_child_gets_a_clear_error_and_may_start_anew(head: FakeHead) -> None:
    """The inherited session stays with the parent; init works in the child."""
    head.hold = True
    ref = double.remote(1)

    def inherited() -> bool:
        try:
            double.remote(2)
        except RuntimeError as error:
            return "forked" in str(error)
        return False

    def old_reference() -> bool:
        try:
            rustray.get(ref, timeout=5)
        except RustRayError as error:
            return "forked" in str(error)
        return False

    def anew() -> bool:
        head.hold = False
        with rustray.init():
            return rustray.get(double.remote(4)) == 8

    assert in_child(inherited)
    assert in_child(old_reference)
    assert in_child(anew)
    head.hold = False


def test_a_task_cannot_start_a_cluster(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside an executor process every way in is refused with a reason."""
    rustray.shutdown()
    from rustray.worker import child

    rustray.init()  # loading the module alone makes no executor of this process
    rustray.shutdown()
    monkeypatch.setattr(child, "is_executor", True)
    for call in (rustray.init, lambda: double.remote(1), rustray.Executor):
        with pytest.raises(RuntimeError, match="there is nothing to start"):
            call()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rustray://head.example:8000", "head.example:8000"),
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("head", "head:8000"),
        ("rustray://head/", "head:8000"),
        ("[::1]:8000", "[::1]:8000"),
        ("[::1]", "[::1]:8000"),
    ],
)
def test_addresses(text: str, expected: str) -> None:
    """Scheme and port may be left out."""
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", ":8000", "host:", "host:0", "host:65536", "host:x", "::1", "a/b:1", "h\n:1"]
)
def test_bad_addresses_say_how_one_looks(text: str) -> None:
    """The error has an example."""
    with pytest.raises(ConfigError, match="rustray://127"):
        parse_address(text)


def test_a_number_in_place_of_the_address_is_told_where_it_belongs() -> None:
    """It is likely to be a number of slots; other things are no address."""
    with pytest.raises(TypeError, match=r"must be text.*not 5; .* write num_cpus=5;"):
        rustray.init(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be text.*not \['host'\]; without one"):
        rustray.init(["host"])  # type: ignore[arg-type]
    assert not rustray.is_initialized()


def test_an_address_of_the_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a program that said ``num_cpus`` was told of a cluster that it does not name."""
    monkeypatch.setenv("RUSTRAY_ADDRESS", "rustray://head:8000")
    with pytest.raises(ValueError, match=r"head:8000, which RUSTRAY_ADDRESS names, decide theirs"):
        start("rustray://head:8000", num_cpus=2)


def test_settings_of_the_other_kind_are_refused() -> None:
    """A token without a head, slots for a cluster that has its own: the error says why."""
    with pytest.raises(ValueError, match="token is for the head"):
        start(None, token="x")
    with pytest.raises(ValueError, match="num_cpus is for an embedded cluster"):
        start("rustray://head:8000", num_cpus=2)
    with pytest.raises(ValueError, match="cpus"):
        start(None, num_cpus=0)
