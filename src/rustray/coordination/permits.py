"""Locks and semaphores: who holds them, under which fence, and who is next."""

from __future__ import annotations

from rustray.common.errors import ConfigError, LeaseLost
from rustray.coordination import rows
from rustray.coordination.messages import Action, Answer, Kind, Name, Request, Verdict
from rustray.coordination.state import Grant, Holder, Permits, State, bound, new_thing


def handle(state: State, holder: Holder, request: Request, name: Name) -> None:
    """Carry out a request for a lock or semaphore.

    Raises:
        RustRayError: it is refused; nothing has changed.
    """
    if request.action is Action.ACQUIRE:
        _acquire(state, holder, request, name)
    elif request.action is Action.RELEASE:
        grant = _held(holder, request.fence, name)
        give_back(state, grant)
        free = grant.permits.limit - len(grant.permits.grants)
        state.give(holder, request, name, Answer(Verdict.DONE, count=free))
        serve(state, grant.permits)
    elif request.action is Action.CHECK:
        _held(holder, request.fence, name)
        state.reply(holder, request, Answer(Verdict.DONE, request.fence))
    else:
        found = state.things.get(name)
        limit = 1 if name.kind is Kind.LOCK else request.limit
        free = found.limit - len(found.grants) if isinstance(found, Permits) else limit
        state.reply(holder, request, Answer(Verdict.DONE, count=free))


def _acquire(state: State, holder: Holder, request: Request, name: Name) -> None:
    limit = 1 if name.kind is Kind.LOCK else request.limit
    permits = state.things.get(name)
    if permits is None:
        _bound_held(state, holder)
        permits = new_thing(name, limit, state)
        state.add_thing(permits)
    assert isinstance(permits, Permits)
    if permits.limit != limit:
        raise ConfigError(
            f"the semaphore {name.name!r} is in use with {permits.limit} permits, not {limit}: "
            "whoever uses it must name the same number (it can be changed while nobody does)"
        )
    if permits.line or len(permits.grants) >= permits.limit:
        state.stand_in_line(holder, request, permits, permits.line)
        return
    _bound_held(state, holder)
    _grant(state, holder, request, permits)


def _bound_held(state: State, holder: Holder) -> None:
    held = state.account(holder.owner).held
    bound(held, state.settings.max_held, "held permits", "COORDINATION_HELD")


def _grant(state: State, holder: Holder, request: Request, permits: Permits) -> None:
    grant = Grant(state.take_number(), request.number, holder, permits)
    enter(state, grant)
    whose = (holder.key, holder.has_lease, holder.term)
    value = rows.grant_value(whose, request.number, permits.name, permits.limit)
    state.keep(rows.grant_key(grant.fence), value)
    state.give(holder, request, permits.name, Answer(Verdict.DONE, grant.fence))


def enter(state: State, grant: Grant) -> None:
    """Note that something is held."""
    grant.permits.grants[grant.fence] = grant.holder.grants[grant.fence] = grant
    state.account(grant.holder.owner).held += 1


def _held(holder: Holder, fence: int, name: Name) -> Grant:
    grant = holder.grants.get(fence)
    if grant is None or grant.permits.name != name:
        what = "lock" if name.kind is Kind.LOCK else "semaphore"
        raise LeaseLost(
            f"fence {fence} of the {what} {name.name!r} is not good (any more): its holder was "
            "silent for longer than its lease, or has given it back. Others may have had it since: "
            "look at what it protects before you go on"
        )
    return grant


def give_back(state: State, grant: Grant) -> None:
    """Take something out of its holder's hands; `serve` comes next."""
    del grant.permits.grants[grant.fence]
    del grant.holder.grants[grant.fence]
    state.accounts[grant.holder.owner].held -= 1
    state.drop(rows.grant_key(grant.fence))


def serve(state: State, permits: Permits) -> None:
    """Give what is free to those who wait, in order."""
    while permits.line and len(permits.grants) < permits.limit:
        wait = next(iter(permits.line.values()))
        state.leave_line(wait)
        _grant(state, wait.holder, wait.request, permits)
    state.drop_if_idle(permits)
