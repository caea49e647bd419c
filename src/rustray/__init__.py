"""rustray: run Python functions on many machines, securely, durably and fast.

Every public name is loaded at its first use, so that ``import rustray`` costs nothing and
an executor process never loads what only heads and clients need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rustray.client.context import (
        Context,
        aget,
        ainit,
        aput,
        ashutdown,
        await_,
        cancel,
        free,
        get,
        init,
        is_initialized,
        put,
        shutdown,
        wait,
    )
    from rustray.client.coordination import Event, Lock, Semaphore
    from rustray.client.executor import Executor
    from rustray.client.explaining import aexplain, explain
    from rustray.client.generators import RefGenerator
    from rustray.client.head_node import HeadNode
    from rustray.client.mapping import AsyncMapIterator, MapIterator, amap
    from rustray.client.mapping import map as map  # noqa: A004 - left out of __all__, see there
    from rustray.client.pool import Pool
    from rustray.client.progress import progress
    from rustray.client.queues import Queue
    from rustray.client.refs import TaskRef
    from rustray.client.remote import RemoteFunction, remote
    from rustray.common.errors import (
        AuthenticationError,
        AuthorizationError,
        BlockedLoop,
        CommunicationError,
        ConfigError,
        DuplicateTask,
        DurabilityNotAvailable,
        ExecutorDeath,
        FunctionNotFound,
        GetTimeout,
        HeadUnavailable,
        InvariantError,
        LeaseLost,
        NestedTooDeep,
        NotInTask,
        ObjectLost,
        PayloadError,
        ResourceExhausted,
        ResourceNotAvailable,
        RustRayError,
        TaskCancelled,
        TaskError,
        TaskExecutionFailed,
        TaskExpired,
        TaskNotFound,
        TaskOutOfMemory,
        TaskPoisoned,
        TaskTimeout,
        UsageProblem,
        VersionMismatch,
        WorkerLost,
        WorkerNotFound,
    )
    from rustray.task.functions import TaskExecutor, function
    from rustray.task.needs import ResourceRequirements
    from rustray.task.result import TaskEvent, TaskResult
    from rustray.task.spec import TaskSpec
    from rustray.task.state import TaskState
    from rustray.worker.context import TaskContext, TaskInterrupt, context

__version__ = "0.1.0"

# `map` is left out: ``from rustray import *`` shall not replace the built-in one.
__all__ = [
    "AsyncMapIterator",
    "AuthenticationError",
    "AuthorizationError",
    "BlockedLoop",
    "CommunicationError",
    "ConfigError",
    "Context",
    "DuplicateTask",
    "DurabilityNotAvailable",
    "Event",
    "Executor",
    "ExecutorDeath",
    "FunctionNotFound",
    "GetTimeout",
    "HeadNode",
    "HeadUnavailable",
    "InvariantError",
    "LeaseLost",
    "Lock",
    "MapIterator",
    "NestedTooDeep",
    "NotInTask",
    "ObjectLost",
    "PayloadError",
    "Pool",
    "Queue",
    "RefGenerator",
    "RemoteFunction",
    "ResourceExhausted",
    "ResourceNotAvailable",
    "ResourceRequirements",
    "RustRayError",
    "Semaphore",
    "TaskCancelled",
    "TaskContext",
    "TaskError",
    "TaskEvent",
    "TaskExecutionFailed",
    "TaskExecutor",
    "TaskExpired",
    "TaskInterrupt",
    "TaskNotFound",
    "TaskOutOfMemory",
    "TaskPoisoned",
    "TaskRef",
    "TaskResult",
    "TaskSpec",
    "TaskState",
    "TaskTimeout",
    "UsageProblem",
    "VersionMismatch",
    "WorkerLost",
    "WorkerNotFound",
    "__version__",
    "aexplain",
    "aget",
    "ainit",
    "amap",
    "aput",
    "ashutdown",
    "await_",
    "cancel",
    "context",
    "explain",
    "free",
    "function",
    "get",
    "init",
    "is_initialized",
    "progress",
    "put",
    "remote",
    "shutdown",
    "wait",
]

_HOMES = {
    "rustray.client.context": (
        "Context",
        "aget",
        "ainit",
        "aput",
        "ashutdown",
        "await_",
        "cancel",
        "free",
        "get",
        "init",
        "is_initialized",
        "put",
        "shutdown",
        "wait",
    ),
    "rustray.client.coordination": ("Event", "Lock", "Semaphore"),
    "rustray.client.executor": ("Executor",),
    "rustray.client.explaining": ("aexplain", "explain"),
    "rustray.client.generators": ("RefGenerator",),
    "rustray.client.head_node": ("HeadNode",),
    "rustray.client.mapping": ("AsyncMapIterator", "MapIterator", "amap", "map"),
    "rustray.client.pool": ("Pool",),
    "rustray.client.progress": ("progress",),
    "rustray.client.queues": ("Queue",),
    "rustray.client.refs": ("TaskRef",),
    "rustray.client.remote": ("RemoteFunction", "remote"),
    "rustray.task.functions": ("TaskExecutor", "function"),
    "rustray.task.result": ("TaskEvent", "TaskResult"),
    "rustray.task.needs": ("ResourceRequirements",),
    "rustray.task.spec": ("TaskSpec",),
    "rustray.task.state": ("TaskState",),
    "rustray.worker.context": ("TaskContext", "TaskInterrupt", "context"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    module = _HOME_OF.get(name)
    if module is None:
        if name not in __all__:
            raise AttributeError(f"module 'rustray' has no attribute {name!r}")
        module = "rustray.common.errors"
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOME_OF})
