"""The waiting helpers themselves."""

from __future__ import annotations

import threading

import pytest

from helpers.waiting import aeventually, eventually


def test_eventually_returns_the_first_true_answer() -> None:
    """The answer that ended the wait is handed back."""
    answers = iter([0, "", None, "ready"])
    assert eventually(lambda: next(answers), 5.0) == "ready"


def test_eventually_sees_what_another_thread_does() -> None:
    """A fact that another thread brings about ends the wait."""
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    assert eventually(done.is_set, 5.0)
    thread.join()


def test_eventually_names_the_fact_that_did_not_come() -> None:
    """The failure names the fact, the limit and the last answer."""
    with pytest.raises(AssertionError, match=r"not within 0 s: the moon \(last answer: \[\]\)"):
        eventually(list, 0, what="the moon")


def test_eventually_lets_errors_of_the_predicate_through() -> None:
    """A predicate that raises ends the wait with its own error."""

    def ask() -> bool:
        raise KeyError("missing")

    with pytest.raises(KeyError):
        eventually(ask, 5.0)


async def test_aeventually_takes_plain_and_async_predicates() -> None:
    """Both kinds of predicate work, and the loop runs between the questions."""
    answers = iter([False, True, False, 7])

    async def ask() -> object:
        return next(answers)

    assert await aeventually(lambda: next(answers), 5.0) is True
    assert await aeventually(ask, 5.0) == 7


async def test_aeventually_names_the_fact_that_did_not_come() -> None:
    """The async failure has the same message."""
    with pytest.raises(AssertionError, match="not within 0 s: the sun"):
        await aeventually(lambda: False, 0, what="the sun")
