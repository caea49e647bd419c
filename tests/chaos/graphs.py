"""Graphs that a client of a chaos run hands in, and what it writes of them.

A graph is handed in whole, one task after the other, while earlier ones of it may run already. Some
have a task that raises, or one that is cancelled: everything behind it has to end with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import rustray
from chaos import graph_functions
from chaos.graph_functions import LARGE_BYTES, PARTS
from chaos.history import Writer, digest

WHOLE: Final = -1
"""Index of a producer's only value."""
_ORIGIN: Final = re.compile(r"result of task ([0-9a-f]{32})")
_TIMES_S: Final = (0.0, 0.0, 0.01, 0.05, 0.2)
_SIZES: Final = (LARGE_BYTES - 1, LARGE_BYTES, 300_001, 1 << 20, (2 << 20) + 1)
_HUGE_BYTES: Final = 5 << 20


@dataclass(frozen=True, slots=True)
class Value:
    """Something that a task can take."""

    ref: rustray.TaskRef[Any]
    index: int = WHOLE


@dataclass(slots=True)
class Graph:
    """Tasks that have been handed in together.

    Attributes:
        random: Of what is chosen.
        pace: Factor of the time that tasks take.
        size: What results have, in bytes; None: small texts.
        takes: Id to what a task takes, as (id of the producer, index).
        values: Id to the values that it returns.
        puts: Those that were put.
        victim: What is to be cancelled, if something is.
    """

    random: Random
    pace: float
    size: Callable[[], int] = lambda: 0
    takes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    values: dict[str, list[Value]] = field(default_factory=dict)
    puts: dict[str, Any] = field(default_factory=dict)
    victim: str = ""

    @property
    def _seconds(self) -> float:
        return round(self.pace * self.random.choice(_TIMES_S), 4)

    def _added(self, values: list[Value], taken: Sequence[Value]) -> list[Value]:
        name = values[0].ref.task_id
        self.values[name] = values
        self.takes[name] = [(one.ref.task_id, one.index) for one in taken]
        return values

    def combine(self, *taken: Value) -> Value:
        """Add a task that takes values, and returns one."""
        refs = [one.ref for one in taken]
        ref = graph_functions.combine.remote(self._seconds, self.size(), *refs)
        return self._added([Value(ref)], taken)[0]

    def split(self, *taken: Value) -> list[Value]:
        """Add a task that returns several values."""
        refs: Any = graph_functions.split.remote(self._seconds, *[one.ref for one in taken])
        return self._added([Value(ref, index) for index, ref in enumerate(refs)], taken)

    def refuse(self, *taken: Value) -> Value:
        """Add a task that raises."""
        ref = graph_functions.refuse.remote(self._seconds, *[one.ref for one in taken])
        return self._added([Value(ref)], taken)[0]

    def slow(self, *taken: Value) -> Value:
        """Add a task that is to be cancelled; it may be faster."""
        ref = graph_functions.combine.remote(1.0, 0, *[one.ref for one in taken])
        self.victim = ref.task_id
        return self._added([Value(ref)], taken)[0]

    def put(self, size: int) -> Value:
        """Add a value."""
        content = graph_functions.large(self.random.randbytes(8).hex(), size)
        ref = rustray.put(content)
        self.puts[ref.task_id] = content
        return self._added([Value(ref)], ())[0]

    def write(self, history: Writer) -> None:
        """Write down what was handed in."""
        ids = [name for name in self.values if name not in self.puts]
        history.write("submit", ids=ids, retries=3, key="", again=False)
        takes = {name: taken for name, taken in self.takes.items() if taken}
        history.write("edges", takes=takes)
        for name, content in self.puts.items():
            history.write("submit", ids=[name], retries=0, key="", again=False)
            history.write("put", id=name, hash=digest(content), size=len(content))


def chain(graph: Graph) -> None:
    """Each takes what the one before it returns; in the middle one may be bad."""
    length = graph.random.randint(3, 15)
    bad = graph.random.choice([graph.combine, graph.combine, graph.refuse, graph.slow])
    last = graph.combine()
    for number in range(length):
        last = bad(last) if number == length // 2 else graph.combine(last)


def fan_in(graph: Graph) -> None:
    """One takes all; of its inputs one may be bad, and some come twice."""
    leaves = [graph.combine() for _ in range(graph.random.randint(2, 40))]
    bad = graph.random.choice([None, None, graph.refuse, graph.slow])
    if bad is not None:
        leaves.append(bad())
    graph.random.shuffle(leaves)
    end = graph.combine(*leaves, leaves[0])
    graph.combine(end)


def tree(graph: Graph) -> None:
    """Reduce, some at a time."""
    width = graph.random.randint(2, 5)
    level = [graph.combine() for _ in range(graph.random.randint(8, 40))]
    while len(level) > 1:
        level = [graph.combine(*level[at : at + width]) for at in range(0, len(level), width)]


def shared(graph: Graph) -> None:
    """Many take one value that was put, and one takes theirs."""
    value = graph.put(graph.random.choice([10, 5_000, 120_001]))
    graph.combine(value, *[graph.combine(value) for _ in range(graph.random.randint(1, 10))])


def parted(graph: Graph) -> None:
    """Take the values of a task that returns several, in parts, twice, and in another order."""
    parts = graph.split(graph.combine())
    ones = [graph.combine(part) for part in parts]
    bad = graph.random.choice([graph.combine, graph.refuse])
    again = graph.split(bad(parts[PARTS - 1], *ones), parts[0])
    graph.combine(*reversed(again), parts[1])


def layers(graph: Graph) -> None:
    """Each takes two of the layer before."""
    width = graph.random.randint(2, 8)
    layer = [graph.combine() for _ in range(width)]
    for _ in range(graph.random.randint(2, 5)):
        layer = [graph.combine(layer[at], layer[(at + 1) % width]) for at in range(width)]


SHAPES: Final = (chain, fan_in, tree, shared, parted, layers)


def small(random: Random, pace: float) -> Graph:
    """Hand in a graph of small values."""
    graph = Graph(random, pace)
    random.choice(SHAPES)(graph)
    return graph


def of_large_values(random: Random, pace: float) -> Graph:
    """Hand in a graph of values of 100 KiB and more."""
    graph = Graph(random, pace, lambda: random.choice(_SIZES))
    kind = random.randrange(4)
    if kind == 0:
        graph.combine(graph.combine(graph.combine()))
    elif kind == 1:
        graph.combine(*[graph.combine() for _ in range(3)])
    elif kind == 2:
        value = graph.put(random.choice(_SIZES))
        graph.combine(*[graph.combine(value) for _ in range(2)], value)
    else:
        graph.size = lambda: _HUGE_BYTES
        first = graph.combine()
        graph.size = lambda: 0
        graph.combine(first, graph.combine(first))
    return graph


def origin_of(error: BaseException) -> str:
    """Return the task that an error names as the one that failed first, "" if it names none."""
    for note in getattr(error, "__notes__", ()):
        found = _ORIGIN.search(note)
        if found:
            return found.group(1)
    return ""
