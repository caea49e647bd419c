"""What a task survives once it is accepted, by level."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Durability(IntEnum):
    """Levels, the lowest first: each one keeps all that those before it keep."""

    DEFAULT = 0
    """No level of its own: the head's."""
    MEMORY = 1
    """Told at once: lost with the head's process unless a commit came in between."""
    PROCESS = 2
    """Told once it is written: survives ``kill -9`` of the head, not a power cut."""
    FULL = 3
    """Told once it is synced: survives a power cut too."""

    @property
    def label(self) -> str:
        """Its name for people, in settings and on the command line; "" for `DEFAULT`."""
        return self.name.lower() if self else ""


DURABILITIES: Final = ("full", "process", "memory")
"""Names of the levels, the highest first."""


def parse_durability(name: object) -> Durability:
    """Return the level of a name; None and "" are `Durability.DEFAULT`.

    Raises:
        ValueError: there is no such level.
    """
    if name is None or name == "":
        return Durability.DEFAULT
    if not isinstance(name, str) or name not in DURABILITIES:
        raise ValueError(
            f"durability must be 'full' (survives power cuts), 'process' (survives kill -9 of the "
            f"head) or 'memory' (survives neither), not {name!r:.80}"
        )
    return Durability[name.upper()]
