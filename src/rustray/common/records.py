"""`record`: a dataclass that is frozen for the type checker and cheap at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make a value class with slots, equality and a hash that nobody may change.

    mypy refuses an assignment to its fields. Nothing does at run time: making an instance of a
    ``frozen=True`` dataclass costs four times as much (0.84 against 0.18 us with seven fields), and
    a dozen of these are made for each batch on its way.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
