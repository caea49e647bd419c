"""Columns of payloads as protobuf, and back."""

from __future__ import annotations

from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.rpc.convert import count_from_wire
from rustray.task.columns import PayloadColumn, PlacedColumn


def put_payloads(target: common.Payloads, column: PayloadColumn) -> None:
    """Write a column."""
    target.blob = bytes(column.blob)  # a copy only of shared memory
    target.ends = column.ends_bytes()
    target.base = column.base
    if isinstance(column, PlacedColumn):
        target.placed = True


def get_payloads(message: common.Payloads, first: int, limit: int) -> PayloadColumn:
    """Read a column for tasks from ``first`` on, whose numbers are all below the limit."""
    column = PayloadColumn.from_wire(message.blob, message.ends, message.base)
    if not column.ends:
        raise ValueError("a column of 0 payloads")
    count_from_wire(len(column.ends), first, limit)
    return PlacedColumn.of_column(column) if message.placed else column


def get_ordered_payloads(message: common.Payloads, first: int, limit: int) -> PayloadColumn:
    """Read a column that is handed on, so that a false one is refused here and not further on."""
    column = get_payloads(message, first, limit)
    if len(column.ends) > 1:
        ends = column.ends.tolist()
        if ends != sorted(ends):
            raise ValueError("payload ends are out of order")
    return column
