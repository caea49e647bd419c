"""Put a worker's own service on the wire, with the cluster's certificate and keys."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass

from rustray.cli.load import Loaded, Surroundings, state_dir
from rustray.rpc.worker_server import WorkerServer
from rustray.security.auth import AuthManager
from rustray.security.bind import is_unspecified, join_host_port
from rustray.security.certificates import ServerIdentity, load_server_identity
from rustray.security.state_dir import CA_KEY, StateDir
from rustray.worker.app import Serve, Server
from rustray.worker.config import WorkerConfig
from rustray.worker.service import WorkerService

logger = logging.getLogger("rustray.worker")


@dataclass(slots=True)
class _Security:
    """What the service shows and whom it lets in; None where that is switched off."""

    auth: AuthManager | None
    identity: ServerIdentity | None


def server_for(loaded: Loaded, around: Surroundings) -> Serve | None:
    """Return how to serve `WorkerService`, or None where this machine has no keys for it.

    Keys are the cluster's own, found in the state directory of the head on this machine, or
    those of the simple mode. Without them the worker takes work from the head alone.
    """
    security = _security(loaded, StateDir(state_dir(loaded.config, around)))
    if security is None:
        logger.info("no keys of the cluster on this machine: the worker's own service stays off")
        return None

    async def serve(service: WorkerService, config: WorkerConfig) -> Server:
        server = WorkerServer(
            service,
            auth=security.auth,
            identity=security.identity,
            address=config.address,
            port=config.worker_port,
        )
        port = await server.start()
        host = socket.gethostname() if is_unspecified(config.address) else config.address
        return _Listening(server, join_host_port(host, port))

    return serve


@dataclass(frozen=True, slots=True)
class _Listening:
    server: WorkerServer
    address: str

    async def stop(self) -> None:
        await self.server.stop()


def _security(loaded: Loaded, state: StateDir) -> _Security | None:
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
    if settings.tls:
        identity = load_server_identity(state, [loaded.config.node.address], time.time())
    return _Security(auth, identity)
