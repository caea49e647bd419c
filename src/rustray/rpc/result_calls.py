"""The calls of a client for results: they themselves, or where they are."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from rustray.common.errors import CommunicationError
from rustray.objects.segment import Segment
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc import request_codec as requests
from rustray.rpc import view_codec as views
from rustray.rpc.api import RawResult
from rustray.rpc.convert import text
from rustray.rpc.node_fetch import NodeFetcher
from rustray.rpc.object_codec import get_objects
from rustray.rpc.stream_codec import get_item_list
from rustray.task.place import Place
from rustray.task.views import ObjectTotal, ObjectView

CALL_S: Final = 30.0
"""Limit of a call that should answer at once."""
ONE_WAIT_S: Final = 60.0
"""A long wait for a result is made of calls of this length, so that a dead head is noticed."""


class ResultCalls:
    """A part of `rustray.rpc.head_client.GrpcHeadClient`.

    Attributes:
        nodes: Fetches objects from workers; None: nothing can be fetched.
    """

    nodes: NodeFetcher | None

    async def _call(self, method: str, request: Any, kind: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        """Wait for a task's end; see `HeadApi.get_result`."""
        return (await _ask(self, wire.GetTaskResultRequest(task_id=text(task_id)), timeout_s))[0]

    async def locate_result(
        self, task_id: str, timeout_s: float | None, missing: str = ""
    ) -> RawResult:
        """Wait for a task's end; see `HeadApi.locate_result`."""
        request = wire.GetTaskResultRequest(
            task_id=text(task_id), takes_places=True, missing=text(missing)
        )
        return (await _ask(self, request, timeout_s))[0]

    async def fetch_object(self, place: Place, token: str) -> Segment:
        """Have a value sent by the worker that keeps it; see `HeadApi.fetch_object`."""
        if self.nodes is None:
            raise CommunicationError("this connection fetches nothing from workers")
        return await self.nodes.fetch(place, token)

    async def list_objects(self, limit: int) -> tuple[list[ObjectView], list[ObjectTotal]]:
        """List values that stay with workers; see `HeadApi.list_objects`."""
        request = wire.ListObjectsRequest(limit=limit)
        answer = await self._call("ListObjects", request, wire.ListObjectsResponse, CALL_S)
        return get_objects(answer)

    async def get_items(
        self, task_id: str, first: int, timeout_s: float | None
    ) -> tuple[RawResult, list[bytes]]:
        """Wait for items of a stream; see `HeadApi.get_items`."""
        request = wire.GetTaskResultRequest(task_id=text(task_id), first_item=first)
        return await _ask(self, request, timeout_s)


async def _ask(
    client: ResultCalls, request: wire.GetTaskResultRequest, timeout_s: float | None
) -> tuple[RawResult, list[bytes]]:
    loop = asyncio.get_running_loop()
    limit_s = requests.LONGEST_WAIT_S if timeout_s is None else timeout_s
    deadline = loop.time() + limit_s
    while True:
        wait_s = request.timeout_s = min(max(deadline - loop.time(), 0.0), ONE_WAIT_S)
        answer = await client._call(
            "GetTaskResult", request, wire.GetTaskResultResponse, wait_s + CALL_S
        )
        found, items = views.get_located(answer), get_item_list(answer)
        if items or found.state.is_terminal or loop.time() >= deadline:
            return found, items
