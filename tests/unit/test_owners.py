"""Ids belong to the token that used them first."""

from __future__ import annotations

import pytest

from rustray.common.errors import AuthorizationError
from rustray.head.owners import Owners
from rustray.security.roles import Caller, Role


def caller(subject: str, role: Role = Role.SUBMIT) -> Caller:
    """A caller with a good token."""
    return Caller(subject, role, frozenset(), float("inf"), "id")


def test_an_id_is_of_whoever_used_it_first() -> None:
    """Its owner may use it again, an administrator too, anybody else may not."""
    owners: Owners[bytes] = Owners("this", lambda _: True)
    owners.claim(b"1", caller("user:a"))
    owners.claim(b"1", caller("user:a"))
    owners.claim(b"1", caller("user:root", Role.ADMIN))
    with pytest.raises(AuthorizationError, match="user:b"):
        owners.claim(b"1", caller("user:b"))
    assert not owners.may_use(b"1", caller("user:b"))
    assert owners.may_use(b"2", caller("user:b"))


def test_what_is_not_in_use_is_forgotten() -> None:
    """Bindings do not outgrow what the head knows."""
    alive = {7}
    owners: Owners[int] = Owners("this", alive.__contains__)
    for number in range(10_000):
        owners.claim(number, caller("user:a"))
    assert len(owners._subjects) < 3_000
    assert not owners.may_use(7, caller("user:b"))


def test_what_an_earlier_head_knew_still_holds() -> None:
    """Regression: after a restart anybody could speak for a session that had been another's."""
    owners: Owners[bytes] = Owners("this", lambda _: True)
    owners.restore(b"1", "user:a")
    owners.restore(b"1", "user:b")
    owners.restore(b"2", "")
    with pytest.raises(AuthorizationError, match="user:b"):
        owners.claim(b"1", caller("user:b"))
    owners.claim(b"1", caller("user:a"))
    owners.claim(b"2", caller("user:b"))
