"""Who may speak for a session or as a worker: whoever did so first.

Task ids and worker ids are no secrets: lists, events and logs show them. So an id is bound to the
subject of the token that it was first used with, and another token cannot take it over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from rustray.common.errors import AuthorizationError
from rustray.security.roles import Caller, Role

K = TypeVar("K")

_SLACK: Final = 1024


class Owners(Generic[K]):
    """Bindings of one kind of id, as long as the id is in use."""

    def __init__(self, what: str, is_in_use: Callable[[K], bool]) -> None:
        """Start without bindings.

        Args:
            what: Names the kind, for messages.
            is_in_use: Whether the head still knows something under an id.
        """
        self._what = what
        self._is_in_use = is_in_use
        self._subjects: dict[K, str] = {}
        self._prune_at = _SLACK

    def claim(self, key: K, caller: Caller) -> None:
        """Bind an id to its first caller, and let nobody else use it.

        Raises:
            AuthorizationError: it is another subject's.
        """
        self.check(key, caller)
        if key not in self._subjects:
            self._prune()
            self._subjects[key] = caller.subject

    def check(self, key: K, caller: Caller) -> None:
        """Let only its owner use an id, and bind it to nobody.

        Raises:
            AuthorizationError: it is another subject's.
        """
        if not self.may_use(key, caller):
            raise AuthorizationError(
                f"{self._what} belongs to another token: it was first used by somebody else than "
                f"{caller.subject}"
            )

    def restore(self, key: K, subject: str) -> None:
        """Bind an id to whom an earlier head knew it of; the first one counts."""
        if subject:
            self._subjects.setdefault(key, subject)

    def may_use(self, key: K, caller: Caller) -> bool:
        """Whether an id is free, the caller's own, or the caller an administrator."""
        known = self._subjects.get(key)
        return known is None or known == caller.subject or caller.role is Role.ADMIN

    def _prune(self) -> None:
        if len(self._subjects) < self._prune_at:
            return
        self._subjects = {k: s for k, s in self._subjects.items() if self._is_in_use(k)}
        self._prune_at = 2 * len(self._subjects) + _SLACK
