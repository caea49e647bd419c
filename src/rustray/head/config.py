"""What a head needs to know to start: small, checked value objects.

Built once by the command line (or a test) and passed down; nothing below reads
environment or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rustray.common.config import Config
from rustray.security.bind import check_bind


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the head listens.

    Attributes:
        address: Host name or IP address; loopback unless the user says otherwise.
        port: TCP port, 0 to let the system choose.
    """

    address: str = "127.0.0.1"
    port: int = 8000


@dataclass(frozen=True, slots=True)
class Security:
    """Who may do what.

    Attributes:
        tls: Encrypt every connection with the cluster's own CA.
        auth: Demand a token on every call but health.
        jwt_secret: HS256 secret of the simple mode, at least 32 bytes; None: the
            head signs with the Ed25519 key in its state directory.
        token_expiration_s: Lifetime of an access token, in seconds.
    """

    tls: bool = True
    auth: bool = True
    jwt_secret: str | None = field(default=None, repr=False)
    token_expiration_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Leases:
    """How the head learns that a worker is gone.

    Attributes:
        ttl_s: Seconds without a heartbeat after which the worker's tasks go to others.
        heartbeat_interval_s: Seconds between two heartbeats; at most half of ``ttl_s``.
    """

    ttl_s: float = 10.0
    heartbeat_interval_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How tasks are placed and retried.

    Attributes:
        strategy: One of `rustray.common.settings.STRATEGIES`.
        max_retries: Re-runs after a lost worker, for tasks that say nothing; -1: no limit.
        durability: One of `rustray.common.durability.DURABILITIES`.
    """

    strategy: str = "LeastLoaded"
    max_retries: int = 3
    durability: str = "full"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the head takes and keeps.

    Attributes:
        max_pending_tasks: Unfinished tasks accepted at a time.
        max_pending_mb: Megabytes (10**6 bytes) of their arguments.
        principal_pending_tasks: Unfinished tasks of one principal, the subject of a token.
        principal_pending_mb: Megabytes of their arguments.
        max_task_depth: How deep tasks may stand that tasks hand in; 0: tasks hand in none.
        max_payload_bytes: Bytes of one task's arguments or result.
        result_ttl_s: Seconds that a result is kept.
        result_memory_mb: Megabytes (10**6 bytes) of kept results; the oldest go first.
        result_disk_mb: The same for large results, which are files in the state directory.
        disk_reserve_mb: Megabytes that stay free on the disk of the state directory: with less, no
            new tasks are accepted; 0: any.
        dead_letter_memory_mb: The same of dead letters.
        stream_ttl_s: Seconds that a generator task goes on while nobody reads it.
    """

    max_pending_tasks: int = 10_000_000
    max_pending_mb: int = 8_192
    principal_pending_tasks: int = 5_000_000
    principal_pending_mb: int = 4_096
    max_payload_bytes: int = 16 << 20
    result_ttl_s: float = 86_400.0
    result_memory_mb: int = 512
    result_disk_mb: int = 10_000
    disk_reserve_mb: int = 256
    dead_letter_memory_mb: int = 256
    max_task_depth: int = 256
    stream_ttl_s: float = 60.0


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """All of it.

    Attributes:
        state_dir: Directory for keys, tokens and state; made with mode 0700 at first start.

    Raises:
        ConfigError: a bind that others can reach, without TLS or without tokens.
    """

    state_dir: Path
    listen: Listen = field(default_factory=Listen)
    security: Security = field(default_factory=Security)
    leases: Leases = field(default_factory=Leases)
    scheduling: Scheduling = field(default_factory=Scheduling)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_bind(self.listen.address, tls=self.security.tls, auth=self.security.auth)

    @classmethod
    def from_config(cls, config: Config, state_dir: Path) -> HeadConfig:
        """Take the head's part of the resolved settings.

        Args:
            config: The settings.
            state_dir: ``config.node.state_dir``, or the user's default directory.

        Raises:
            ConfigError: as the class says.
        """
        node, security, scheduler = config.node, config.security, config.scheduler
        return cls(
            state_dir=state_dir,
            listen=Listen(node.address, node.head_port),
            security=Security(
                security.tls,
                security.auth,
                security.jwt_secret,
                float(security.token_expiration),
            ),
            leases=Leases(scheduler.lease_ttl_s, scheduler.heartbeat_interval_s),
            scheduling=Scheduling(scheduler.strategy, scheduler.max_retries, scheduler.durability),
            limits=Limits(
                scheduler.max_pending_tasks,
                scheduler.max_pending_mb,
                scheduler.principal_pending_tasks,
                scheduler.principal_pending_mb,
                scheduler.max_payload_bytes,
                scheduler.result_ttl_s,
                scheduler.result_memory_mb,
                scheduler.result_disk_mb,
                scheduler.disk_reserve_mb,
                scheduler.dead_letter_memory_mb,
                scheduler.max_task_depth,
                scheduler.stream_ttl_s,
            ),
        )
