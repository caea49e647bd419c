"""Joins what tasks take from others to their arguments, on the way to the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from rustray.common.errors import RustRayError
from rustray.scheduler.commands import GrantLease
from rustray.task.columns import PayloadColumn, PlacedColumn, StoredColumn
from rustray.task.inputs import LOST, InputValue, join_call
from rustray.task.place import Place


def has_stored(command: GrantLease) -> bool:
    """Whether one of the values is on a disk, and is to be read first."""
    return any(
        isinstance(value.payloads, StoredColumn) for values in command.inputs for value in values
    )


def joined(command: GrantLease, token_of: Callable[[Place, str], str]) -> GrantLease:
    """Return a grant whose arguments carry the values, or where they are.

    Args:
        command: What is not with a worker is in memory.
        token_of: Opens a place for somebody.
    """
    inputs = [
        tuple(_opened(value, command.worker_id, token_of) for value in values)
        for values in command.inputs
    ]
    calls = zip(command.payloads, inputs, strict=True)
    payloads = PayloadColumn.of([join_call(call, values) for call, values in calls])
    return replace(command, payloads=payloads, inputs=())


def _opened(value: InputValue, worker_id: str, token_of: Callable[[Place, str], str]) -> InputValue:
    if not isinstance(value.payloads, PlacedColumn):
        return value
    place = Place.unpack(value.payloads[0])
    if place.worker_id == worker_id:
        return value
    return replace(value, token=token_of(place, f"worker:{worker_id}"))


class Results(Protocol):
    """Where large results are; a `HeadDriver` is one."""

    loop: asyncio.AbstractEventLoop
    object_token: Callable[[Place, str], str]

    async def read_results(self, column: StoredColumn) -> PayloadColumn:
        """Return what a column stands for."""


class Joiner:
    """Reads what is on the disk, and joins it then."""

    def __init__(self, results: Results, on_joined: Callable[[GrantLease], None]) -> None:
        """Prepare.

        Args:
            results: Reads large results.
            on_joined: Called with each grant that is whole.
        """
        self._results = results
        self._on_joined = on_joined
        self._readings: set[asyncio.Task[GrantLease]] = set()

    def read(self, command: GrantLease) -> None:
        """Have the values of a grant read and joined."""
        reading = self._results.loop.create_task(self._read(command), name="rustray-inputs")
        self._readings.add(reading)
        reading.add_done_callback(self._go_on)

    def close(self) -> None:
        """Read no more."""
        for reading in list(self._readings):
            reading.cancel()

    def _go_on(self, reading: asyncio.Task[GrantLease]) -> None:
        self._readings.discard(reading)
        if not reading.cancelled():
            self._on_joined(joined(reading.result(), self._results.object_token))

    async def _read(self, command: GrantLease) -> GrantLease:
        known: dict[tuple[int, int], PayloadColumn] = {}
        inputs = [
            tuple([await self._found(value, known) for value in values])
            for values in command.inputs
        ]
        return replace(command, inputs=tuple(inputs))

    async def _found(
        self, value: InputValue, known: dict[tuple[int, int], PayloadColumn]
    ) -> InputValue:
        """Return a value in memory; what is lost says so to the task."""
        column = value.payloads
        if not isinstance(column, StoredColumn):
            return value
        key = (column.number, column.skip)
        if key not in known:
            try:
                known[key] = await self._results.read_results(column)
            except RustRayError as error:
                return InputValue(LOST, PayloadColumn.of([str(error).encode()]), value.index)
        return replace(value, payloads=known[key])
