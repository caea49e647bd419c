"""What is known of the tokens that heads of this state directory have made.

Not the tokens: an id, whom it names, what it may, until when, and who asked for it. It is kept as
long as the token, or one renewed from it, can be good, over restarts too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rustray.scheduler.commands import ForgetTokens, JournalCommand, PersistToken
from rustray.security.roles import SCOPE_CODE, Caller
from rustray.task.views import TokenInfo

MAX_LISTED: Final = 10_000


def info_of(holder: Caller, audience: str, creator: Caller) -> TokenInfo:
    """Return what is to be known of a token, given who holds it and who asked for it."""
    return TokenInfo(
        holder.token_id,
        holder.subject,
        holder.role.value,
        ",".join(sorted(holder.scopes)),
        audience,
        holder.issued_unix_s,
        holder.expires_unix_s,
        holder.renewable_unix_s,
        creator.subject,
    )


class IssuedTokens:
    """The book of tokens."""

    def __init__(self, append: Callable[[JournalCommand], None]) -> None:
        """Begin an empty one.

        Args:
            append: Of the journal.
        """
        self._append = append
        self._tokens: dict[str, TokenInfo] = {}

    def restore(self, tokens: Iterable[TokenInfo]) -> None:
        """Take over what an earlier head has noted."""
        self._tokens.update((token.token_id, token) for token in tokens)

    def note(self, token: TokenInfo) -> None:
        """Note a token that is about to be handed out, and forget those that have ended."""
        now = token.issued_unix_s
        ended = [key for key, one in self._tokens.items() if one.ends_unix_s < now]
        if ended:
            for key in ended:
                del self._tokens[key]
            self._append(ForgetTokens(now))
        self._tokens[token.token_id] = token
        self._append(PersistToken(token))

    def may_send_code(self, subject: str) -> bool:
        """Whether a token that was made for a subject has the scope "code"."""
        return any(
            one.subject == subject and SCOPE_CODE in one.scopes.split(",")
            for one in self._tokens.values()
        )

    def current(self, now_unix_s: float) -> list[TokenInfo]:
        """Return those that can still be good, the newest first, at most `MAX_LISTED`."""
        found = [one for one in self._tokens.values() if one.ends_unix_s >= now_unix_s]
        found.sort(key=lambda one: one.issued_unix_s, reverse=True)
        return found[:MAX_LISTED]
