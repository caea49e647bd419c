"""Tokens that open one object: short-lived, minted by the head, good at the node that has it.

Such a token is an access token of the same narrow profile for an audience of its own,
``object:<id>``: it opens nothing else, and no other token opens an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Protocol

from rustray.common.errors import AuthenticationError
from rustray.security.roles import Role
from rustray.security.tokens import refused

OBJECT_KEY: Final = "rustray-object"
"""Metadata of a call: the object that its token is for."""
OBJECT_TTL_S: Final = 300
_OBJECT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class Minter(Protocol):
    """Signs tokens; `rustray.security.auth.AuthManager` is one."""

    def mint(
        self,
        role: Role | str,
        subject: str,
        now_unix_s: float,
        ttl_s: float | None = None,
        *,
        audience: str = "head",
        renew_until_unix_s: float | None = None,
    ) -> str:
        """Sign a new token."""


def check_object_id(object_id: str) -> str:
    """Return an object's id as it came.

    Raises:
        AuthenticationError: it is none; as a token for it would be refused.
    """
    if _OBJECT_ID.fullmatch(object_id) is None:
        raise refused("object")
    return object_id


def object_audience(object_id: str) -> str:
    """Return the audience of tokens that open this object.

    Raises:
        AuthenticationError: it is no object's id.
    """
    return f"object:{check_object_id(object_id)}"


def named_object(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the object that a call's metadata name.

    Raises:
        AuthenticationError: none, several, or not an object's id.
    """
    names = [value for key, value in metadata if key == OBJECT_KEY]
    if len(names) != 1 or not isinstance(names[0], str):
        raise AuthenticationError("a call for an object has to name it in its metadata, once")
    return check_object_id(names[0])


def mint_object_token(
    auth: Minter,
    object_id: str,
    subject: str,
    now_unix_s: float,
    ttl_s: float = OBJECT_TTL_S,
) -> str:
    """Sign a token that opens one object, and cannot be renewed.

    Args:
        auth: Of a head: one that can mint.
        object_id: 1 to 128 letters, digits and ``. _ -``.
        subject: Who asked for it: ``worker:…``, ``user:…``, ``svc:…`` or ``head:…``.
        now_unix_s: Wall clock.
        ttl_s: Its life.

    Raises:
        AuthenticationError: the id is none.
        ConfigError: the subject or the life is out of range, or this manager cannot mint.
    """
    return auth.mint(
        Role.OBSERVE,
        subject,
        now_unix_s,
        ttl_s,
        renew_until_unix_s=now_unix_s,
        audience=object_audience(object_id),
    )
