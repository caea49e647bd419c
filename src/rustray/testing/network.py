"""The network of a simulation: it loses, delays, doubles and reorders, and can be cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from rustray.common.records import record
from rustray.testing.clock import ProcessLoop, VirtualClock

OVERTAKEN_S: Final = 0.5
"""A reordered message is held back for up to this long, and later ones overtake it."""

RETRY_S: Final = 1.0
"""When what must arrive is sent again."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad a link is.

    Attributes:
        drop: Probability that a message is lost.
        duplicate: Probability that it arrives twice.
        reorder: Probability that it is held back so that later ones overtake it.
        delay_s: Least and greatest travel time in seconds; order is kept.

    Raises:
        ValueError: a value is out of range.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_s: tuple[float, float] = (0.0001, 0.002)

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be from 0 to 1")
        low, high = self.delay_s
        if not 0.0 <= low <= high:
            raise ValueError(f"delay_s={self.delay_s!r} must be (least, greatest) seconds")

    def delay(self, random: Random) -> float:
        """Draw a travel time."""
        low, high = self.delay_s
        return low + random.random() * (high - low)


@record
class Message:
    """Something under way from one process to another."""

    source: str
    target: str
    arrive: Callable[..., object]
    args: tuple[Any, ...]
    must_arrive: bool = False
    on_loss: Callable[[], None] | None = None


class Network:
    """Carries messages between the processes of a simulation.

    Attributes:
        loops: Name of a process to the loop of its present life.
        faults: Of every link that has none of its own.
        seen: Counts what became of messages.
    """

    def __init__(self, clock: VirtualClock, random: Random) -> None:
        self.loops: dict[str, ProcessLoop] = {}
        self.faults = Faults()
        self.seen: Counter[str] = Counter()
        self._clock = clock
        self._random = random
        self._links: dict[frozenset[str], Faults] = {}
        self._cut: set[tuple[str, str]] = set()
        self._last: dict[tuple[str, str], float] = {}
        self._wires = ProcessLoop(clock)

    def set_faults(self, between: tuple[str, str] | None, **faults: Any) -> None:
        """Change how bad one link is, or all that have no faults of their own."""
        if between is None:
            self.faults = replace(self.faults, **faults)
            return
        self._know(*between)
        link = frozenset(between)
        self._links[link] = replace(self._links.get(link, self.faults), **faults)

    def partition(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Cut a link; ``one_way`` loses only what goes from ``a`` to ``b``."""
        self._know(a, b)
        self._cut.add((a, b))
        if not one_way:
            self._cut.add((b, a))

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Mend the links of ``a`` (to ``b``, if that is named), or all of them."""
        self._know(*(name for name in (a, b) if name is not None))
        named = {name for name in (a, b) if name is not None}
        self._cut = {link for link in self._cut if not named <= set(link)}

    def reset(self) -> None:
        """Mend all links, and let none have faults."""
        self._cut.clear()
        self._links.clear()
        self.faults = Faults()

    def _know(self, *names: str) -> None:
        for name in names:
            if name not in self.loops:
                known = ", ".join(sorted(self.loops))
                raise ValueError(f"there is no {name!r} in this cluster; there are: {known}")

    def carry(
        self,
        source: str,
        target: str,
        arrive: Callable[..., object],
        *args: Any,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        """Send a message.

        Args:
            source: Who sends.
            target: Who gets it, in whatever life it is when it arrives.
            arrive: What the target does with it.
            *args: For ``arrive``.
            on_loss: Called if it is lost, now or on its way.
        """
        self._send(Message(source, target, arrive, args, on_loss=on_loss))

    def insist(self, source: str, target: str, arrive: Callable[..., object], *args: Any) -> None:
        """Send a message again and again until it arrives, as TCP does."""
        self._send(Message(source, target, arrive, args, must_arrive=True))

    def is_open(self, source: str, target: str) -> bool:
        """Whether a call gets through now, there and back: the target runs, and no link is cut."""
        loop = self.loops[target]
        is_cut = (source, target) in self._cut or (target, source) in self._cut
        return not (is_cut or loop.is_paused or loop.is_dead)

    def _send(self, message: Message) -> None:
        random, link = self._random, (message.source, message.target)
        faults = self._links.get(frozenset(link), self.faults)
        if link in self._cut or (faults.drop and random.random() < faults.drop):
            self._lose(message)
            return
        copies = 1
        if faults.duplicate and random.random() < faults.duplicate:
            self.seen["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            when = self._clock.now + faults.delay(random)
            if faults.reorder and random.random() < faults.reorder:
                self.seen["reordered"] += 1
                when += random.random() * OVERTAKEN_S
            else:
                when = self._last[link] = max(when, self._last.get(link, 0.0))
            self._wires.call_at(when, self._arrive, message)

    def _arrive(self, message: Message) -> None:
        if (message.source, message.target) in self._cut:
            self._lose(message)
            return
        self.seen["arrived"] += 1
        self.loops[message.target].deliver(message.arrive, *message.args)

    def _lose(self, message: Message) -> None:
        self.seen["dropped"] += 1
        if message.must_arrive:
            self._wires.call_later(RETRY_S, self._send, message)
        elif message.on_loss is not None:
            message.on_loss()
