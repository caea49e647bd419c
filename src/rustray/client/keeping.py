"""Large values that a program hands in: they may go to a worker of its machine, past the head.

What lies with a worker is lost with it, and no task can make it again. So this is for heads that
promise no more than their memory does (level ``memory``), and for what could not travel otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from typing import Any, Final

from rustray.client import context
from rustray.client.intake import MAX_PAYLOAD_BYTES, Intake
from rustray.client.loop_thread import LoopThread
from rustray.client.refs import ClassEntry, TaskRef
from rustray.common.durability import Durability
from rustray.common.errors import PayloadError, ResourceExhausted, RustRayError
from rustray.objects import own_port
from rustray.objects.segment import Segment
from rustray.rpc.api import HeadApi
from rustray.task.codec import parts_encoder
from rustray.task.columns import PlacedColumn
from rustray.task.flat import FlatValue, parts_of
from rustray.task.pickling import is_plain
from rustray.task.place import MIN_PLACED_BYTES, PUT_PREFIX
from rustray.task.spec import Codec
from rustray.task.views import ClusterStatus

logger = logging.getLogger("rustray.client")

LOOK_S: Final = 5.0
"""How long to look for a worker of this machine."""
PAUSE_S: Final = 1.0
"""Before it is looked for again, unless there is no other way."""


class Keeper:
    """Gives values to a worker of this machine; any thread but the session's.

    Attributes:
        above: Only what has more bytes than that is looked at.
        takes_calls: Also large arguments of calls that take no references: they would be copied
            into messages. Inside one program they pass as memory anyway.
    """

    def __init__(self, api: HeadApi, thread: LoopThread, *, takes_calls: bool) -> None:
        """Prepare, for the session of that thread."""
        self.above = 0
        self.takes_calls = takes_calls
        self._api = api
        self._thread = thread
        self._lock = threading.Lock()
        self._ports: list[str] = []
        self._is_durable = True
        self._most = 0  # that the head takes; 0: not known
        self._looked_at_s = -PAUSE_S

    def put(
        self, session: Intake, payload: bytes | FlatValue, *, is_safe_asked: bool = False
    ) -> TaskRef[Any] | None:
        """Put an encoded value with a worker, if it may be there.

        Args:
            session: Whose value it is.
            payload: The value.
            is_safe_asked: It has to survive more than the head's memory does.

        Raises:
            ResourceExhausted: it cannot travel through the head, and the worker has no room.
            PayloadError: it is larger than any value may be.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadError(
                f"a value has {len(payload)} bytes, and at most {MAX_PAYLOAD_BYTES} (2 GiB) can be "
                "kept as one: split it, or write it to storage and pass on where it is"
            )
        if len(payload) < MIN_PLACED_BYTES or threading.get_ident() == session.thread_id:
            return None
        column = self._keep(payload, session.max_payload_bytes, is_safe_asked=is_safe_asked)
        if column is None:
            return None
        return session.submit_placed(session.define(context.PUT, b""), column)

    def _keep(self, payload: bytes | FlatValue, most: int, *, is_safe_asked: bool) -> Any:
        """Give a value to a worker; returns its place, or None if it is to go through the head.

        Args:
            payload: The value.
            most: Bytes that can travel to the head, if that takes so many.
            is_safe_asked: As for `put`.
        """
        with self._lock:
            if not self._ports and time.monotonic() >= self._looked_at_s + PAUSE_S:
                self._look()
        must = len(payload) > min(most, self._most or most)
        if not self._may(must=must, is_safe_asked=is_safe_asked):
            return None
        try:
            segment = Segment.write(parts_of(payload))
        except OSError:
            return None
        full: ResourceExhausted | None = None
        try:
            for port in self._ports:
                try:
                    return PlacedColumn.of_item(own_port.PORTS.put(port, new_id(), segment))
                except ResourceExhausted as error:
                    full = error
                except (RustRayError, OSError, ValueError) as error:
                    logger.debug("a value cannot be put at a worker of this machine: %s", error)
        finally:
            segment.close()
        if full is not None and must:
            raise full
        self._ports = []
        return None

    def _may(self, *, must: bool, is_safe_asked: bool) -> bool:
        with self._lock:
            if must and not self._ports:
                self._look()
        is_durable = self._is_durable or is_safe_asked
        return bool(self._ports) and (must or not is_durable)

    def _look(self) -> None:
        """Find out how safe the head is, and which workers are here."""
        self._looked_at_s = time.monotonic()
        with contextlib.suppress(RustRayError, TimeoutError):
            status, ports = self._thread.call(self._ask(), LOOK_S)
            self._is_durable = status.durability != Durability.MEMORY.label
            self._most = status.max_payload_bytes
            self._ports = [port for port in ports if port and own_port.PORTS.can_reach(port)]

    async def _ask(self) -> tuple[ClusterStatus, list[str]]:
        workers = await self._api.list_workers()
        return await self._api.status(), [each.object_port for each in workers]


class OwnKeeper(Keeper):
    """Of a task: gives what the head does not take to the worker that the task runs at.

    Args:
        most: Bytes that the head takes.
    """

    def __init__(self, most: int) -> None:
        self.above = most
        self.takes_calls = True
        self._lock = threading.Lock()
        self._ports = [own_port.name()]
        self._is_durable = True
        self._most = most
        self._looked_at_s = 0.0

    def _look(self) -> None:
        self._ports = [own_port.name()]


def new_id() -> str:
    """Return a name for a value that was put."""
    return f"{PUT_PREFIX}{secrets.token_hex(12)}"


def put_large(
    entry: ClassEntry,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    size: int,
    *,
    takes_any: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Put the large ones among a call's arguments; returns the call with references, or None.

    Args:
        entry: The function's, in the session.
        args: The arguments.
        kwargs: Likewise.
        size: Bytes of all of them, encoded.
        takes_any: There are references among them: then all of them travel in one message.
    """
    session = entry.owner
    assert isinstance(session, Intake)
    keeper: Keeper | None = session.keeper
    if keeper is None or size <= keeper.above or not (keeper.takes_calls or takes_any):
        return None
    is_safe_asked = entry.durability > Durability.MEMORY
    encode = parts_encoder(Codec.PICKLE)
    known: dict[int, TaskRef[Any]] = {}

    def placed(value: Any) -> Any:
        if type(value) is TaskRef or (is_plain(value) and not _is_large(value)):
            return value
        if id(value) not in known:
            ref = keeper.put(session, encode(value), is_safe_asked=is_safe_asked)
            if ref is None:
                return value
            known[id(value)] = ref
        return known[id(value)]

    new_args = tuple(map(placed, args))
    new_kwargs = {name: placed(value) for name, value in kwargs.items()}
    return (new_args, new_kwargs) if known else None


def _is_large(value: Any) -> bool:
    return isinstance(value, bytes | bytearray) and len(value) >= MIN_PLACED_BYTES
