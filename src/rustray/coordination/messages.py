"""What holders ask the coordination core, and what it tells the shell to do.

A *holder* is whoever can hold something: a client's session, which renews its lease, or one attempt
of a task, which holds for as long as it runs. It asks in *lanes*, one request at a time in each, as
many lanes as it has requests under way at once (NFS 4.1 calls them slots). The numbers of a lane
grow: the same number again is the same request again, which does nothing twice and is answered as
before; a larger one says that the answer before has been taken, so that it need not be kept.

A holder with a lease begins with RENEW, and is told its *term*, which all its requests carry. When
it has been silent for too long, the term is over: whatever of it still comes does nothing.
"""

from __future__ import annotations

from enum import IntEnum

from rustray.common.errors import RustRayError
from rustray.common.records import record


class Kind(IntEnum):
    """What a name stands for; each kind has names of its own."""

    LOCK = 1
    SEMAPHORE = 2
    EVENT = 3
    QUEUE = 4


class Action(IntEnum):
    """What a holder asks for."""

    RENEW = 1
    """Say that the holder lives, and what it holds."""
    END = 2
    """Free all that the holder holds; it ends."""
    ABANDON = 3
    """Take an earlier request back: leave the line, or give back what it brought."""
    ACQUIRE = 4
    RELEASE = 5
    CHECK = 6
    """Ask whether a fence is still good."""
    COUNT = 7
    """Ask for the permits that are free, whether the event is set, or the items that wait."""
    SET = 8
    CLEAR = 9
    AWAIT = 10
    PUT = 11
    GET = 12


class Verdict(IntEnum):
    """How a request ended."""

    DONE = 1
    WAITING = 2
    """It stands in line: ask again, under the same number."""
    BUSY = 3
    """Not within the time that it was given."""


@record
class Name:
    """What a lock, semaphore, event or queue is found by.

    Attributes:
        owner: Subject of the token under which it is used.
        space: Namespace within that, "" for the usual one.
    """

    kind: Kind
    owner: str
    space: str
    name: str


@record
class Request:
    """One request of a holder.

    Attributes:
        holder: Names the holder; not to be guessed.
        lane: In which it is the only one.
        number: From 1; of a new one larger than of all before.
        term: See above; 0 in the first RENEW, and where there is no lease.
        limit: Permits of a semaphore, items that a queue takes at most (0: any number).
        fence: To release or check; of ABANDON: the number of the other request.
        count: Items to get at most; of ABANDON: the lane of the other request.
        wait_s: How long it may stand in line; None: as long as the holder lives.
        items: To put, each encoded.
        fences: RENEW: everything that the holder knows it holds. What else it has from requests
            before this one is freed, but for those that are
        pending: RENEW: numbers of requests whose answers it does not have.
        taken: RENEW, END: numbers of requests whose answers it has.
    """

    holder: bytes
    lane: int
    number: int
    action: Action
    kind: Kind = Kind.LOCK
    space: str = ""
    name: str = ""
    limit: int = 0
    fence: int = 0
    count: int = 0
    wait_s: float | None = 0.0
    items: tuple[bytes, ...] = ()
    fences: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    term: int = 0


@record
class Answer:
    """What became of a request.

    Attributes:
        fence: Of what was acquired.
        count: See `Action.COUNT`; RELEASE: permits free; PUT and GET: items that wait.
        items: Taken from a queue, in order.
        term: RENEW: the holder's.
        lease_s: How long the holder may be silent; 0: the head knows by itself when it ends.
    """

    verdict: Verdict
    fence: int = 0
    count: int = 0
    items: tuple[bytes, ...] = ()
    term: int = 0
    lease_s: float = 0.0


# ── Events ──────────────────────────────────────────────────────────────────────────────────────


@record
class Asked:
    """A request has come.

    Attributes:
        owner: Whose names it means.
        has_lease: The holder renews itself; False: the shell says when it ends.
    """

    request: Request
    owner: str
    has_lease: bool = True


@record
class HolderEnded:
    """A holder without lease is gone: its attempt has ended, or is not the present one."""

    holder: bytes


@record
class HolderSeen:
    """A holder without lease, known from before a restart, goes on."""

    holder: bytes


@record
class TimePassed:
    """A deadline may have come."""


@record
class Recovered:
    """What an earlier head had kept: (key, value) of every `Keep` without a `Drop` since.

    Attributes:
        grace_s: How long the holders of then have to come back.
    """

    rows: tuple[tuple[bytes, bytes], ...]
    grace_s: float


Event = Asked | HolderEnded | HolderSeen | TimePassed | Recovered

# ── Commands, to be carried out in order ────────────────────────────────────────────────────────


@record
class Keep:
    """Commit a row, in place of the one under its key."""

    key: bytes
    value: bytes


@record
class Drop:
    """Delete a row."""

    key: bytes


@record
class Reply:
    """Answer a request, once all rows before are committed."""

    holder: bytes
    lane: int
    number: int
    outcome: Answer | RustRayError


Command = Keep | Drop | Reply
