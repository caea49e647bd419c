"""What clients of a chaos run do with graphs and nested tasks, on an embedded cluster, and judged.

Nobody is killed here but by the tasks themselves. What a broken build would do to this load is
tried by the planted bugs G1 and G2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import rustray
from chaos import graph_functions, graphs
from chaos.checker import Verdict, check
from chaos.history import FOLDER_ENV, LABEL_ENV, Writer, digest, read
from chaos.runs import Rules
from rustray.client.derived import borrow
from rustray.common.ids import split_task_id
from rustray.task.inputs import WHOLE
from rustray.task.spec import Codec
from rustray.task.state import TaskState

_RULES = Rules(lease_ttl_s=10.0, heartbeat_s=1.0)


class Load:
    """Writes as a client does, and asks for the end of everything."""

    def __init__(self, folder: Path) -> None:
        self.history = Writer(folder, "client")
        self._folder = folder

    def judge(self, values: list[graphs.Value]) -> Verdict:
        """Wait for values, write what came, and check the history."""
        for one in values:
            self._write_end(one)
        for record in read(self._folder):
            for name in record["ids"] if record["k"] == "children" else ():
                self._write_end(graphs.Value(_borrowed(name)))
        return check(read(self._folder), _RULES)

    def _write_end(self, one: graphs.Value) -> None:
        name, value = one.ref.task_id, ""
        try:
            value = digest(rustray.get(one.ref, timeout=60))
        except rustray.TaskError as error:
            kind, origin = type(error).__name__, graphs.origin_of(error)
            self.history.write("cause", id=name, error=kind, origin=origin)
        if one.index != graphs.WHOLE:
            self.history.write("part", id=name, index=one.index, hash=value)
            value = ""
        state = TaskState(one.ref._state).name
        self.history.write("final", id=name, state=state, hash=value or None, attempts=1)


def _borrowed(name: str) -> rustray.TaskRef[Any]:
    return borrow(*split_task_id(name), WHOLE, int(Codec.PICKLE), "child")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An embedded cluster whose tasks write their history here."""
    made = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_ENV, str(made))
        patch.setenv(LABEL_ENV, "worker-1.1")
        with rustray.init(num_cpus=2):
            yield made


def test_graphs_keep_what_is_promised_of_them(folder: Path) -> None:
    """Every shape, with failures in some: each input is seen, each failure goes down."""
    load, found = Load(folder), list[graphs.Value]()
    made = [graphs.Graph(Random(f"graph {seed}"), 0.1) for seed in range(2 * len(graphs.SHAPES))]
    for number, graph in enumerate(made):
        graphs.SHAPES[number // 2](graph)
    made += [graphs.of_large_values(Random(f"large {seed}"), 0.0) for seed in range(3)]
    for graph in made:
        graph.write(load.history)
        found += [value for values in graph.values.values() for value in values]
    verdict = load.judge(found)
    assert verdict.violations == []
    figures = verdict.figures
    assert figures["inputs seen"] > 150
    assert figures["ends that a failure has passed down"] > 5
    assert figures["causes told"] > 5


def test_parents_that_die_find_their_children_again(folder: Path) -> None:
    """The first attempt of each dies with children under way; none of these is handed in twice."""
    load = Load(folder)
    refs: list[Any] = [
        graph_functions.branch.remote(1 + number % 2, 2, 0.4, "kill") for number in range(3)
    ]
    ids = [ref.task_id for ref in refs]
    load.history.write("submit", ids=ids, retries=3, key="", again=False)
    verdict = load.judge([graphs.Value(ref) for ref in refs])
    assert verdict.violations == []
    assert verdict.figures["parents that ran again"] == 3
    assert verdict.figures["values of children seen"] >= 6
