"""Ids belong to the token that used them first."""

from __future__ import annotations

import pytest

from rustray.client.submission import Submitter
from rustray.common.errors import AuthorizationError
from rustray.head.embedded import EmbeddedHead
from rustray.head.owners import Owners
from rustray.security.roles import Caller, Role
from rustray.task.spec import TaskSpec
from rustray.task.state import TaskState


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


def test_to_be_checked_binds_no_id() -> None:
    """Regression: a heartbeat of any id bound it, so that its worker could not register."""
    owners: Owners[bytes] = Owners("this", lambda _: True)
    owners.check(b"1", caller("user:b"))
    owners.claim(b"1", caller("user:a"))
    with pytest.raises(AuthorizationError, match="user:b"):
        owners.check(b"1", caller("user:b"))


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


async def test_only_who_handed_a_task_in_may_cancel_it() -> None:
    """Regression: any token that may submit could cancel anybody's tasks by their ids."""
    head = EmbeddedHead()
    await head.start()
    try:
        spec = TaskSpec("f")
        [task_id] = await Submitter().submit(head.api(caller("user:ann")), [spec])
        assert isinstance(task_id, str)
        [refused] = await head.api(caller("user:bob")).cancel([task_id], True)
        assert isinstance(refused.error, AuthorizationError)
        status = await head.api(caller("user:root", Role.ADMIN)).status()
        assert status.counters["cancels_refused"] == 1
        [done] = await head.api(caller("user:ann")).cancel([task_id], False)
        assert (done.error, done.state) == (None, TaskState.CANCELLED)
    finally:
        await head.close()
