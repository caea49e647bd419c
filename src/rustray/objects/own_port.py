"""The port of the node that this process belongs to, or lives beside."""

from __future__ import annotations

from typing import Final

from rustray.objects.port_client import PortClient
from rustray.objects.segment import Segment
from rustray.task.place import Place

PORTS: Final = PortClient()
_name = ""


def use(name: str) -> None:
    """Say which port it is; for this process and those that are forked from it."""
    global _name
    _name = name


def name() -> str:
    """Return it, "" for none."""
    return _name


def take(place: Place, token: str) -> Segment:
    """Have an object in memory that this process may map, wherever it is.

    Raises:
        RustRayError, ValueError: the node's answer.
        OSError: there is no such port (any more).
    """
    if not _name:
        raise ConnectionError("this process has no node beside it")
    return PORTS.take(_name, place, token)
