"""Who waits for the tasks of a batch: the edges of a graph, seen from their beginnings.

A graph of a million tasks has some millions of edges, and most of them wait. So an edge is an entry
in columns, 16 bytes of it, and the edges of one task are a chain through them; nothing is there
that the garbage collector has to look at one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
"""What those who wait belong to: a batch."""


class Dependants(Generic[T]):
    """The edges of one batch's tasks; empty ones cost nothing but this object.

    Attributes:
        count: Edges.
    """

    __slots__ = ("_edges", "count")

    def __init__(self) -> None:
        """Begin without edges."""
        self.count = 0
        self._edges: _Edges[T] | None = None

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, place: int, owner: T, offset: int) -> None:
        """Note that the task of this owner and offset waits for the one at a place."""
        if self._edges is None:
            self._edges = _Edges()
        self._edges.add(place, owner, offset)
        self.count += 1

    def of(self, place: int) -> list[tuple[T, int]]:
        """Return who waits for a task, in the order in which they came."""
        return self._edges.of(place) if self._edges is not None else []

    def pop(self, place: int) -> list[tuple[T, int]]:
        """Return the same, and forget it."""
        edges = self._edges
        found = edges.of(place) if edges is not None else []
        if edges is not None and found:
            edges.drop(place)
            self.count -= len(found)
            if not self.count:
                self._edges = None
        return found


NOBODY: Final[Dependants[Any]] = Dependants()
"""Those of a batch on which no task depends, as nearly all are: one object for all of them."""


class _Edges(Generic[T]):
    """The columns. Edges count from 1, so that 0 is the end of a chain."""

    __slots__ = ("_before", "_newest", "_offsets", "_owners")

    def __init__(self) -> None:
        self._newest = array("I")  # by place
        self._before, self._offsets = array("I", (0,)), array("I", (0,))  # by edge, as the next
        self._owners: list[T | None] = [None]

    def add(self, place: int, owner: T, offset: int) -> None:
        newest = self._newest
        if place >= len(newest):
            newest.frombytes(bytes(newest.itemsize * (place + 1 - len(newest))))
        self._before.append(newest[place])
        self._offsets.append(offset)
        newest[place] = len(self._owners)
        self._owners.append(owner)

    def of(self, place: int) -> list[tuple[T, int]]:
        found: list[tuple[T, int]] = []
        for edge in self._chain(place):
            owner = self._owners[edge]
            assert owner is not None
            found.append((owner, self._offsets[edge]))
        found.reverse()
        return found

    def drop(self, place: int) -> None:
        for edge in self._chain(place):
            self._owners[edge] = None
        self._newest[place] = 0

    def _chain(self, place: int) -> Iterator[int]:
        edge = self._newest[place] if place < len(self._newest) else 0
        while edge:
            yield edge
            edge = self._before[edge]
