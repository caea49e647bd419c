"""The coordination core: takes (event, now), returns commands.

Pure, as the scheduler: no clock, no I/O, no randomness. Fences come from one counter that begins
above those of every earlier head, so that they grow over restarts too. Lines are first come, first
served. A holder that is silent for longer than its lease is taken for dead: what it holds is free
at once, what it waits for is forgotten, and what it had taken out of queues and never confirmed
goes back there.
"""

from __future__ import annotations

import math
from typing import Final

from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    ConfigError,
    LeaseLost,
    RustRayError,
)
from rustray.coordination import flags, permits, queues, recovery
from rustray.coordination.messages import (
    Action,
    Answer,
    Asked,
    Command,
    Event,
    HolderEnded,
    HolderSeen,
    Kind,
    Name,
    Recovered,
    Request,
    TimePassed,
    Verdict,
)
from rustray.coordination.state import (
    NEVER,
    Flag,
    Given,
    Holder,
    ItemQueue,
    Lane,
    Permits,
    Settings,
    State,
    Wait,
    bound,
)
from rustray.task.names import check_name

MAX_HOLDER_BYTES: Final = 64
MAX_NUMBER: Final = (1 << 63) - 1
MAX_LIMIT: Final = 1_000_000_000
MAX_ITEMS: Final = 10_000
MAX_REQUEST_BYTES: Final = 16 << 20
MAX_HELD_NAMED: Final = 100_000
LATE_S: Final = 1.0
"""If a lease's end is noticed so much later, it was the head that stood still."""
DOUBT_S: Final = 3.0
"""How long a holder then has to speak; what it sent meanwhile may still be unread."""

_ACTIONS: Final = {
    Kind.LOCK: {Action.ACQUIRE, Action.RELEASE, Action.CHECK, Action.COUNT},
    Kind.SEMAPHORE: {Action.ACQUIRE, Action.RELEASE, Action.CHECK, Action.COUNT},
    Kind.EVENT: {Action.SET, Action.CLEAR, Action.AWAIT, Action.COUNT},
    Kind.QUEUE: {Action.PUT, Action.GET, Action.COUNT},
}
_OF_HOLDER: Final = {Action.RENEW, Action.END, Action.ABANDON}


class Coordination:
    """Holds every lock, semaphore, event and queue of a head.

    Attributes:
        state: Look, do not touch.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.state = State(settings or Settings())

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what happened; return what follows from it, to be carried out in order."""
        state = self.state
        state.now = max(now, state.now)
        commands: list[Command] = []
        state.commands = commands
        self._look_at_time()
        match event:
            case Asked():
                self._take_request(event)
            case HolderEnded():
                holder = state.holders.get(event.holder)
                if holder is not None:
                    self._end(holder)
            case HolderSeen():
                holder = state.holders.get(event.holder)
                if holder is not None and not holder.has_lease:
                    holder.expires_s = NEVER
            case Recovered():
                recovery.restore(state, event)
            case TimePassed():
                pass
        return commands

    def next_deadline(self) -> float | None:
        """Return when `TimePassed` is due; None: never."""
        return self.state.next_deadline()

    # -- requests --------------------------------------------------------------

    def _take_request(self, asked: Asked) -> None:
        request, state = asked.request, self.state
        known = state.holders.get(request.holder)
        holder = known or Holder(request.holder, asked.owner, asked.has_lease)
        try:
            check(request, state.settings)
            if holder.owner != asked.owner or holder.has_lease != asked.has_lease:
                raise AuthorizationError("this holder is another's: it has another token")
            _check_term(known, asked)
            self._touch(holder)
            lane = self._enter_lane(holder, request)
            if lane.given is not None:
                state.reply(holder, request, lane.given.outcome)
            elif lane.wait is None:
                self._carry_out(holder, request)
        except RustRayError as error:
            state.reply(holder, request, error)
        state.settle(asked.owner)

    def _touch(self, holder: Holder) -> None:
        """Renew a lease; begin it with a holder that is new."""
        state = self.state
        is_new = holder.key not in state.holders
        if is_new:
            account = state.account(holder.owner)
            bound(account.holders, state.settings.max_holders, "holders", "COORDINATION_HOLDERS")
            account.holders += 1
            state.holders[holder.key] = holder
            holder.term = state.take_number() if holder.has_lease else 0
        if holder.has_lease:
            holder.expires_s = state.now + state.settings.lease_s
            holder.is_doubted = False
            if is_new:
                state.push_timer(holder.expires_s, holder)

    def _enter_lane(self, holder: Holder, request: Request) -> Lane:
        """Find a request's lane; a new request ends the one before it there.

        Raises:
            CommunicationError: it is one of before, which came late.
        """
        lane = self._lane(holder, request.lane, request.action in _OF_HOLDER)
        if request.number < lane.number:
            raise CommunicationError("the request is one of before: its answer has been taken")
        if request.number > lane.number:
            if lane.wait is not None:
                self._give_up(lane.wait)
            self.state.forget_answer(holder, request.lane)
            lane.number = request.number
        return lane

    def _lane(self, holder: Holder, number: int, is_of_holder: bool = True) -> Lane:
        lane = holder.lanes.get(number)
        if lane is None:
            # However many calls wait, it must be able to say that it lives, and to take them back.
            most = self.state.settings.max_lanes * (1 + is_of_holder)
            bound(len(holder.lanes), most, "calls of one holder", "COORDINATION_LANES")
            lane = holder.lanes[number] = Lane()
        return lane

    def _carry_out(self, holder: Holder, request: Request) -> None:
        state, action = self.state, request.action
        if action is Action.RENEW:
            self._renew(holder, request)
        elif action is Action.END:
            self._note_taken(holder, request)
            state.reply(holder, request, Answer(Verdict.DONE))
            self._end(holder)
        elif action is Action.ABANDON:
            self._abandon(holder, request.count, request.fence)
            state.reply(holder, request, Answer(Verdict.DONE))
        else:
            name = Name(request.kind, holder.owner, request.space, request.name)
            _HANDLERS[request.kind](state, holder, request, name)

    def _renew(self, holder: Holder, request: Request) -> None:
        """Compare what a holder knows it holds with what it holds, and heal the difference."""
        self._note_taken(holder, request)
        named, pending = set(request.fences), set(request.pending)
        for grant in list(holder.grants.values()):
            # It had the answer that brought it, and does not know of it: it has given it up.
            is_known = grant.number < request.number and grant.number not in pending
            if is_known and grant.fence not in named:
                permits.give_back(self.state, grant)
                permits.serve(self.state, grant.permits)
        self.state.reply(holder, request, Answer(Verdict.DONE, term=holder.term))

    def _note_taken(self, holder: Holder, request: Request) -> None:
        taken = set(request.taken)
        for number, lane in holder.lanes.items() if taken else ():
            if lane.number in taken:
                self.state.forget_answer(holder, number)

    def _abandon(self, holder: Holder, lane_number: int, number: int) -> None:
        lane = self._lane(holder, lane_number)
        if lane.number > number:
            return
        if lane.wait is not None:
            self._give_up(lane.wait)
        if lane.number == number:
            self._undo(holder, lane_number, number)
        self.state.forget_answer(holder, lane_number)
        # It may come yet, having been overtaken: then it does nothing.
        lane.number, lane.given = number, Given(CommunicationError("the request was taken back"))

    def _undo(self, holder: Holder, lane_number: int, number: int) -> None:
        """Take back what an answer has brought that the holder does not want."""
        state = self.state
        given = state.forget_answer(holder, lane_number)
        if given is None or given.name is None or not isinstance(given.outcome, Answer):
            return
        if given.outcome.items:
            queues.bring_back(state, given.name, given.outcome.items)
        grant = holder.grants.get(given.outcome.fence)
        if grant is not None and grant.number == number:
            permits.give_back(state, grant)
            permits.serve(state, grant.permits)

    # -- ends ------------------------------------------------------------------

    def _end(self, holder: Holder) -> None:
        """Free all that a holder has."""
        state = self.state
        holder.is_gone = True
        del state.holders[holder.key]
        state.accounts[holder.owner].holders -= 1
        for wait in [lane.wait for lane in holder.lanes.values() if lane.wait is not None]:
            state.leave_line(wait)
            text = "its holder was silent for longer than its lease, or has ended"
            state.reply(holder, wait.request, LeaseLost(f"the call waits no more: {text}"))
            self._move_up(wait)
        for number in sorted(holder.lanes, key=lambda each: -holder.lanes[each].number):
            given = state.forget_answer(holder, number)
            if given is None or given.name is None or not isinstance(given.outcome, Answer):
                continue
            if given.outcome.items:
                queues.bring_back(state, given.name, given.outcome.items)
        for grant in list(holder.grants.values()):
            permits.give_back(state, grant)
            permits.serve(state, grant.permits)
        state.settle(holder.owner)

    def _give_up(self, wait: Wait) -> None:
        """Take one out of its line, and let the next ones have what it stood before."""
        self.state.leave_line(wait)
        self.state.reply(wait.holder, wait.request, Answer(Verdict.BUSY))
        self._move_up(wait)

    def _move_up(self, wait: Wait) -> None:
        thing = wait.thing
        if isinstance(thing, Permits):
            permits.serve(self.state, thing)
        elif isinstance(thing, ItemQueue):
            queues.serve(self.state, thing)
        elif isinstance(thing, Flag):
            self.state.drop_if_idle(thing)

    def _look_at_time(self) -> None:
        state = self.state
        while (subject := state.pop_due()) is not None:
            if isinstance(subject, Wait):
                self._give_up(subject)
                state.settle(subject.holder.owner)
            elif subject.expires_s > state.now:
                if subject.expires_s != NEVER:
                    state.push_timer(subject.expires_s, subject)
            elif state.now - subject.expires_s > LATE_S and not subject.is_doubted:
                subject.is_doubted = True
                subject.expires_s = state.now + DOUBT_S
                state.push_timer(subject.expires_s, subject)
            else:
                self._end(subject)


_HANDLERS: Final = {
    Kind.LOCK: permits.handle,
    Kind.SEMAPHORE: permits.handle,
    Kind.EVENT: flags.handle,
    Kind.QUEUE: queues.handle,
}


def _check_term(known: Holder | None, asked: Asked) -> None:
    """Let only the present term of a holder speak.

    Raises:
        LeaseLost: it is another one.
        ConfigError: there is none.
    """
    request = asked.request
    if not asked.has_lease:
        return
    if not request.term and request.action is not Action.RENEW:
        raise ConfigError(
            "the request is not valid: a holder begins with RENEW, and names its term"
        )
    if request.term and (known is None or known.term != request.term):
        raise LeaseLost(
            "the lease has ended, for nothing was heard of its holder for too long: what it held "
            "is free, and others may have had it since"
        )


def check(request: Request, settings: Settings) -> None:
    """Refuse what makes no sense.

    Raises:
        ConfigError: says what.
    """
    try:
        _check_holder(request)
        if request.action in _OF_HOLDER:
            return
        if request.action not in _ACTIONS[request.kind]:
            raise ValueError(f"{request.action.name} is nothing to do with a {request.kind.name}")
        _check_name(request)
        is_sized = request.kind is Kind.SEMAPHORE and request.action is Action.ACQUIRE
        if is_sized and not 1 <= request.limit <= MAX_LIMIT:
            raise ValueError(f"a semaphore has 1 to {MAX_LIMIT:,} permits, not {request.limit}")
        if not 0 <= request.limit <= MAX_LIMIT:
            raise ValueError(f"maxsize must be from 0 (no limit) to {MAX_LIMIT:,}")
        if request.action is Action.PUT:
            _check_items(request, settings)
        if request.action is Action.GET and not 1 <= request.count <= MAX_ITEMS:
            raise ValueError(f"1 to {MAX_ITEMS:,} items can be taken at once, not {request.count}")
    except ValueError as error:
        raise ConfigError(f"the request is not valid: {error}") from error


def _check_holder(request: Request) -> None:
    if not 1 <= len(request.holder) <= MAX_HOLDER_BYTES:
        raise ValueError(f"a holder is named by 1 to {MAX_HOLDER_BYTES} bytes")
    if not 0 <= request.term <= MAX_NUMBER:
        raise ValueError("a term is what the answer to RENEW says")
    if not (0 <= request.lane <= MAX_NUMBER and 1 <= request.number <= MAX_NUMBER):
        raise ValueError("requests are numbered from 1, and lanes from 0")
    if request.wait_s is not None and not (0 <= request.wait_s < math.inf):
        raise ValueError(f"a wait of {request.wait_s} s")
    if max(map(len, (request.fences, request.taken, request.pending))) > MAX_HELD_NAMED:
        raise ValueError(f"more than {MAX_HELD_NAMED:,} fences or numbers at once")


def _check_name(request: Request) -> None:
    check_name("name", request.name)
    if request.space:
        check_name("namespace", request.space)


def _check_items(request: Request, settings: Settings) -> None:
    if not 1 <= len(request.items) <= MAX_ITEMS:
        raise ValueError(f"1 to {MAX_ITEMS:,} items can be put at once, not {len(request.items)}")
    largest = max(map(len, request.items))
    if largest > settings.max_item_bytes:
        raise ValueError(
            f"an item takes {largest} bytes, and at most {settings.max_item_bytes} are allowed: "
            "write it to storage, and put where it is"
        )
    if sum(map(len, request.items)) > MAX_REQUEST_BYTES:
        raise ValueError(f"the items take more than {MAX_REQUEST_BYTES >> 20} MiB: put fewer")
