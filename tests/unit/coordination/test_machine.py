"""The coordination core under arbitrary histories.

Holders ask, repeat what they asked, take it back, fall silent and come back; heads die and others
start from what was kept. After each step: nobody holds what another holds, lines are first come,
first served, nobody waits for what is there, no item is lost, and none is in two places.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rustray.common.errors import LeaseLost
from rustray.coordination.messages import (
    Action,
    Answer,
    HolderEnded,
    Kind,
    Name,
    Request,
    TimePassed,
    Verdict,
)
from rustray.coordination.state import ItemQueue
from unit.coordination.bench import Bench, check, contents, request

SESSIONS, TASKS = (b"s1", b"s2", b"s3"), (b"t1", b"t2")
HOLDERS = st.sampled_from(SESSIONS + TASKS)
WAITS = st.sampled_from((0.0, 3.0, None))
PERMITS = st.sampled_from(((Kind.LOCK, 0, "l"), (Kind.SEMAPHORE, 2, "s")))


class Client:
    """What a holder knows: the numbers it has used, and what it believes it holds."""

    def __init__(self) -> None:
        self.next = 1
        self.open: dict[int, Request] = {}
        self.held: dict[int, tuple[Kind, int, str]] = {}
        self.got: set[int] = set()


class CoordinationMachine(RuleBasedStateMachine):
    """Holders, time and the head do what they like, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.clients = {holder: Client() for holder in SESSIONS + TASKS}
        self.last_fence: dict[str, int] = {}
        self.asked: dict[tuple[bytes, int], Request] = {}
        self.put: dict[tuple[bytes, int], tuple[bytes, ...]] = {}
        self.taken: Counter[bytes] = Counter()
        self.next_item = 0
        self.seen = 0
        self.lines: dict[tuple[Name, str], list[tuple[bytes, int]]] = {}
        self.served: set[tuple[bytes, int]] = set()

    # -- what holders do -------------------------------------------------------

    def ask(self, holder: bytes, action: Action, kind: Kind = Kind.LOCK, **fields: Any) -> None:
        client = self.clients[holder]
        number = client.next
        client.next += 1
        # A lane is free when its request has been answered.
        used = {each.lane for each in client.open.values()}
        lane = next(each for each in range(1_000) if each not in used)
        asked = request(holder, number, action, kind, lane=lane, **fields)
        client.open[number] = self.asked[holder, number] = asked
        self.send(asked)

    def send(self, asked: Request) -> None:
        known = self.bench.state.holders.get(asked.holder)
        for number, lane in known.lanes.items() if known is not None else ():
            is_next = number == asked.lane and asked.number > lane.number
            outcome = lane.given.outcome if lane.given is not None else None
            if (is_next or lane.number in asked.taken) and isinstance(outcome, Answer):
                self.taken.update(outcome.items)  # it says that it has them
        self.bench.ask(asked, has_lease=asked.holder in SESSIONS)
        self.hear()

    def hear(self) -> None:
        """Have the clients take what they were answered."""
        told, self.seen = self.bench.told[self.seen :], len(self.bench.told)
        for holder, number, outcome in told:
            asked = self.asked[holder, number]
            is_done = isinstance(outcome, Answer) and outcome.verdict is Verdict.DONE
            if is_done:
                self.served.add((holder, number))
            if asked.action is Action.PUT and is_done:
                self.put[holder, number] = asked.items
            client = self.clients[holder]
            if client.open.pop(number, None) is None:
                continue
            if isinstance(outcome, LeaseLost) and asked.action is Action.RELEASE:
                client.held.pop(asked.fence, None)
            if isinstance(outcome, Answer) and is_done:
                self.take(client, asked, outcome)

    def take(self, client: Client, asked: Request, answer: Answer) -> None:
        if asked.action is Action.ACQUIRE:
            assert answer.fence > self.last_fence.get(asked.name, 0)  # it never goes back
            self.last_fence[asked.name] = answer.fence
            client.held[answer.fence] = (asked.kind, asked.limit, asked.name)
        elif asked.action is Action.RELEASE:
            client.held.pop(asked.fence, None)  # it may have been asked twice
        elif asked.action is Action.GET:
            client.got.add(asked.number)

    @rule(holder=HOLDERS, what=PERMITS, wait_s=WAITS)
    def acquire(self, holder: bytes, what: tuple[Kind, int, str], wait_s: float | None) -> None:
        """Somebody wants a permit."""
        kind, limit, name = what
        self.ask(holder, Action.ACQUIRE, kind, name=name, limit=limit, wait_s=wait_s)

    @precondition(lambda self: any(client.held for client in self.clients.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Somebody gives back what it believes it holds."""
        held = [(h, fence) for h, client in self.clients.items() for fence in client.held]
        holder, fence = data.draw(st.sampled_from(held))
        kind, limit, name = self.clients[holder].held[fence]
        self.ask(holder, Action.RELEASE, kind, name=name, limit=limit, fence=fence)

    @rule(holder=HOLDERS, action=st.sampled_from((Action.SET, Action.CLEAR)))
    def turn(self, holder: bytes, action: Action) -> None:
        """Somebody sets or clears the event."""
        self.ask(holder, action, Kind.EVENT)

    @rule(holder=HOLDERS, wait_s=WAITS)
    def await_event(self, holder: bytes, wait_s: float | None) -> None:
        """Somebody waits for the event."""
        self.ask(holder, Action.AWAIT, Kind.EVENT, wait_s=wait_s)

    @rule(holder=HOLDERS, count=st.integers(1, 3), limit=st.sampled_from((0, 3)), wait_s=WAITS)
    def put_items(self, holder: bytes, count: int, limit: int, wait_s: float | None) -> None:
        """Somebody puts items into one of two queues, of which one is small."""
        items = tuple(b"%d" % n for n in range(self.next_item, self.next_item + count))
        self.next_item += count
        name = f"q{limit}"
        self.ask(holder, Action.PUT, Kind.QUEUE, name=name, limit=limit, items=items, wait_s=wait_s)

    @rule(holder=HOLDERS, count=st.integers(1, 4), limit=st.sampled_from((0, 3)), wait_s=WAITS)
    def get_items(self, holder: bytes, count: int, limit: int, wait_s: float | None) -> None:
        """Somebody takes items."""
        self.ask(holder, Action.GET, Kind.QUEUE, name=f"q{limit}", count=count, wait_s=wait_s)

    @rule(holder=HOLDERS, is_confirming=st.booleans())
    def renew(self, holder: bytes, is_confirming: bool) -> None:
        """Somebody says what it holds."""
        client = self.clients[holder]
        taken = tuple(client.got) if is_confirming else ()
        client.got.difference_update(taken)
        self.ask(
            holder, Action.RENEW, fences=tuple(client.held), taken=taken, pending=tuple(client.open)
        )

    @precondition(lambda self: any(client.open for client in self.clients.values()))
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """An answer, or the request, was lost on its way: the same comes again."""
        still_open = [each for client in self.clients.values() for each in client.open.values()]
        self.send(data.draw(st.sampled_from(still_open)))

    @precondition(lambda self: any(client.open for client in self.clients.values()))
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        """A caller has gone."""
        still_open = [each for client in self.clients.values() for each in client.open.values()]
        asked = data.draw(st.sampled_from(still_open))
        self.ask(asked.holder, Action.ABANDON, fence=asked.number, count=asked.lane)
        assert self.bench.state.holders[asked.holder].lanes[asked.lane].wait is None
        self.clients[asked.holder].open.pop(asked.number, None)

    # -- what happens to them --------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 3.0, 9.0)))
    def time_passes(self, seconds: float) -> None:
        """Those who are silent for too long lose everything."""
        self.bench.now += seconds
        self.bench.feed(TimePassed())
        self.hear()

    @rule(holder=st.sampled_from(TASKS))
    def attempt_ends(self, holder: bytes) -> None:
        """And another attempt begins, which knows nothing of it."""
        self.bench.feed(HolderEnded(holder))
        self.hear()
        number = self.clients[holder].next
        self.clients[holder] = client = Client()
        client.next = number

    @rule()
    def head_dies(self) -> None:
        """Another one goes on from what was kept; who waited asks again."""
        self.bench.restart()
        self.lines.clear()
        for client in self.clients.values():
            for asked in list(client.open.values()):
                self.send(asked)

    # -- what holds at all times -----------------------------------------------

    @invariant()
    def all_fits_together(self) -> None:
        """Whatever has happened."""
        check(self.bench.state)

    @invariant()
    def lines_are_in_order(self) -> None:
        """First come, first served: nobody is served while one who came before still waits."""
        lines: dict[tuple[Name, str], list[tuple[bytes, int]]] = {}
        for name, thing in self.bench.state.things.items():
            for part in ("line", "getters", "putters"):
                waits = getattr(thing, part, {}).values()
                lines[name, part] = [(w.holder.key, w.request.number) for w in waits]
        for key, before in self.lines.items():
            line = lines.get(key, [])
            stayed = [each for each in before if each in line]
            assert line[: len(stayed)] == stayed  # in their order, before those who came since
            if stayed:
                behind = before[before.index(stayed[0]) :]
                assert not self.served.intersection(behind)
        self.lines = lines
        self.served.clear()

    @invariant()
    def no_item_is_lost_or_doubled(self) -> None:
        """An item waits in a queue, or is in one answer, or was taken by one."""
        places: Counter[bytes] = Counter()
        state = self.bench.state
        for thing in state.things.values():
            if isinstance(thing, ItemQueue):
                places.update(contents(thing))
        for holder in state.holders.values():
            for lane in holder.lanes.values():
                if lane.given is not None and isinstance(lane.given.outcome, Answer):
                    places.update(lane.given.outcome.items)
        assert not places or max(places.values()) == 1
        assert places + self.taken == Counter(item for each in self.put.values() for item in each)


CoordinationMachine.TestCase.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None
)
TestCoordinationMachine = CoordinationMachine.TestCase
