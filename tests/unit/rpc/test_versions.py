"""Versions of the protocol: the newest that both speak, or words that help (F36)."""

from __future__ import annotations

import pytest

from rustray.common.errors import VersionMismatch
from rustray.rpc import versions


@pytest.fixture(autouse=True)
def _third_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that speaks 3, and 2 with those who are one behind."""
    monkeypatch.setattr(versions, "PROTOCOL", 3)
    monkeypatch.setattr(versions, "OLDEST_PROTOCOL", 2)


@pytest.mark.parametrize(
    ("newest", "oldest", "chosen"),
    [(3, 2, 3), (3, 0, 3), (2, 0, 2), (2, 1, 2), (4, 3, 3), (5, 2, 3), (3, 9, 3)],
)
def test_the_newest_that_both_speak_is_taken(newest: int, oldest: int, chosen: int):
    """Same release, one behind, one ahead."""
    assert versions.agree(newest, oldest, "worker") == chosen
    assert versions.check_answer(str(chosen)) == chosen


@pytest.mark.parametrize(
    ("newest", "oldest", "said", "to_upgrade"),
    [
        (1, 0, "version 1", "the worker"),
        (0, 0, "version 0", "the worker"),
        (4, 0, "version 4", "the head"),
        (5, 4, "versions 4 to 5", "the head"),
        (2**32 - 1, 2**32 - 1, "version 4294967295", "the head"),
    ],
)
def test_without_one_both_are_named_and_who_is_behind(
    newest: int, oldest: int, said: str, to_upgrade: str
):
    """The message says what each speaks, and which of them to upgrade."""
    with pytest.raises(VersionMismatch) as caught:
        versions.agree(newest, oldest, "worker")
    assert f"speaks {said} of" in str(caught.value)
    assert "versions 2 to 3" in str(caught.value)
    assert f"upgrade rustray on {to_upgrade}'s machine" in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("answer", ["", "1", "4", "x", "-2", "9" * 50, "²"])
def test_a_head_that_chooses_what_was_not_offered_is_refused(answer: str):
    """Nothing is sent in a protocol that this side does not speak."""
    with pytest.raises(VersionMismatch):
        versions.check_answer(answer)
