"""grpc.health.v1: says whether this node serves, and no more."""

from __future__ import annotations

from typing import Final

from grpc_health.v1 import health_pb2

from rustray.common.errors import ConfigError
from rustray.rpc.convert import parse
from rustray.rpc.gate import Context, Method
from rustray.rpc.grpcio import HealthServicer
from rustray.security.roles import HEALTH_SERVICE, Caller

MAX_SERVICE_NAME: Final = 256


class Health:
    """The health of one node."""

    def __init__(self) -> None:
        self._servicer = HealthServicer()

    def methods(self) -> dict[str, Method]:
        """Return the methods by full name."""
        return {
            HEALTH_SERVICE + "Check": Method(unary=self._check),
            HEALTH_SERVICE + "Watch": Method(stream_out=self._watch),
        }

    async def retire(self) -> None:
        """Answer NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()

    async def _check(self, _: Caller, request: bytes) -> bytes:
        message = _parse(request)
        if message.service:
            raise ConfigError("this node only tells its health as a whole: leave `service` empty")
        found = await self._servicer.Check(message, None)
        return bytes(found.SerializeToString())

    async def _watch(self, _: Caller, request: bytes, context: Context) -> None:
        await self._servicer.Watch(_parse(request), _Bytes(context))


class _Bytes:
    """Serialises what the servicer writes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, message: health_pb2.HealthCheckResponse) -> None:
        await self._context.write(message.SerializeToString())


def _parse(request: bytes) -> health_pb2.HealthCheckRequest:
    message = parse(health_pb2.HealthCheckRequest, request, "health request")
    if len(message.service) > MAX_SERVICE_NAME:
        raise ConfigError(f"`service` has more than {MAX_SERVICE_NAME} characters")
    return message
