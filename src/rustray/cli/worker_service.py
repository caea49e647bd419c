"""Put a worker's own service on the wire, with the cluster's certificate and keys."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from rustray.cli.load import Loaded, Surroundings, state_dir
from rustray.common.errors import ConfigError, HeadUnavailable
from rustray.rpc.api import HeadApi
from rustray.rpc.worker_server import WorkerServer
from rustray.security.auth import AuthManager
from rustray.security.bind import is_unspecified, join_host_port
from rustray.security.certificates import ServerIdentity, load_server_identity
from rustray.security.enrollment import Enrollment, SigningRequest
from rustray.security.renewal import WORKER_BEFORE_S, keep_identity
from rustray.security.state_dir import CA_KEY, StateDir
from rustray.security.wall_clock import unix_s
from rustray.worker.app import Serve, Server
from rustray.worker.config import WorkerConfig
from rustray.worker.service import WorkerService

_ENROLL_PAUSE_S: Final = 1.0


@dataclass(slots=True)
class _Security:
    """What the service shows and whom it lets in; None where that is switched off.

    Attributes:
        load: Gives a certificate that is good at a time.
    """

    auth: AuthManager | None
    identity: ServerIdentity | None
    load: Callable[[float], Awaitable[ServerIdentity]]


def server_for(loaded: Loaded, around: Surroundings, head: HeadApi) -> Serve:
    """Return how to serve `WorkerService`.

    On the head's machine the keys are the cluster's own, from its state directory. Elsewhere the
    head is asked for a certificate and for the key that verifies tokens. (With tokens but without
    TLS a head gives nothing away, and the worker takes work from it alone.)
    """

    async def serve(service: WorkerService, config: WorkerConfig, worker_id: str) -> Server | None:
        security = _own_security(loaded, StateDir(state_dir(loaded.config, around)))
        if security is None and not loaded.config.security.tls:
            return None
        if security is None:
            security = await _enroll(loaded, head, worker_id)
        server = _server(service, config, security, config.worker_port)
        try:
            port = await server.start()
        except ConfigError:
            if loaded.config.origins["node.worker_port"].kind != "default":
                raise
            # A second worker of this machine has it; they may even start at the same moment.
            server = _server(service, config, security, 0)
            port = await server.start()
        host = socket.gethostname() if is_unspecified(config.address) else config.address
        return _Listening(server, join_host_port(host, port), _keep(server, security))

    return serve


def _server(
    service: WorkerService, config: WorkerConfig, security: _Security, port: int
) -> WorkerServer:
    return WorkerServer(
        service,
        auth=security.auth,
        identity=security.identity,
        address=config.address,
        port=port,
    )


@dataclass(frozen=True, slots=True)
class _Listening:
    server: WorkerServer
    address: str
    keeper: asyncio.Task[None] | None

    async def stop(self) -> None:
        if self.keeper is not None:
            self.keeper.cancel()
        await self.server.stop()


def _keep(server: WorkerServer, security: _Security) -> asyncio.Task[None] | None:
    """Have the certificate renewed as long as the service runs."""
    if security.identity is None:
        return None
    keeping = keep_identity(
        security.identity, security.load, server.renew, before_s=WORKER_BEFORE_S
    )
    return asyncio.get_running_loop().create_task(keeping)


async def _enroll(loaded: Loaded, head: HeadApi, worker_id: str) -> _Security:
    settings = loaded.config.security

    async def ask(request: SigningRequest) -> Enrollment:
        return await head.enroll_worker(worker_id, request.der)

    async def enroll_again(_: float) -> ServerIdentity:
        fresh = SigningRequest()
        return fresh.identity(await ask(fresh))

    request = SigningRequest()
    while True:
        try:
            enrollment = await ask(request)
            break
        except HeadUnavailable:
            await asyncio.sleep(_ENROLL_PAUSE_S)
    auth = None
    if settings.auth and settings.jwt_secret is not None:
        auth = AuthManager.from_secret(
            settings.jwt_secret, token_expiration_s=settings.token_expiration
        )
    elif settings.auth:
        auth = AuthManager.verifier(enrollment.verification_document)
    return _Security(auth, request.identity(enrollment), enroll_again)


def _own_security(loaded: Loaded, state: StateDir) -> _Security | None:
    settings = loaded.config.security
    has_keys = state.exists() and (state.path / CA_KEY).exists()
    if (settings.tls or (settings.auth and settings.jwt_secret is None)) and not has_keys:
        return None
    auth = identity = None
    if settings.auth:
        auth = AuthManager.open(
            state, jwt_secret=settings.jwt_secret, token_expiration_s=settings.token_expiration
        )
        document = auth.verification_document()
        if document is not None:
            # Only the public half stays in this process.
            auth = AuthManager.verifier(document)
    hosts = [loaded.config.node.address]

    async def load(now_unix_s: float) -> ServerIdentity:
        return await asyncio.to_thread(load_server_identity, state, hosts, now_unix_s)

    if settings.tls:
        identity = load_server_identity(state, hosts, unix_s())
    return _Security(auth, identity, load)
