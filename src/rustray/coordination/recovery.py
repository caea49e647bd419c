"""How a restarted head takes up what the one before it had kept."""

from __future__ import annotations

from rustray.coordination import permits, rows
from rustray.coordination.messages import Name, Recovered
from rustray.coordination.state import (
    Chunk,
    Flag,
    Given,
    Grant,
    Holder,
    ItemQueue,
    Lane,
    Permits,
    State,
    Thing,
)


def restore(state: State, event: Recovered) -> None:
    """Rebuild everything; each holder has the grace to come back.

    Raises:
        ValueError, TypeError, KeyError: a row is damaged.
    """
    offsets: dict[bytes, int] = {}
    chunks: list[tuple[bytes, list[object]]] = []
    for key, value in event.rows:
        kind, rest, values = key[:1], key[1:], rows.unpack(value)
        if kind == rows.GRANT:
            _restore_grant(state, rest, values, event.grace_s)
        elif kind == rows.ANSWER:
            _restore_answer(state, rest, values, event.grace_s)
        elif kind == rows.EVENT:
            flag = _thing(state, Flag(rows.get_name(values)))
            assert isinstance(flag, Flag)
            flag.is_set = True
        elif kind == rows.CHUNK:
            chunks.append((rest, values))
        elif kind == rows.OFFSET:
            offsets[rest] = int(values[0])
        else:
            raise ValueError(f"a row of unknown kind {kind!r}")
    for rest, values in sorted(chunks, key=lambda each: each[0]):
        _restore_chunk(state, rest, values, offsets.get(rest, 0))


def _holder(state: State, key: bytes, whose: tuple[str, bool, int], grace_s: float) -> Holder:
    holder = state.holders.get(key)
    if holder is None:
        owner = whose[0]
        holder = state.holders[key] = Holder(key, *whose, state.now + grace_s)
        state.account(owner).holders += 1
        state.push_timer(holder.expires_s, holder)
    return holder


def _thing(state: State, new: Thing) -> Thing:
    found = state.things.get(new.name)
    if found is None:
        found = state.things[new.name] = new
        state.account(new.name.owner).names += 1
    return found


def _restore_grant(state: State, rest: bytes, values: list[object], grace_s: float) -> None:
    fence, _ = rows.split_number(rest)
    key, has_lease, term, number, packed, limit = values
    name = rows.get_name(packed)
    assert isinstance(key, bytes)
    assert isinstance(term, int)
    assert isinstance(number, int)
    assert isinstance(limit, int)
    holder = _holder(state, key, (name.owner, bool(has_lease), term), grace_s)
    found = _thing(state, Permits(name, limit))
    assert isinstance(found, Permits)
    permits.enter(state, Grant(fence, number, holder, found))


def _restore_answer(state: State, rest: bytes, values: list[object], grace_s: float) -> None:
    lane, key = rows.split_number(rest)
    whose, number, name, answer = rows.get_answer(values)
    holder = _holder(state, key, whose, grace_s)
    size = sum(map(len, answer.items))
    holder.lanes[lane] = Lane(number, Given(answer, name, size))
    state.account(holder.owner).bytes += size


def _restore_chunk(state: State, rest: bytes, values: list[object], taken: int) -> None:
    number, tail = rows.split_number(rest)
    sequence, _ = rows.split_number(tail)
    packed, limit, items = values
    name: Name = rows.get_name(packed)
    assert isinstance(limit, int)
    assert isinstance(items, list)
    queue = _thing(state, ItemQueue(name, number, limit))
    assert isinstance(queue, ItemQueue)
    queue.limit = max(limit, queue.limit)  # items that came back do not know of any
    chunk = Chunk(sequence, tuple(items), taken)
    queue.chunks.append(chunk)
    queue.size += len(chunk.items) - taken
    state.account(name.owner).bytes += sum(map(len, chunk.items[taken:]))
