"""What a worker needs to know to start: one checked value.

Built by the command line, the embedded cluster or a test, and passed down; nothing below
reads environment or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from rustray.common.config import Config
from rustray.common.resources import CPU, GPU, MEMORY, ResourceSet
from rustray.worker.state import DEFAULT_CANCEL_S, DEFAULT_DRAIN_S, WorkerLimits

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
MAX_CONCURRENCY: Final = 100_000
MAX_PORT: Final = 65_535
MAX_DRAIN_S: Final = 30 * 86_400.0
MIN_SPOOL_MB: Final = 8
MAX_SPOOL_MB: Final = 100_000_000
_MB: Final = 1_000_000
MAX_CANCEL_S: Final = 3_600.0
MAX_PROCESSES: Final = 4_194_304
"""The kernel's own limit of process ids."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All of it.

    Attributes:
        cpus: Cores to offer, fractions allowed.
        memory_mb: Megabytes to offer.
        name: What people call it; 1 to 64 letters, digits, ``.``, ``_`` or ``-``.
        gpus: GPUs to offer.
        gpu_ids: What the drivers call them, at least as many; None: 0, 1, 2...
        resources: Amounts of further resources to offer.
        labels: Labels that tasks can ask for.
        functions: Modules whose registered functions it offers.
        address: Where its WorkerService listens; "" for none (embedded).
        worker_port: TCP port of it, 0 to let the system choose.
        drain_timeout_s: Seconds that running tasks get once the worker is told to stop.
        cancel_notice_s: Seconds that a cancelled task gets that looks at ``is_cancelled``.
        cancel_grace_s: Seconds that one gets that was interrupted.
        kill_grace_s: Seconds between SIGTERM and SIGKILL.
        thread_concurrency: Threads in the shared executor for blocking I/O.
        async_concurrency: Coroutines at once in the one for ``async def``.
        max_result_bytes: Limit of one encoded result.
        sys_path: Import path of the executors; None: this process's.
        spool_dir: Where results wait that the memory has no room for; "" for nowhere.
        spool_memory_mb: Megabytes (10**6 bytes) of results that wait for the head in memory.
        spool_disk_mb: Megabytes of them on disk.
        object_memory_mb: Megabytes of objects that stay on this node, in memory.
        object_disk_mb: Megabytes of them on disk (beside ``spool_dir``).
        package_dir: Where packages of runtime environments are kept; "" for a temporary place.
        package_mb: Megabytes of them, packed, that are kept though nothing needs them.
        memory_cgroup: Have the kernel hold memory limits where it has control groups for us; this
            process may move into one of its own for that.
        shows_output: Whether what tasks print goes to this process's stderr as well.
        max_processes: Most processes and threads of an executor with all that its tasks start,
            where the system has control groups for us; 0: any.

    Raises:
        ValueError: a field is out of range; the message names it and the range.
    """

    cpus: float
    memory_mb: float
    name: str = "worker"
    gpus: float = 0
    gpu_ids: tuple[str, ...] | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    address: str = ""
    worker_port: int = 0
    drain_timeout_s: float = DEFAULT_DRAIN_S
    cancel_notice_s: float = DEFAULT_CANCEL_S
    cancel_grace_s: float = DEFAULT_CANCEL_S
    kill_grace_s: float = DEFAULT_CANCEL_S
    thread_concurrency: int = 64
    async_concurrency: int = 1000
    max_result_bytes: int = 16 << 20
    sys_path: tuple[str, ...] | None = None
    spool_dir: str = ""
    spool_memory_mb: int = 128
    spool_disk_mb: int = 1024
    object_memory_mb: int = 1024
    object_disk_mb: int = 4096
    package_dir: str = ""
    package_mb: int = 2_000
    memory_cgroup: bool = False
    max_processes: int = 0
    shows_output: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or _NAME.fullmatch(self.name) is None:
            raise ValueError(
                f"name {self.name!r:.80} must be 1 to 64 letters, digits, '.', '_' or '-'"
            )
        self.amounts()
        if self.cpus <= 0:
            raise ValueError(f"cpus must be more than 0, got {self.cpus}")
        self._check_texts()
        for key, low, high in (
            ("worker_port", 0, MAX_PORT),
            ("drain_timeout_s", 0, MAX_DRAIN_S),
            ("cancel_notice_s", 0, MAX_CANCEL_S),
            ("cancel_grace_s", 0, MAX_CANCEL_S),
            ("kill_grace_s", 0, MAX_CANCEL_S),
            ("thread_concurrency", 1, MAX_CONCURRENCY),
            ("async_concurrency", 1, MAX_CONCURRENCY),
            ("max_result_bytes", 1, 1 << 40),
            ("spool_memory_mb", MIN_SPOOL_MB, MAX_SPOOL_MB),
            ("spool_disk_mb", 0, MAX_SPOOL_MB),
            ("object_memory_mb", 1, MAX_SPOOL_MB),
            ("object_disk_mb", 0, MAX_SPOOL_MB),
            ("max_processes", 0, MAX_PROCESSES),
            ("package_mb", 0, MAX_SPOOL_MB),
        ):
            # Written so that NaN is refused.
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key} {getattr(self, key)} is outside {low} to {high}")

    def _check_texts(self) -> None:
        for key, value in self.labels.items():
            if not isinstance(key, str) or not isinstance(value, str) or not key:
                raise ValueError(f"label {key!r}={value!r}: both must be text")
        for module in self.functions:
            if not isinstance(module, str) or _MODULE.fullmatch(module) is None:
                raise ValueError(f"functions: {module!r:.80} is not a module name: package.tasks")

        if self.gpu_ids is not None and len(self.gpu_ids) < self.gpus:
            raise ValueError(
                f"gpus: {self.gpus:g} are to be offered, and CUDA_VISIBLE_DEVICES (or AMD's) lets "
                f"this worker see {len(self.gpu_ids)}: {','.join(self.gpu_ids)!r}"
            )

    def amounts(self) -> ResourceSet:
        """Return what is offered, as one vector.

        Raises:
            ValueError: an amount is negative, NaN or infinite, or a name is bad.
        """
        clash = {CPU, MEMORY, GPU, "cpus"} & set(self.resources)
        if clash:
            raise ValueError(
                f"{sorted(clash)[0]} has a setting of its own; take it out of resources"
            )
        return ResourceSet.of(
            {CPU: self.cpus, MEMORY: self.memory_mb, GPU: self.gpus, **self.resources}
        )

    def limits(self) -> WorkerLimits:
        """Return what the core may use."""
        return WorkerLimits(
            self.amounts(),
            self.thread_concurrency,
            self.async_concurrency,
            self.drain_timeout_s,
            self.spool_memory_mb * _MB,
            self.spool_disk_mb * _MB if self.spool_dir else 0,
            self.cancel_notice_s,
            self.cancel_grace_s,
            self.kill_grace_s,
            self.gpu_ids or (),
            self.package_mb * _MB,
        )

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        detected_cpus: float,
        detected_memory_mb: float,
        detected_gpus: tuple[int, tuple[str, ...] | None] = (0, None),
        default_name: str,
        spool_dir: str = "",
        package_dir: str = "",
    ) -> WorkerConfig:
        """Take the worker's part of the resolved settings, and what was detected for the rest.

        Raises:
            ValueError: as the class says.
        """
        node, worker = config.node, config.worker
        resources = dict(worker.resources)
        detected, visible = detected_gpus
        gpus = resources.pop(GPU, detected) if worker.gpus is None else worker.gpus
        return cls(
            cpus=detected_cpus if worker.cpus is None else worker.cpus,
            memory_mb=detected_memory_mb if worker.memory_mb is None else worker.memory_mb,
            name=worker.name or default_name,
            gpus=gpus,
            gpu_ids=visible,
            resources=resources,
            labels=worker.labels,
            functions=worker.functions,
            address=node.address,
            worker_port=node.worker_port,
            drain_timeout_s=worker.drain_timeout_s,
            cancel_notice_s=worker.cancel_notice_s,
            cancel_grace_s=worker.cancel_grace_s,
            kill_grace_s=worker.kill_grace_s,
            max_result_bytes=config.scheduler.max_payload_bytes,
            spool_dir=worker.spool_dir or spool_dir,
            package_dir=worker.package_dir or package_dir,
            package_mb=worker.package_mb,
            spool_memory_mb=worker.spool_memory_mb,
            spool_disk_mb=worker.spool_disk_mb,
            object_memory_mb=worker.object_memory_mb,
            object_disk_mb=worker.object_disk_mb,
            memory_cgroup=worker.memory_cgroup,
            max_processes=worker.max_processes,
        )
