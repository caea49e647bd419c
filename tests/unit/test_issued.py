"""What is known of the tokens that were made: committed first, kept as long as they can be good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rustray.head.embedded import EmbeddedHead
from rustray.head.issued import MAX_LISTED, IssuedTokens
from rustray.head.journal_store import JournalStore
from rustray.rpc.tokens import token_life
from rustray.scheduler.commands import ForgetTokens, JournalCommand, PersistToken
from rustray.security.auth import AuthManager
from rustray.task.views import TokenInfo

ANN = TokenInfo("t-1", "user:ann", "submit", "code", "head", 100.0, 200.0, 900.0, "user:bob")


def test_a_token_is_noted_and_those_that_ended_are_forgotten() -> None:
    """One that can still be renewed has not ended, though its own time is over."""
    told: list[JournalCommand] = []
    book = IssuedTokens(told.append)
    short = replace(ANN, token_id="t-2", expires_unix_s=150.0, renewable_unix_s=100.0)
    later = replace(ANN, token_id="t-3", issued_unix_s=300.0, expires_unix_s=400.0)
    for token in (ANN, short, later):
        book.note(token)
    assert told == [
        PersistToken(ANN),
        PersistToken(short),
        ForgetTokens(300.0),
        PersistToken(later),
    ]
    assert book.current(300.0) == [later, ANN]
    assert book.current(901.0) == []


def test_a_long_book_is_listed_from_its_newest() -> None:
    """What is listed is bounded."""
    book = IssuedTokens(lambda _: None)
    book.restore(replace(ANN, token_id=f"t-{i}", issued_unix_s=float(i)) for i in range(10_005))
    listed = book.current(500.0)
    assert len(listed) == MAX_LISTED
    assert listed[0].issued_unix_s == 10_004.0


async def test_how_long_tokens_are_good_for_which_no_time_is_asked() -> None:
    """As configured; a join string and an administrator's token for 15 minutes."""
    head = EmbeddedHead()
    await head.start()
    try:
        assert head._core is not None
        head._core.tokens = AuthManager.from_secret(
            "k" * 20 + "3xQ9vR7pLm2Z", token_expiration_s=7200
        )
        api = head.api()
        lives = {}
        for role in ("worker", "admin", "submit", "observe"):
            issued, expires = token_life(await api.create_token(role, 0.0, False)) or (0, 0)
            lives[role] = expires - issued
        assert lives == {"worker": 900, "admin": 900, "submit": 7200, "observe": 7200}
        issued, expires = token_life(await api.create_token("admin", 60.0, False)) or (0, 0)
        assert expires - issued == 60
    finally:
        await head.close()


def test_the_book_outlives_the_head(tmp_path: Path) -> None:
    """The journal gives the next head what was noted and not forgotten."""
    ended = replace(ANN, token_id="t-2", renewable_unix_s=0.0)
    store = JournalStore(tmp_path / "journal.db")
    store.commit([PersistToken(ended), ForgetTokens(250.0), PersistToken(ANN)])
    store.close()
    store = JournalStore(tmp_path / "journal.db")
    store.load(1.0)
    assert store.tokens == [ANN]
    store.close()
