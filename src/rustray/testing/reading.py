"""How the simulated client gets values that stay with workers: as `rustray.client.values` does."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Final

from rustray.common.errors import CommunicationError, RustRayError, TaskNotFound
from rustray.rpc.api import RawResult
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.frames import Outcome
from rustray.task.place import Place
from rustray.task.state import TaskState
from rustray.testing.clock import ProcessLoop
from rustray.testing.head import HEAD, SimHead
from rustray.testing.history import History, TaskRecord
from rustray.testing.network import Network
from rustray.testing.values import SimNodes

CLIENT: Final = "client"
WAIT_S: Final = 5.0
"""How long a question waits at the head for its answer."""
ASK_AGAIN_S: Final = 7.0
"""When a question is asked again that nobody has answered."""


class ValueReader:
    """Reads from the worker itself, or asks the head, again and again until it is answered."""

    def __init__(
        self, loop: ProcessLoop, network: Network, head: SimHead, nodes: SimNodes, history: History
    ) -> None:
        self._loop, self._network, self._head = loop, network, head
        self._nodes, self._history = nodes, history
        self._numbers = count(1)
        self._open: dict[int, int] = {}

    def take(self, outcome: Outcome) -> None:
        """The client was told where the value of a task is."""
        place = Place.unpack(outcome.payloads[0])
        if self._history.placed(outcome.first, place):
            self._read(self._history.tasks[outcome.first], place, outcome)

    def _read(self, task: TaskRecord, place: Place, outcome: Outcome) -> None:
        try:
            value = self._nodes.read(CLIENT, place)
        except CommunicationError:
            self._ask(task, "", takes_places=False)
            return
        if value is None:
            self._ask(task, place.object_id, takes_places=True)
            return
        self._history.note("read", place.worker_id, task.number)
        self._history.ended(task.number, replace(outcome, payloads=PayloadColumn.of([value])))

    def _ask(self, task: TaskRecord, missing: str, *, takes_places: bool) -> None:
        """Ask the head for a value, or for where it is: not where it is missing."""
        self._history.note("value asked", CLIENT, task.number, missing)
        question = self._open[task.number] = next(self._numbers)
        self._send(question, task, missing, takes_places)

    def _send(self, question: int, task: TaskRecord, missing: str, takes_places: bool) -> None:
        if self._open.get(task.number) != question or task.has_ended:
            return
        self._network.carry(
            CLIENT, HEAD, self._ask_head, question, task, missing, takes_places
        )  # fmt: skip
        self._loop.call_later(ASK_AGAIN_S, self._send, question, task, missing, takes_places)

    def _ask_head(self, question: int, task: TaskRecord, missing: str, takes_places: bool) -> None:
        loop = self._head.loop
        loop.create_task(self._answer(question, task, missing, takes_places))

    async def _answer(
        self, question: int, task: TaskRecord, missing: str, takes_places: bool
    ) -> None:
        answer: RawResult | RustRayError
        try:
            answer = await self._head.value_of(
                task.number, WAIT_S, missing, takes_places=takes_places
            )
        except RustRayError as error:
            answer = error
        self._network.carry(HEAD, CLIENT, self._answered, question, task, missing, answer)

    def _answered(
        self, question: int, task: TaskRecord, missing: str, answer: RawResult | RustRayError
    ) -> None:
        if self._open.get(task.number) != question or task.has_ended:
            return
        del self._open[task.number]
        if isinstance(answer, TaskNotFound):
            self._history.unknown(task.number)
        elif isinstance(answer, RustRayError):
            self._history.not_sent(task.number, answer)
        elif not answer.state.is_terminal:
            self._ask(task, missing, takes_places=bool(missing))
        else:
            self._take(task, answer)

    def _take(self, task: TaskRecord, raw: RawResult) -> None:
        column = PayloadColumn.of([raw.payload])
        if raw.is_placed:
            column = PlacedColumn.of_column(column)
        outcome = Outcome(task.number, TaskState(raw.state), column, raw.worker_id, raw.attempts)
        if raw.is_placed:
            place = Place.unpack(raw.payload)
            self._history.placed(task.number, place)
            self._read(task, place, outcome)
        else:
            self._history.ended(task.number, outcome)
