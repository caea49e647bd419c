"""grpc, made ready: the rest of the package takes it from here.

The settings must be in the environment before grpc's first import. Fork support costs every fork
and buys nothing: executors are forked by a zygote that never loads grpc. grpc's own log lines
(one for each stranger's failed handshake) are off unless the user has asked for them.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc import aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # missing in grpc-stubs
from grpc_health.v1._async import HealthServicer

StatusCode = grpc.StatusCode
EOF = aio.EOF  # type: ignore[attr-defined]  # missing in grpc-stubs
"""What reading a stream gives at its end."""

__all__ = ["EOF", "HealthServicer", "StatusCode", "aio", "cygrpc", "grpc"]
