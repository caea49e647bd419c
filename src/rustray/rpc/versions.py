"""Which version of the protocol two nodes speak with each other.

Within a version the protocol only grows: fields that a node does not know are ignored, as protobuf
does it, and what it does not send is 0 or empty. A change that an older node would misread takes
a new version. A node says which versions it can speak, and the other one takes the newest that
both can; if there is none, it says so, and which of the two is the older one.
"""

from __future__ import annotations

from typing import Final

from rustray.common.errors import VersionMismatch

PROTOCOL: Final = 1
"""The newest version that this release speaks."""
OLDEST_PROTOCOL: Final = 1
"""The oldest that it can speak: that of the release before."""


def agree(newest: int, oldest: int, peer: str) -> int:
    """Return the newest version that a peer and this node can both speak.

    Args:
        newest: What the peer says that it speaks.
        oldest: The oldest that it can speak; 0: that one only.
        peer: What it is, for the message: "worker" or "client".

    Raises:
        VersionMismatch: there is none; says which versions they are and whom to upgrade.
    """
    lowest = oldest if 0 < oldest <= newest else newest
    chosen = min(newest, PROTOCOL)
    if chosen >= max(lowest, OLDEST_PROTOCOL):
        return chosen
    older = f"the {peer}" if newest < OLDEST_PROTOCOL else "the head"
    raise VersionMismatch(
        f"the {peer} speaks {_versions(lowest, newest)} of rustray's protocol, the head "
        f"{_versions(OLDEST_PROTOCOL, PROTOCOL)}: upgrade rustray on {older}'s machine"
    )


def check_answer(text: str) -> int:
    """Return the version that a head has chosen for a stream.

    Raises:
        VersionMismatch: it is none that this node offered.
    """
    chosen = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not OLDEST_PROTOCOL <= chosen <= PROTOCOL:
        raise VersionMismatch(
            f"the head wants to speak version {text[:20]!r} of rustray's protocol, this side "
            f"speaks {_versions(OLDEST_PROTOCOL, PROTOCOL)}: run releases that fit on both"
        )
    return chosen


def _versions(low: int, high: int) -> str:
    return f"version {high}" if low == high else f"versions {low} to {high}"
