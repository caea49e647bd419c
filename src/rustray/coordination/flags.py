"""Events: set, or not."""

from __future__ import annotations

from rustray.coordination import rows
from rustray.coordination.messages import Action, Answer, Name, Request, Verdict
from rustray.coordination.state import Flag, Holder, State


def handle(state: State, holder: Holder, request: Request, name: Name) -> None:
    """Carry out a request for an event.

    Raises:
        ResourceExhausted: too many names, or waiting calls.
    """
    flag = state.things.get(name)
    assert flag is None or isinstance(flag, Flag)
    is_set = flag is not None and flag.is_set
    if request.action is Action.SET:
        if not is_set:
            _set(state, flag or _new(state, name))
        state.give(holder, request, name, Answer(Verdict.DONE, count=1))
    elif request.action is Action.CLEAR:
        if flag is not None and is_set:
            flag.is_set = False
            state.drop(rows.event_key(name))
            state.drop_if_idle(flag)
        state.give(holder, request, name, Answer(Verdict.DONE))
    elif request.action is Action.AWAIT and not is_set:
        flag = flag or _new(state, name)
        state.stand_in_line(holder, request, flag, flag.line)
    else:
        state.reply(holder, request, Answer(Verdict.DONE, count=int(is_set)))


def _new(state: State, name: Name) -> Flag:
    flag = Flag(name)
    state.add_thing(flag)
    return flag


def _set(state: State, flag: Flag) -> None:
    flag.is_set = True
    state.keep(rows.event_key(flag.name), rows.event_value(flag.name))
    for wait in list(flag.line.values()):
        state.leave_line(wait)
        state.reply(wait.holder, wait.request, Answer(Verdict.DONE, count=1))
