"""Workers and task classes in one readable line: ``a_worker("w").with_cores(4).build()``.

Each step returns a new builder, so a half-built one can be shared. `AWorker` builds both
faces of a worker: what the strategies see (``build``) and what it says of itself when it
registers (``info``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from rustray.common.errors import TaskExecutionFailed
from rustray.common.resources import CPU, GPU, MEMORY, UNIT, ResourceSet
from rustray.scheduler.load_balancer import WorkerLoad
from rustray.task.failures import encode_failure
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec, ExecutorKind, TaskClass
from rustray.task.views import WorkerInfo


@dataclass(frozen=True)
class AClass:
    """Builds a `TaskClass`: by default a registered function that needs one core."""

    made: TaskClass

    def needs(
        self, *, cpu: float = 1, memory_mb: float = 0, gpus: float = 0, **custom: float
    ) -> AClass:
        """Let one task demand this, and nothing else."""
        amounts = {CPU: cpu, MEMORY: memory_mb, GPU: gpus, **custom}
        return AClass(replace(self.made, resources=ResourceSet.of(amounts)))

    def needing_nothing(self) -> AClass:
        """Let a task demand no resource at all."""
        return self.needs(cpu=0)

    def as_code(self, code_hash: bytes = b"\x01" * 32) -> AClass:
        """Make it a function that travels as code."""
        return AClass(replace(self.made, code_hash=code_hash, codec=Codec.PICKLE))

    def with_priority(self, priority: int) -> AClass:
        """Set the priority; higher runs first."""
        return AClass(replace(self.made, priority=priority))

    def with_labels(self, **labels: str) -> AClass:
        """Demand these labels of a worker."""
        return AClass(replace(self.made, labels=tuple(sorted(labels.items()))))

    def with_retries(self, max_retries: int, *, also_exceptions: bool = False) -> AClass:
        """Set how often a task is run again."""
        changed = replace(self.made, max_retries=max_retries, retry_exceptions=also_exceptions)
        return AClass(changed)

    def with_limits(self, *, run_s: float = 0, queue_s: float = 0, total_s: float = 0) -> AClass:
        """Set time limits in seconds; 0 is none."""
        limits = replace(
            self.made, timeout_s=run_s, queue_timeout_s=queue_s, total_timeout_s=total_s
        )
        return AClass(limits)

    def run_by(self, executor: ExecutorKind) -> AClass:
        """Choose where in a worker it runs."""
        return AClass(replace(self.made, executor=executor))

    def that_waits(self) -> AClass:
        """Accept it although no worker could ever run it."""
        return AClass(replace(self.made, wait_for_resources=True))

    def build(self) -> TaskClass:
        """Return the class, validated."""
        self.made.validate()
        return self.made


def a_class(function: str = "f") -> AClass:
    """Start with a registered function that needs one core."""
    return AClass(TaskClass(function))


@dataclass(frozen=True)
class AWorker:
    """Builds a worker: by default one idle core, the function ``f``, no labels."""

    worker_id: str
    order: int = 0
    amounts: dict[str, float] = field(default_factory=lambda: {CPU: 1.0})
    labels: dict[str, str] = field(default_factory=dict)
    functions: tuple[str, ...] = ("f",)
    held: tuple[tuple[TaskClass, int], ...] = ()
    code: tuple[bytes, ...] = ()
    weight: float | None = None

    def joining(self, order: int) -> AWorker:
        """Set the join order, which breaks ties."""
        return replace(self, order=order)

    def with_cores(self, cores: float) -> AWorker:
        """Set the number of cores, and the weight with it."""
        return self.with_resource(CPU, cores)

    def with_memory_mb(self, memory_mb: float) -> AWorker:
        """Set the memory in megabytes."""
        return self.with_resource(MEMORY, memory_mb)

    def with_resource(self, name: str, amount: float) -> AWorker:
        """Set the amount of one resource."""
        return replace(self, amounts={**self.amounts, name: amount})

    def with_labels(self, **labels: str) -> AWorker:
        """Set its labels."""
        return replace(self, labels=labels)

    def offering(self, *functions: str) -> AWorker:
        """Set the registered functions that it offers."""
        return replace(self, functions=functions)

    def weighing(self, weight: float) -> AWorker:
        """Set a weight other than its cores."""
        return replace(self, weight=weight)

    def with_leased(self, task_class: TaskClass, tasks: int) -> AWorker:
        """Lease tasks to it."""
        return replace(self, held=(*self.held, (task_class, tasks)))

    def with_code(self, code_hash: bytes) -> AWorker:
        """Let it have the code of a function."""
        return replace(self, code=(*self.code, code_hash))

    def build(self) -> WorkerLoad:
        """Return what the strategies see of it."""
        total = ResourceSet.of(self.amounts).units
        cores = total.get(CPU, 0) / UNIT
        worker = WorkerLoad(
            self.worker_id,
            self.order,
            dict(total),
            code=set(self.code),
            weight=max(cores, 1e-4) if self.weight is None else self.weight,
        )
        for task_class, tasks in self.held:
            lease(worker, task_class, tasks)
        return worker

    def info(self, incarnation: int = 1) -> WorkerInfo:
        """Return what it says of itself when it registers; its functions take anything."""
        parameters = (Parameter("args", "args", False), Parameter("kwargs", "kwargs", False))
        functions = tuple(FunctionInfo(name, parameters) for name in self.functions)
        return WorkerInfo(
            self.worker_id, incarnation, self.worker_id, "", self.amounts, self.labels, functions
        )


def a_failure(
    name: str = "builtins.ValueError", message: str = "no", *bases: str, **more: Any
) -> bytes:
    """Encode what an executor sends of an exception of user code."""
    return encode_failure(
        FailureInfo(TaskExecutionFailed.code, message, name, error_bases=bases, **more)
    )


def a_death(signal: int = 11, tail: str = "") -> bytes:
    """Encode what a worker sends of an executor that a signal has killed."""
    text = f"the executor process was killed by signal {signal}; {tail}"
    return encode_failure(FailureInfo("WORKER_LOST", text, signal=signal))


def a_worker(worker_id: str = "w") -> AWorker:
    """Start with one idle core that offers the function ``f``."""
    return AWorker(worker_id)


def lease(worker: WorkerLoad, task_class: TaskClass, tasks: int) -> None:
    """Account tasks to a worker (negative: take them off), as the scheduler does."""
    for name, units in task_class.resources:
        worker.leased[name] = worker.leased.get(name, 0) + units * tasks
    worker.load = max(
        (worker.leased.get(name, 0) / units for name, units in worker.total.items() if units),
        default=0.0,
    )
    worker.tasks += tasks
    mine = worker.by_class.get(task_class, 0) + tasks
    if mine:
        worker.by_class[task_class] = mine
    else:
        worker.by_class.pop(task_class, None)
    if task_class.code_hash and tasks > 0:
        worker.code.add(task_class.code_hash)
