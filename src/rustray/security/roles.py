"""Which role may call which method: a table that denies what it does not list."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from rustray.common.errors import AuthorizationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCOPE_CODE: Final = "code"
"""May send functions as code (cloudpickle)."""
SCOPES: Final = frozenset({SCOPE_CODE})


class Role(StrEnum):
    """What a token's holder is."""

    WORKER = "worker"
    """Runs tasks."""
    SUBMIT = "submit"
    """Submits tasks and reads their results."""
    OBSERVE = "observe"
    """Reads, changes nothing."""
    ADMIN = "admin"
    """All of it, on this cluster."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as its verified token says.

    Attributes:
        subject: ``worker:…``, ``user:…``, ``svc:…`` or ``head:…``.
        scopes: What it may beyond its role; "code" or nothing.
        expires_unix_s: When its token ends; streams close 30 s after it.
        token_id: The token's ``jti``, for logs and revocation.
        issued_unix_s: When its token was minted.
        renewable_unix_s: Until when it can have a fresh one.
    """

    subject: str
    role: Role
    scopes: frozenset[str]
    expires_unix_s: float
    token_id: str
    issued_unix_s: float = field(default=0.0, compare=False)
    renewable_unix_s: float = field(default=0.0, compare=False)

    @property
    def may_send_code(self) -> bool:
        """Whether functions that travel as code are accepted from it."""
        return SCOPE_CODE in self.scopes


HEAD_SERVICE: Final = "/rustray.v1.HeadService/"
WORKER_SERVICE: Final = "/rustray.v1.WorkerService/"
FETCH_OBJECT: Final = WORKER_SERVICE + "FetchObject"
"""Its tokens are for one object, see `rustray.security.object_tokens`."""
HEALTH_SERVICE: Final = "/grpc.health.v1.Health/"

PUBLIC_METHODS: Final = frozenset(HEALTH_SERVICE + name for name in ("Check", "Watch", "List"))
"""Open to everybody; they say whether the node serves, and no more."""

_ALL: Final = frozenset(Role)
_WORKERS: Final = frozenset({Role.WORKER, Role.ADMIN})
_SUBMITTERS: Final = frozenset({Role.SUBMIT, Role.ADMIN})
_READERS: Final = frozenset({Role.SUBMIT, Role.OBSERVE, Role.ADMIN})
_ADMINS: Final = frozenset({Role.ADMIN})

METHOD_ROLES: Final[Mapping[str, frozenset[Role]]] = MappingProxyType(
    {
        HEAD_SERVICE + "RegisterWorker": _WORKERS,
        HEAD_SERVICE + "EnrollWorker": _WORKERS,
        HEAD_SERVICE + "Heartbeat": _WORKERS,
        HEAD_SERVICE + "WorkerStream": _WORKERS,
        HEAD_SERVICE + "NestedStream": _WORKERS,
        HEAD_SERVICE + "SubmitTask": _SUBMITTERS,
        HEAD_SERVICE + "SubmitTasks": _SUBMITTERS,
        HEAD_SERVICE + "CancelTask": _SUBMITTERS,
        HEAD_SERVICE + "ClientStream": _SUBMITTERS,
        HEAD_SERVICE + "RetryTasks": _SUBMITTERS,
        HEAD_SERVICE + "PurgeTasks": _SUBMITTERS,
        HEAD_SERVICE + "ExportTasks": _SUBMITTERS,
        HEAD_SERVICE + "Coordinate": _SUBMITTERS,
        HEAD_SERVICE + "CoordinateForTask": _WORKERS,
        HEAD_SERVICE + "GetTaskResult": _READERS,
        HEAD_SERVICE + "ExplainTask": _READERS,
        HEAD_SERVICE + "ListTasks": _READERS,
        HEAD_SERVICE + "ListWorkers": _READERS,
        HEAD_SERVICE + "ListObjects": _READERS,
        HEAD_SERVICE + "ListFunctions": _READERS,
        HEAD_SERVICE + "GetStatus": _READERS,
        HEAD_SERVICE + "Subscribe": _READERS,
        HEAD_SERVICE + "TaskLogs": _READERS,
        HEAD_SERVICE + "SessionLogs": _SUBMITTERS,
        HEAD_SERVICE + "DrainWorker": _ADMINS,
        HEAD_SERVICE + "CreateToken": _ADMINS,
        HEAD_SERVICE + "ListTokens": _ADMINS,
        HEAD_SERVICE + "RenewToken": _ALL,
        WORKER_SERVICE + "ExecuteTask": _ADMINS,
        WORKER_SERVICE + "GetStatus": _ALL,
        FETCH_OBJECT: frozenset({Role.OBSERVE}),
    }
)
"""Full gRPC method name to the roles that may call it. A method not listed is denied."""


def parse_role(text: str) -> Role:
    """Return the role of that name.

    Raises:
        ConfigError: there is none; lists those that exist.
    """
    try:
        return Role(text)
    except ValueError:
        names = ", ".join(Role)
        raise ConfigError(f"{str(text)[:40]!r} is not a role; roles are: {names}") from None


def authorize(caller: Caller, method: str) -> None:
    """Let the call pass, or say who could make it.

    Args:
        caller: From a verified token.
        method: Full name, ``/package.Service/Method``.

    Raises:
        AuthorizationError: the caller's role is not among the method's, or no role's may.
    """
    if method in PUBLIC_METHODS:
        return
    allowed = METHOD_ROLES.get(method, frozenset())
    if caller.role in allowed:
        return
    shown = method.rpartition("/")[2][:80]
    if not allowed:
        raise AuthorizationError(f"no role may call {shown!r}: this node offers no such method")
    names = " or ".join(role for role in Role if role in allowed)
    raise AuthorizationError(
        f"the role {caller.role} may not call {shown}; it takes {names} "
        f"(rustray token create --role {next(role for role in Role if role in allowed)})"
    )
