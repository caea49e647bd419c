"""Definitions of task classes in frames, as protobuf and back; see `rustray.rpc.codec`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.rpc.convert import MAX_CLASS_NUMBER, get_task_class, put_task_class
from rustray.task.frames import ClassDefinition
from rustray.task.spec import check_labels


def put_classes(target: Any, classes: Iterable[ClassDefinition]) -> None:
    """Write what a frame defines."""
    for each in classes:
        message = target.add(number=each.number, code=each.code, packages=each.packages)
        put_task_class(message.task_class, each.task_class)


def get_classes(messages: Sequence[common.ClassDefinition]) -> list[ClassDefinition]:
    """Read what a frame defines."""
    if not messages:
        return []
    return [
        ClassDefinition(
            class_number(m.number), get_task_class(m.task_class), m.code, tuple(m.packages)
        )
        for m in messages[:]
    ]


def class_number(number: int) -> int:
    """Return a class's number; raises ValueError if it is none."""
    if not 0 < number <= MAX_CLASS_NUMBER:
        raise ValueError(f"class number {number} is outside 1 to {MAX_CLASS_NUMBER}")
    return number


def get_new_classes(messages: Sequence[common.ClassDefinition]) -> list[ClassDefinition]:
    """Read what a client defines; what a head has accepted once, its workers take as it is."""
    found = get_classes(messages)
    for definition in found:
        check_labels(definition.task_class)
    return found
