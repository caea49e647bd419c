"""Queues: items in the order in which they came, each to one taker.

What a taker was given belongs to its answer until it has that. If it ends before, the items come
back to the front of the queue, and others get them.
"""

from __future__ import annotations

from typing import Final

from rustray.common.errors import ConfigError, PayloadError, ResourceExhausted
from rustray.coordination import rows
from rustray.coordination.messages import Action, Answer, Name, Request, Verdict
from rustray.coordination.state import (
    FIRST_SEQUENCE,
    Chunk,
    Holder,
    ItemQueue,
    State,
)

MAX_ANSWER_BYTES: Final = 4 << 20
"""Of the items in one answer, unless it is one item."""


def handle(state: State, holder: Holder, request: Request, name: Name) -> None:
    """Carry out a request for a queue.

    Raises:
        RustRayError: it is refused; nothing has changed.
    """
    found = state.things.get(name)
    assert found is None or isinstance(found, ItemQueue)
    if request.action is Action.PUT:
        _put(state, holder, request, name, found)
    elif request.action is Action.GET:
        queue = found or _new(state, name)
        if queue.getters or not queue.size:
            state.stand_in_line(holder, request, queue, queue.getters)
        else:
            _hand_out(state, holder, request, queue)
            serve(state, queue)
    else:
        size = found.size if found is not None else 0
        state.reply(holder, request, Answer(Verdict.DONE, count=size))


def _new(state: State, name: Name) -> ItemQueue:
    queue = ItemQueue(name, state.take_number())
    state.add_thing(queue)
    return queue


def _put(
    state: State, holder: Holder, request: Request, name: Name, found: ItemQueue | None
) -> None:
    limit, count = request.limit, len(request.items)
    if 0 < limit < count:
        raise PayloadError(f"{count} items at once never fit into a queue of {limit}")
    if found is not None and found.limit not in (-1, limit):
        raise ConfigError(
            f"the queue {name.name!r} is in use with maxsize={found.limit}, not {limit}: whoever "
            "puts into it must name the same (it can be changed while the queue is empty)"
        )
    _bound_bytes(state, holder.owner, request)
    queue = found or _new(state, name)
    if queue.putters or not _fits(queue, request):
        state.stand_in_line(holder, request, queue, queue.putters)
        return
    _store(state, holder, request, queue)
    serve(state, queue)


def _bound_bytes(state: State, owner: str, request: Request) -> None:
    size, most = sum(map(len, request.items)), state.settings.max_bytes
    used = state.account(owner).bytes
    if used + size > most:
        raise ResourceExhausted(
            f"items of {used} bytes wait in queues under this token, {size} more would be over "
            f"the limit of {most}: take some out first, or put where the data is",
            reason="COORDINATION_BYTES",
        )


def _fits(queue: ItemQueue, request: Request) -> bool:
    return not request.limit or queue.size + len(request.items) <= request.limit


def _store(state: State, holder: Holder, request: Request, queue: ItemQueue) -> None:
    queue.limit = request.limit
    sequence = queue.chunks[-1].sequence + 1 if queue.chunks else FIRST_SEQUENCE
    queue.chunks.append(Chunk(sequence, request.items))
    _note_chunk(state, queue, queue.chunks[-1])
    answer = Answer(Verdict.DONE, count=queue.size)
    state.give(holder, request, queue.name, answer)


def _note_chunk(state: State, queue: ItemQueue, chunk: Chunk) -> None:
    queue.size += len(chunk.items)
    state.account(queue.name.owner).bytes += sum(map(len, chunk.items))
    value = rows.chunk_value(queue.name, queue.limit, chunk.items)
    state.keep(rows.chunk_key(queue.number, chunk.sequence), value)


def _hand_out(state: State, holder: Holder, request: Request, queue: ItemQueue) -> None:
    taken: list[bytes] = []
    size = 0
    while queue.chunks and len(taken) < request.count:
        chunk = queue.chunks[0]
        stop = min(chunk.taken + request.count - len(taken), len(chunk.items))
        at = chunk.taken
        while at < stop and (not taken or size + len(chunk.items[at]) <= MAX_ANSWER_BYTES):
            taken.append(chunk.items[at])
            size += len(chunk.items[at])
            at += 1
        if at == chunk.taken:
            break
        was_cut, chunk.taken = chunk.taken > 0, at
        _note_taken(state, queue, chunk, was_cut)
    queue.size -= len(taken)
    state.accounts[queue.name.owner].bytes -= size
    answer = Answer(Verdict.DONE, count=queue.size, items=tuple(taken))
    state.give(holder, request, queue.name, answer)


def _note_taken(state: State, queue: ItemQueue, chunk: Chunk, was_cut: bool) -> None:
    if chunk.taken < len(chunk.items):
        value = rows.offset_value(chunk.taken)
        state.keep(rows.offset_key(queue.number, chunk.sequence), value)
        return
    queue.chunks.popleft()
    state.drop(rows.chunk_key(queue.number, chunk.sequence))
    if was_cut:
        state.drop(rows.offset_key(queue.number, chunk.sequence))


def bring_back(state: State, name: Name, items: tuple[bytes, ...]) -> None:
    """Put items to the front again whose taker never had them."""
    found = state.things.get(name)
    if found is None:
        # There was room for the name when they were handed out, and there are few such answers.
        found = ItemQueue(name, state.take_number())
        state.account(name.owner).names += 1
        state.things[name] = found
    assert isinstance(found, ItemQueue)
    sequence = found.chunks[0].sequence - 1 if found.chunks else FIRST_SEQUENCE
    found.chunks.appendleft(Chunk(sequence, items))
    _note_chunk(state, found, found.chunks[0])
    serve(state, found)


def serve(state: State, queue: ItemQueue) -> None:
    """Give items to those who wait for some, and room to those who wait for that, in order."""
    while True:
        getter = next(iter(queue.getters.values()), None)
        if getter is not None and queue.size:
            state.leave_line(getter)
            _hand_out(state, getter.holder, getter.request, queue)
            continue
        putter = next(iter(queue.putters.values()), None)
        if putter is None or not _fits(queue, putter.request):
            break
        state.leave_line(putter)
        _store(state, putter.holder, putter.request, queue)
    state.drop_if_idle(queue)
