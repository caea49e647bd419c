"""Everything the coordination core knows, and what its parts share."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from rustray.common.errors import ResourceExhausted, RustRayError
from rustray.coordination import rows
from rustray.coordination.messages import (
    Answer,
    Command,
    Drop,
    Keep,
    Kind,
    Name,
    Reply,
    Request,
    Verdict,
)

NEVER: Final = float("inf")
FIRST_SEQUENCE: Final = 1 << 40
"""Of a queue's first chunk; what comes back to its front goes below."""
_FEW_TIMERS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Settings:
    """The core's knobs; each ``max_…`` is for one owner.

    Attributes:
        lease_s: Silence after which a holder is taken for dead.
        first_fence: Must exceed every fence of an earlier head.
        max_item_bytes: Of one item of a queue.
        max_bytes: Items that wait in queues.
        max_lanes: Of one holder.
    """

    lease_s: float = 10.0
    first_fence: int = 1
    max_holders: int = 10_000
    max_names: int = 10_000
    max_waits: int = 10_000
    max_held: int = 100_000
    max_bytes: int = 256 << 20
    max_item_bytes: int = 8 << 20
    max_lanes: int = 1_024


@dataclass(slots=True, eq=False)
class Account:
    """What one owner uses."""

    holders: int = 0
    names: int = 0
    waits: int = 0
    held: int = 0
    bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether it uses nothing."""
        return not (self.holders or self.names or self.waits or self.held or self.bytes)


@dataclass(slots=True, eq=False)
class Holder:
    """Whoever can hold something.

    Attributes:
        term: Never used again.
        expires_s: When it is taken for dead unless it speaks; NEVER without lease.
        is_doubted: It was silent while the head stood still, and is waited for once more.
        grants: Fence to what it holds.
        lanes: In which it asks.
    """

    key: bytes
    owner: str
    has_lease: bool
    term: int = 0
    expires_s: float = NEVER
    is_doubted: bool = False
    is_gone: bool = False
    grants: dict[int, Grant] = field(default_factory=dict)
    lanes: dict[int, Lane] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Lane:
    """One request of a holder after the other.

    Attributes:
        number: Of the present one.
        given: What it was answered, if that has changed something and may not have come.
        wait: Its place in a line.
    """

    number: int = 0
    given: Given | None = None
    wait: Wait | None = None


@dataclass(slots=True, eq=False)
class Grant:
    """A lock, or one permit of a semaphore, in somebody's hands.

    Attributes:
        number: Of the request that brought it.
    """

    fence: int
    number: int
    holder: Holder
    permits: Permits


@dataclass(slots=True, eq=False)
class Given:
    """An answer that its holder may not have yet.

    Attributes:
        name: What it was about; ``None`` for a request that was taken back.
        size: Bytes of the items in it.
    """

    outcome: Answer | RustRayError
    name: Name | None = None
    size: int = 0


Line = OrderedDict[tuple[bytes, int], "Wait"]
"""Who waits, in order. (A dict would search from its front each time the first one leaves.)"""


@dataclass(slots=True, eq=False)
class Wait:
    """A request in a line."""

    holder: Holder
    request: Request
    line: Line
    due_s: float
    thing: Thing

    @property
    def key(self) -> tuple[bytes, int]:
        """What it is found by."""
        return self.holder.key, self.request.lane

    @property
    def is_over(self) -> bool:
        """Whether it stands in its line no more."""
        return self.line.get(self.key) is not self


@dataclass(slots=True, eq=False)
class Permits:
    """A lock (one permit) or a semaphore that somebody holds or waits for."""

    name: Name
    limit: int
    grants: dict[int, Grant] = field(default_factory=dict)
    line: Line = field(default_factory=OrderedDict)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it need be known."""
        return not (self.grants or self.line)


@dataclass(slots=True, eq=False)
class Flag:
    """An event that is set or waited for."""

    name: Name
    is_set: bool = False
    line: Line = field(default_factory=OrderedDict)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it need be known."""
        return not (self.is_set or self.line)


@dataclass(slots=True, eq=False)
class Chunk:
    """Items that came together.

    Attributes:
        taken: How many of them are gone.
    """

    sequence: int
    items: tuple[bytes, ...]
    taken: int = 0


@dataclass(slots=True, eq=False)
class ItemQueue:
    """A queue with items in it, or with somebody who waits.

    Attributes:
        number: Never used again; names its rows.
        limit: Items at most, 0 for any number, -1 while nobody has put any.
    """

    name: Name
    number: int
    limit: int = -1
    size: int = 0
    chunks: deque[Chunk] = field(default_factory=deque)
    getters: Line = field(default_factory=OrderedDict)
    putters: Line = field(default_factory=OrderedDict)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it need be known."""
        return not (self.size or self.getters or self.putters)


Thing = Permits | Flag | ItemQueue


class State:
    """The core's data, and the few operations that all its parts share.

    Attributes:
        now: Time of the present call.
        commands: What the present call has decided so far.
        things: What is in use, by name.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = 0.0
        self.commands: list[Command] = []
        self.holders: dict[bytes, Holder] = {}
        self.things: dict[Name, Thing] = {}
        self.accounts: dict[str, Account] = {}
        self.next_fence = settings.first_fence
        self._timers: list[tuple[float, int, Holder | Wait]] = []
        self._next_timer = 0
        self._compact_at = _FEW_TIMERS

    def take_number(self) -> int:
        """Return a number that is larger than all before, also those of earlier heads."""
        number = self.next_fence
        self.next_fence += 1
        return number

    # -- accounts --------------------------------------------------------------

    def account(self, owner: str) -> Account:
        """Return an owner's account."""
        found = self.accounts.get(owner)
        if found is None:
            found = self.accounts[owner] = Account()
        return found

    def settle(self, owner: str) -> None:
        """Forget an account that is empty."""
        found = self.accounts.get(owner)
        if found is not None and found.is_empty:
            del self.accounts[owner]

    # -- things ----------------------------------------------------------------

    def add_thing(self, thing: Thing) -> None:
        """Begin to know something.

        Raises:
            ResourceExhausted: its owner uses too many names.
        """
        account = self.account(thing.name.owner)
        bound(account.names, self.settings.max_names, "names", "COORDINATION_NAMES")
        account.names += 1
        self.things[thing.name] = thing

    def drop_if_idle(self, thing: Thing) -> None:
        """Forget something that is in no use."""
        if thing.is_idle and self.things.get(thing.name) is thing:
            del self.things[thing.name]
            self.accounts[thing.name.owner].names -= 1

    # -- lines -----------------------------------------------------------------

    def stand_in_line(self, holder: Holder, request: Request, thing: Thing, line: Line) -> None:
        """Have a request wait, or answer at once where it has no time for that.

        Raises:
            ResourceExhausted: too many wait already.
        """
        wait_s = request.wait_s
        if wait_s is not None and wait_s <= 0:
            self.drop_if_idle(thing)
            self.reply(holder, request, Answer(Verdict.BUSY))
            return
        account = self.account(holder.owner)
        try:
            bound(account.waits, self.settings.max_waits, "waiting calls", "COORDINATION_WAITS")
        except ResourceExhausted:
            self.drop_if_idle(thing)
            raise
        account.waits += 1
        due_s = NEVER if wait_s is None else self.now + wait_s
        wait = Wait(holder, request, line, due_s, thing)
        line[wait.key] = holder.lanes[request.lane].wait = wait
        if due_s != NEVER:
            self.push_timer(due_s, wait)

    def leave_line(self, wait: Wait) -> None:
        """Take a request out of its line."""
        del wait.line[wait.key]
        wait.holder.lanes[wait.request.lane].wait = None
        self.accounts[wait.holder.owner].waits -= 1

    # -- answers ---------------------------------------------------------------

    def reply(self, holder: Holder, request: Request, outcome: Answer | RustRayError) -> None:
        """Answer a request that has changed nothing."""
        if isinstance(outcome, Answer) and holder.has_lease:
            outcome.lease_s = self.settings.lease_s  # type: ignore[misc]
        self.commands.append(Reply(holder.key, request.lane, request.number, outcome))

    def give(self, holder: Holder, request: Request, name: Name, answer: Answer) -> None:
        """Answer a request that has changed something; it is kept until the holder has it."""
        size = sum(map(len, answer.items))
        holder.lanes[request.lane].given = Given(answer, name, size)
        self.account(holder.owner).bytes += size
        whose = (holder.owner, holder.has_lease, holder.term)
        value = rows.answer_value(whose, request.number, name, answer)
        self.keep(rows.answer_key(holder.key, request.lane), value)
        self.reply(holder, request, answer)

    def forget_answer(self, holder: Holder, number: int) -> Given | None:
        """The holder has the answer of a lane, or never will; return it."""
        lane = holder.lanes[number]
        given, lane.given = lane.given, None
        if given is not None and given.name is not None:
            self.accounts[holder.owner].bytes -= given.size
            self.drop(rows.answer_key(holder.key, number))
        return given

    def keep(self, key: bytes, value: bytes) -> None:
        """Have a row committed."""
        self.commands.append(Keep(key, value))

    def drop(self, key: bytes) -> None:
        """Have a row deleted."""
        self.commands.append(Drop(key))

    # -- time ------------------------------------------------------------------

    def push_timer(self, due_s: float, subject: Holder | Wait) -> None:
        """Look at something at a time."""
        if len(self._timers) >= self._compact_at:
            self._timers = [one for one in self._timers if not _is_idle(one[2])]
            heapq.heapify(self._timers)
            self._compact_at = _FEW_TIMERS + 2 * len(self._timers)
        self._next_timer += 1
        heapq.heappush(self._timers, (due_s, self._next_timer, subject))

    def pop_due(self) -> Holder | Wait | None:
        """Return what is to be looked at now, one after the other; None at the end."""
        while self._timers and self._timers[0][0] <= self.now:
            subject = heapq.heappop(self._timers)[2]
            if not _is_idle(subject):
                return subject
        return None

    def next_deadline(self) -> float | None:
        """Return when there is something to look at next."""
        while self._timers and _is_idle(self._timers[0][2]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None


def _is_idle(subject: Holder | Wait) -> bool:
    return subject.is_gone if isinstance(subject, Holder) else subject.is_over


def bound(used: int, most: int, what: str, reason: str) -> None:
    """Refuse more than there may be.

    Raises:
        ResourceExhausted: as said.
    """
    if used >= most:
        raise ResourceExhausted(
            f"{used} {what} of locks, semaphores, events and queues are in use under this token, "
            f"and {most} may be: free some, or share them",
            reason=reason,
        )


def new_thing(name: Name, limit: int, state: State) -> Thing:
    """Make what a name stands for."""
    if name.kind is Kind.EVENT:
        return Flag(name)
    if name.kind is Kind.QUEUE:
        return ItemQueue(name, state.take_number())
    return Permits(name, limit)
