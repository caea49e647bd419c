"""The method table: every role against every method, and what is not listed."""

from __future__ import annotations

import pytest

from rustray.common.errors import AuthorizationError, ConfigError
from rustray.security.roles import (
    METHOD_ROLES,
    PUBLIC_METHODS,
    Caller,
    Role,
    authorize,
    parse_role,
)

_HEAD = "/rustray.v1.HeadService/"
_WORKER = "/rustray.v1.WorkerService/"
_EXPECTED = {
    "worker admin": [
        "RegisterWorker",
        "EnrollWorker",
        "Heartbeat",
        "WorkerStream",
        "NestedStream",
        "CoordinateForTask",
    ],
    "submit admin": [
        "SubmitTask",
        "SubmitTasks",
        "CancelTask",
        "ClientStream",
        "RetryTasks",
        "PurgeTasks",
        "ExportTasks",
        "Coordinate",
        "SessionLogs",
    ],
    "submit observe admin": [
        "GetTaskResult",
        "ExplainTask",
        "ListTasks",
        "ListWorkers",
        "ListObjects",
        "ListFunctions",
        "GetStatus",
        "Subscribe",
        "TaskLogs",
    ],
    "admin": ["DrainWorker", "CreateToken", "ListTokens"],
    "worker submit observe admin": ["RenewToken"],
}


def _caller(role: Role) -> Caller:
    return Caller("user:a", role, frozenset(), 0.0, "id")


def test_table_is_the_contract() -> None:
    """The table lists exactly these methods with exactly these roles."""
    expected = {
        _HEAD + name: frozenset(map(Role, roles.split()))
        for roles, names in _EXPECTED.items()
        for name in names
    }
    expected[_WORKER + "ExecuteTask"] = frozenset({Role.ADMIN})
    expected[_WORKER + "GetStatus"] = frozenset(Role)
    expected[_WORKER + "FetchObject"] = frozenset({Role.OBSERVE})
    assert dict(METHOD_ROLES) == expected


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("method", METHOD_ROLES)
def test_every_role_on_every_method(role: Role, method: str) -> None:
    """Who is listed passes; who is not is told its role, the method, and who may."""
    if role in METHOD_ROLES[method]:
        authorize(_caller(role), method)
        return
    with pytest.raises(AuthorizationError) as caught:
        authorize(_caller(role), method)
    message = str(caught.value)
    assert f"the role {role} may not call {method.rpartition('/')[2]}" in message
    assert all(allowed in message for allowed in METHOD_ROLES[method])


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "method",
    [
        "",
        "/",
        _HEAD,
        _HEAD + "Shutdown",
        _HEAD + "submittask",
        _HEAD + "SubmitTask/",
        "rustray.v1.HeadService/SubmitTask",
        "/rustray.v2.HeadService/SubmitTask",
        _WORKER + "PutObject",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/x/\x1b[31m" + "y" * 10_000,
    ],
)
def test_unlisted_methods(role: Role, method: str) -> None:
    """What is not listed is denied to everybody, and shown short and escaped."""
    with pytest.raises(AuthorizationError, match="no role may call") as caught:
        authorize(_caller(role), method)
    assert len(str(caught.value)) < 200
    assert "\x1b" not in str(caught.value)


def test_health_is_public() -> None:
    """Health is open to every role, and nothing else is public."""
    assert {method.rpartition("/")[0] for method in PUBLIC_METHODS} == {"/grpc.health.v1.Health"}
    assert {method.rpartition("/")[2] for method in PUBLIC_METHODS} == {"Check", "Watch", "List"}
    for method in PUBLIC_METHODS:
        authorize(_caller(Role.WORKER), method)


def test_roles_by_name() -> None:
    """A role is found by its exact name; the error lists all of them."""
    assert [parse_role(role.value) for role in Role] == list(Role)
    for text in ("", "Admin", "root", "x" * 1000):
        with pytest.raises(ConfigError, match="worker, submit, observe, admin"):
            parse_role(text)
