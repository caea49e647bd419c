"""Lists of values that stay with workers, as protobuf and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.convert import text
from rustray.task.views import ObjectTotal, ObjectView


def put_objects(
    objects: Iterable[ObjectView], totals: Iterable[ObjectTotal]
) -> wire.ListObjectsResponse:
    """Encode values that stay with workers."""
    response = wire.ListObjectsResponse()
    for one in objects:
        response.objects.add(**{key: _plain(value) for key, value in asdict(one).items()})
    for each in totals:
        response.totals.add(**{key: _plain(value) for key, value in asdict(each).items()})
    return response


def _plain(value: Any) -> Any:
    return text(value) if isinstance(value, str) else value


def get_objects(
    message: wire.ListObjectsResponse,
) -> tuple[list[ObjectView], list[ObjectTotal]]:
    """Decode values that stay with workers."""
    objects = [
        ObjectView(
            m.object_id, m.task_id, m.function, m.size, m.worker_id, m.age_s, m.takers, m.is_lost
        )
        for m in message.objects
    ]
    return objects, [ObjectTotal(m.worker_id, m.objects, m.bytes, m.lost) for m in message.totals]
