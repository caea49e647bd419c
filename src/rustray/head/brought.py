"""Packages of runtime environments that one client's stream has brought."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Final

from rustray.common.errors import PayloadError, ResourceExhausted, RustRayError
from rustray.scheduler.events import CodeReceived
from rustray.task.frames import ClassDefinition

MAX_PACKAGES_BYTES: Final = 96 << 20
"""Of the packages that one stream may bring."""


class Brought:
    """They stay with the stream: the scheduler drops its own with the last task that needs them."""

    def __init__(self) -> None:
        self._packages: dict[bytes, bytes] = {}

    def take(self, definition: ClassDefinition) -> RustRayError | None:
        """Take what came with a class; returns why that cannot be, or None."""
        task_class = definition.task_class
        for content in definition.packages:
            digest = sha256(content).digest()
            if digest not in task_class.blobs:
                return PayloadError(f"{task_class.function} came with a package it does not name")
            self._packages[digest] = content
        if sum(map(len, self._packages.values())) > MAX_PACKAGES_BYTES:
            return ResourceExhausted(
                f"the packages of this session's runtime_envs take over {MAX_PACKAGES_BYTES >> 20} "
                "MiB: use fewer different ones, or start another session",
                reason="PACKAGES_FULL",
            )
        return None

    def missing(
        self, definition: ClassDefinition, known: Mapping[bytes, bytes]
    ) -> Iterator[CodeReceived]:
        """Yield code and packages of a class that the head does not have (any more)."""
        task_class = definition.task_class
        for digest in task_class.blobs:
            if digest == task_class.code_hash:
                content = definition.code
            else:
                content = self._packages.get(digest, b"")
            if content and digest not in known:
                yield CodeReceived(digest, content)
