"""A coordination core on a bench: the rows that it keeps, and what it answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rustray.common.errors import RustRayError
from rustray.coordination.core import Coordination
from rustray.coordination.messages import (
    Action,
    Answer,
    Asked,
    Drop,
    Event,
    Keep,
    Kind,
    Recovered,
    Reply,
    Request,
)
from rustray.coordination.state import Flag, Given, ItemQueue, Permits, Settings, State

Outcome = Answer | RustRayError
FENCES_A_START = 1_000_000
HELLO_LANE, HELLO_NUMBER = 999, 1 << 40


class Bench:
    """Feeds a core, carries its commands out, and can restart it.

    Attributes:
        rows: What a journal would hold.
        replies: (holder, number) to the last outcome; numbers are unique here over all lanes.
        told: All outcomes in order.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.core = Coordination(self.settings)
        self.now = 0.0
        self.starts = 1
        self.rows: dict[bytes, bytes] = {}
        self.replies: dict[tuple[bytes, int], Outcome] = {}
        self.told: list[tuple[bytes, int, Outcome]] = []

    @property
    def state(self) -> State:
        return self.core.state

    def feed(self, event: Event) -> None:
        for command in self.core.handle(event, self.now):
            match command:
                case Keep():
                    self.rows[command.key] = command.value
                case Drop():
                    del self.rows[command.key]  # it only drops what it has kept
                case Reply():
                    self.replies[command.holder, command.number] = command.outcome
                    self.told.append((command.holder, command.number, command.outcome))

    def ask(self, request: Request, owner: str = "user:a", *, has_lease: bool = True) -> Any:
        """Return the outcome, or None if the request stands in line.

        A holder that is none yet says RENEW before, and names its term; also a new one.
        """
        if has_lease and not request.term and request.action is not Action.RENEW:
            if request.holder not in self.state.holders:
                hello = Request(request.holder, HELLO_LANE, HELLO_NUMBER, Action.RENEW)
                self.feed(Asked(hello, owner))
                answer = self.replies.pop((request.holder, HELLO_NUMBER))
                self.told.pop()
                if isinstance(answer, RustRayError):
                    return answer
                del self.state.holders[request.holder].lanes[HELLO_LANE]
            request = replace(request, term=self.state.holders[request.holder].term)
        self.replies.pop((request.holder, request.number), None)
        self.feed(Asked(request, owner, has_lease))
        return self.replies.get((request.holder, request.number))

    def restart(self) -> None:
        """Kill the head, and start another one from the rows."""
        before = snapshot(self.state)
        self.starts += 1
        first = self.starts * FENCES_A_START
        self.core = Coordination(Settings(lease_s=self.settings.lease_s, first_fence=first))
        self.feed(Recovered(tuple(self.rows.items()), self.settings.lease_s))
        assert snapshot(self.state) == before


def request(
    holder: bytes, number: int, action: Action, kind: Kind = Kind.LOCK, **fields: Any
) -> Request:
    """Make a request in lane 0, which ends the one before it; ``apart``: in a lane of its own."""
    lane = number if fields.pop("apart", False) else 0
    fields.setdefault("lane", lane)
    fields.setdefault("name", "x")
    return Request(holder, number=number, action=action, kind=kind, **fields)


def snapshot(state: State) -> dict[str, Any]:
    """Return what has to outlive a restart."""
    return {
        "held": {
            fence: (holder.key, grant.number, grant.permits.name, grant.permits.limit)
            for holder in state.holders.values()
            for fence, grant in holder.grants.items()
        },
        "set": {t.name for t in state.things.values() if isinstance(t, Flag) and t.is_set},
        "items": {
            t.name: (t.limit, contents(t))
            for t in state.things.values()
            if isinstance(t, ItemQueue) and t.size
        },
        "answers": {
            (holder.key, number): (lane.number, lane.given.name, _parts(lane.given))
            for holder in state.holders.values()
            for number, lane in holder.lanes.items()
            if lane.given is not None and lane.given.name is not None
        },
    }


def _parts(given: Given) -> tuple[object, ...]:
    assert isinstance(given.outcome, Answer)
    return given.outcome.verdict, given.outcome.fence, given.outcome.count, given.outcome.items


def contents(queue: ItemQueue) -> list[bytes]:
    """Return the items of a queue in order."""
    return [item for chunk in queue.chunks for item in chunk.items[chunk.taken :]]


def check(state: State) -> None:
    """Look whether what the core knows fits together, and nobody waits for what is there."""
    for holder in state.holders.values():
        assert not holder.is_gone
        for number, lane in holder.lanes.items():
            assert lane.wait is None or lane.given is None
            if lane.wait is not None:
                assert (lane.wait.request.lane, lane.wait.request.number) == (number, lane.number)
                assert not lane.wait.is_over
        for fence, grant in holder.grants.items():
            assert state.things[grant.permits.name] is grant.permits
            assert grant.permits.grants[fence] is grant
    for name, thing in state.things.items():
        assert thing.name == name
        assert not thing.is_idle
        if isinstance(thing, Permits):
            assert len(thing.grants) <= thing.limit
            assert not thing.line or len(thing.grants) == thing.limit  # no wake-up is lost
            assert all(grant.holder.key in state.holders for grant in thing.grants.values())
        elif isinstance(thing, Flag):
            assert not (thing.is_set and thing.line)
        else:
            _check_queue(thing)
    _check_accounts(state)


def _check_queue(queue: ItemQueue) -> None:
    assert queue.size == len(contents(queue))
    assert not (queue.getters and queue.size)
    if queue.putters:
        first = next(iter(queue.putters.values()))
        assert queue.size + len(first.request.items) > first.request.limit > 0
    sequences = [chunk.sequence for chunk in queue.chunks]
    assert sequences == sorted(set(sequences))


def _check_accounts(state: State) -> None:
    for owner, account in state.accounts.items():
        holders = [one for one in state.holders.values() if one.owner == owner]
        assert account.holders == len(holders)
        lanes = [lane for one in holders for lane in one.lanes.values()]
        assert account.waits == sum(lane.wait is not None for lane in lanes)
        assert account.held == sum(len(one.grants) for one in holders)
        things = [one for one in state.things.values() if one.name.owner == owner]
        assert account.names == len(things)
        queued = sum(
            len(item) for one in things if isinstance(one, ItemQueue) for item in contents(one)
        )
        given = sum(
            lane.given.size
            for lane in lanes
            if lane.given is not None and lane.given.name is not None
        )
        assert account.bytes == queued + given
        assert not account.is_empty
