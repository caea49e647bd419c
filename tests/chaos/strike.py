"""What all faults share: a strike, and who may be struck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from chaos.world import HEARTBEAT_S, LEASE_TTL_S, Member, World

SHORT_S: Final = (0.2, LEASE_TTL_S - 2 * HEARTBEAT_S - 0.5)
LONG_S: Final = (LEASE_TTL_S + 2.0, LEASE_TTL_S + 6.0)
_HEAD_STOPS_S: Final = 25.0


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that has begun.

    Attributes:
        text: What was done to whom, for the timeline.
        lasts_s: Until `end` is to be called.
        end: Takes it back; None where nothing is left to do.
    """

    text: str
    lasts_s: float = 0.0
    end: Callable[[], None] | None = None


Fault = Callable[[World, Random], Strike | None]


def pick(world: World, random: Random, kind: str) -> Member | None:
    found = world.free(kind)
    return random.choice(found) if found else None


def length(random: Random, *, may_be_long: bool = True) -> float:
    bounds = LONG_S if may_be_long and random.random() < 0.4 else SHORT_S
    return random.uniform(*bounds)


def hold(member: Member, strike: Strike) -> Strike:
    """Keep other faults away from a member until this one has ended."""
    member.busy = True

    def end() -> None:
        member.busy = False
        if strike.end is not None:
            strike.end()

    return Strike(strike.text, strike.lasts_s, end)
