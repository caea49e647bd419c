"""One face for the systems that are compared; each is used as its own manual shows."""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import psutil

from suite import tasks
from suite.cluster import Cluster
from suite.processes import tree

EXECUTORS: Final = 2
_ABSENT: Final = {"benchmark": 1.0}
"""A resource that nobody offers: tasks that ask for it stay in the queue."""
_HELD_S: Final = 3600.0

Submit = Callable[..., Any]


class System(ABC):
    """A system with two executors on this machine.

    Args:
        directory: For whatever it keeps on disk.
        address: Of a cluster that runs already; "" starts one.
        is_queue_only: Start it so that what is submitted stays in its queue.
    """

    def __init__(self, directory: Path, *, address: str = "", is_queue_only: bool = False) -> None:
        self.directory = directory
        self.address = address
        self.is_queue_only = is_queue_only

    def load(self) -> None:  # noqa: B027 - those without a package of their own have nothing to do
        """Import what a program that uses it imports at its top."""

    @abstractmethod
    def start(self) -> None:
        """Start it, or connect to the address."""

    @abstractmethod
    def stop(self) -> None:
        """Stop what `start` started."""

    @abstractmethod
    def prepare(self, function: Callable[..., Any]) -> Submit:
        """Return what hands in one call of a function and returns a reference to its result."""

    @abstractmethod
    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Wait for results and return them."""

    def stream(self, function: Callable[..., Any], number: int) -> Iterator[Any]:
        """Call a generator function there, and yield its items as they come."""
        raise NotImplementedError

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Call a function for each item and return the results: a task each, if nothing better."""
        submit = self.prepare(function)
        return self.gather([submit(item) for item in items])

    def roles(self) -> dict[str, list[int]]:
        """Return its processes by role."""
        return {"processes": tree(os.getpid())}

    def service_pids(self) -> list[int]:
        """Return its processes without the program that uses it, where these are different."""
        return tree(os.getpid())


class RustrayEmbedded(System):
    """`rustray.init()`."""

    def load(self) -> None:
        """Import the package."""
        import rustray

        self._rustray = rustray

    def start(self) -> None:
        """Start the embedded cluster."""
        self._rustray.init(num_cpus=EXECUTORS)

    def stop(self) -> None:
        """Stop it."""
        self._rustray.shutdown()

    def prepare(self, function: Callable[..., Any]) -> Submit:
        """Decorate a function."""
        if self.is_queue_only:
            options: dict[str, Any] = {"resources": _ABSENT, "wait_for_resources": True}
            return self._rustray.remote(**options)(function).remote
        return self._rustray.remote(function).remote

    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Get results."""
        return self._rustray.get(refs)

    def stream(self, function: Callable[..., Any], number: int) -> Iterator[Any]:
        """Iterate over references, as with Ray."""
        for ref in self._rustray.remote(function).remote(number):
            yield self._rustray.get(ref)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Map, with nothing set."""
        return list(self._rustray.map(function, items))


class Rustray(RustrayEmbedded):
    """Head, worker and client as processes of their own; TLS and JWT are on."""

    def start(self) -> None:
        """Start head and worker, connect, and wait for the worker."""
        self._cluster = Cluster(self.directory)
        if not self.address:
            self._cluster.start(executors=0 if self.is_queue_only else EXECUTORS)
            self.address = self._cluster.address
        self._rustray.init(self.address)
        if not self.is_queue_only:
            first = self._rustray.remote(wait_for_resources=True)(tasks.noop)
            self._rustray.get(first.remote())

    def stop(self) -> None:
        """Disconnect, and stop what was started."""
        self._rustray.shutdown()
        self._cluster.stop()

    def roles(self) -> dict[str, list[int]]:
        """Return client, head, worker and executors."""
        worker = self._cluster.worker_pid
        return {
            "client": [os.getpid()],
            "head": [self._cluster.head_pid],
            "worker": [worker] if worker else [],
            "executors": tree(worker)[1:] if worker else [],
        }

    def service_pids(self) -> list[int]:
        """Return all but the client."""
        return [pid for role, pids in self.roles().items() if role != "client" for pid in pids]


class Ray(System):
    """Ray with two CPUs."""

    def load(self) -> None:
        """Import the package."""
        self._ray: Any = import_module("ray")

    def start(self) -> None:
        """Start it, or connect as one more driver."""
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address:
            self._ray.init(address=self.address, **quiet)
            return
        context = self._ray.init(
            num_cpus=0 if self.is_queue_only else EXECUTORS,
            include_dashboard=False,
            _temp_dir=str(self.directory / "ray"),
            **quiet,
        )
        self.address = context.address_info["address"]

    def stop(self) -> None:
        """Stop it."""
        self._ray.shutdown()

    def prepare(self, function: Callable[..., Any]) -> Submit:
        """Decorate a function."""
        submit: Submit = self._ray.remote(function).remote
        return submit

    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Get results."""
        results: list[Any] = self._ray.get(list(refs))
        return results

    def stream(self, function: Callable[..., Any], number: int) -> Iterator[Any]:
        """Iterate over references."""
        remote = self._ray.remote(num_returns="streaming")(function)
        for ref in remote.remote(number):
            yield self._ray.get(ref)

    def service_pids(self) -> list[int]:
        """Return all but the driver."""
        return tree(os.getpid())[1:]


class Dask(System):
    """Dask distributed: a LocalCluster; its scheduler lives in the client's process."""

    def load(self) -> None:
        """Import the package."""
        # It advises against large arguments, which are just what is measured.
        warnings.filterwarnings("ignore")
        self._distributed: Any = import_module("distributed")
        self._cluster: Any = None

    def start(self) -> None:
        """Start it, or connect."""
        if not self.address:
            self._cluster = self._distributed.LocalCluster(
                n_workers=0 if self.is_queue_only else EXECUTORS,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                local_directory=str(self.directory),
                silence_logs=logging.ERROR,
            )
            self.address = self._cluster.scheduler_address
        self._client = self._distributed.Client(self.address)

    def stop(self) -> None:
        """Stop it."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def prepare(self, function: Callable[..., Any]) -> Submit:
        """Bind a function to `submit`; equal calls are to run each, so they are not pure."""
        return partial(self._client.submit, function, pure=False)

    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Gather results."""
        results: list[Any] = self._client.gather(list(refs))
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Map; equal calls are to run each."""
        return self.gather(self._client.map(function, items, pure=False))


class ProcessPool(System):
    """The standard library's executor."""

    def start(self) -> None:
        """Make the pool; without room for more when tasks are to stay in the queue."""
        self._pool = ProcessPoolExecutor(EXECUTORS)
        if self.is_queue_only:
            for _ in range(2 * EXECUTORS):
                self._pool.submit(tasks.hold, _HELD_S)

    def stop(self) -> None:
        """Stop it."""
        if self.is_queue_only:
            for process in psutil.Process().children():
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def prepare(self, function: Callable[..., Any]) -> Submit:
        """Bind a function to `submit`."""
        return partial(self._pool.submit, function)

    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Wait for the futures."""
        return [ref.result() for ref in refs]


class MultiprocessingPool(System):
    """The standard library's pool."""

    def start(self) -> None:
        """Make the pool."""
        self._pool = multiprocessing.Pool(EXECUTORS)

    def stop(self) -> None:
        """Stop it."""
        self._pool.terminate()
        self._pool.join()

    def prepare(self, function: Callable[..., Any]) -> Submit:
        """Bind a function to `apply_async`."""
        return lambda *args: self._pool.apply_async(function, args)

    def gather(self, refs: Sequence[Any]) -> list[Any]:
        """Wait for the results."""
        return [ref.get() for ref in refs]

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Map, with nothing set."""
        return self._pool.map(function, items)


CLASSES: Final[dict[str, type[System]]] = {
    "rustray": Rustray,
    "rustray-embedded": RustrayEmbedded,
    "ray": Ray,
    "dask": Dask,
    "processpool": ProcessPool,
    "pool": MultiprocessingPool,
}
