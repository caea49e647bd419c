"""All processes of one run: head, workers, clients, subscribers, and the networks between them.

Every start of a process has a label of its own (``worker-1.3`` is the third start of worker 1), by
which its records name it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from chaos import client
from chaos.history import FOLDER_ENV, HEAD, LABEL_ENV, REFUSED_EXIT, SUFFIX, Writer
from chaos.namespaces import Namespaces
from chaos.proxy import Network, Proxy
from chaos.shim import Shim
from chaos.watch import Watch
from helpers.cluster import Cluster, Node
from helpers.waiting import eventually
from rustray.cli import exits

LEASE_TTL_S: Final = 4.0
HEARTBEAT_S: Final = 0.5
RECONNECT_S: Final = 11.0
"""A worker knocks again after at most 10 s: so long an interruption may last beyond its end."""
_ORPHANS_GONE_S: Final = 3.0
_ORDERLY_END_S: Final = 45.0
_SETTINGS: Final = {
    "SCHEDULER__LEASE_TTL_S": str(LEASE_TTL_S),
    "SCHEDULER__HEARTBEAT_INTERVAL_S": str(HEARTBEAT_S),
    "SCHEDULER__RESULT_MEMORY_MB": "4000",
    "SCHEDULER__STREAM_TTL_S": "10",  # of generators whose client was killed
}


@dataclass
class Member:
    """A place in the cluster, and the process that has it at present.

    Attributes:
        slot: Its name, e.g. ``worker-1``.
        proxy: Its way to the head; None where it has none of its own.
        starts: How often a process was started for it.
        node: The present process, or None.
        busy: A fault holds it: no other one may.
        told: It was told to end.
    """

    slot: str
    proxy: Proxy | None = None
    starts: int = 0
    node: Node | None = None
    busy: bool = False
    told: bool = False
    is_passing: bool = False

    @property
    def kind(self) -> str:
        """Head, worker, client or subscriber."""
        return self.slot.partition("-")[0]

    @property
    def label(self) -> str:
        """What the present process's records call it."""
        return self.slot if self.slot == HEAD else f"{self.slot}.{self.starts}"

    @property
    def is_up(self) -> bool:
        """Whether its process lives."""
        return self.node is not None and self.node.is_running


@dataclass
class World:
    """The run's processes.

    Attributes:
        directory: Holds everything.
        seed: Of the run.
        spaces: Network and mount namespaces, as far as there are any.
        say: Prints a line of the timeline.
        in_flight: Tasks that one client keeps open.
        acts: What clients do, by name; "" for all of it.
        batch: Tasks in their largest batches.
        watched: Part of the tasks whose ends they wait for one by one.
        pace: Factor of the time that most tasks take.
    """

    directory: Path
    seed: int
    spaces: Namespaces
    say: Callable[[str], None]
    in_flight: int = 120
    acts: str = ""
    batch: int = 40
    watched: float = 1.0
    pace: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.history_dir = self.directory / "history"
        self.history_dir.mkdir()
        self.history = Writer(self.history_dir, "runner")
        self._watch = Watch(self.history_dir)
        self.cluster = Cluster(self.directory, {**_SETTINGS, **self.settings})
        self.spaces.mount_state(self.cluster.state_dir)
        self._shared_memory = self.spaces.shared_memory()
        self.network = Network()
        self.head_shim = self._shim("head")
        self.worker_shim = self._shim("worker")
        self.head = self.members[HEAD] = Member(HEAD)
        self.head_starts_s: list[float] = []
        self.has_problem = False
        self.limited: set[int] = set()
        self.round = 0
        self._join = ""
        self.expected_head_end_until = 0.0
        self.clocks_differ_until = 0.0
        self._orphans: list[tuple[float, str, list[int]]] = []

    def _shim(self, name: str) -> Shim:
        folder = self.directory / f"shim-{name}"
        folder.mkdir()
        return Shim(folder)

    def of_kind(self, kind: str) -> list[Member]:
        """Return the members of a kind."""
        return [member for member in self.members.values() if member.kind == kind]

    def free(self, kind: str) -> list[Member]:
        """Return those that live and that no fault holds."""
        return [
            member
            for member in self.of_kind(kind)
            if member.is_up and not (member.busy or member.is_passing or member.told)
        ]

    # ---- starting ---------------------------------------------------------------------

    def start_head(self) -> None:
        """Start the head where it was, and wait until it serves."""
        self.launch_head()
        self.adopt_head()

    def launch_head(self) -> None:
        """Start the head without waiting."""
        self.head_starts_s.append(time.monotonic())
        argv = ["-m", "rustray", "head", "--address", self.spaces.host]
        argv += ["--port", str(self.cluster.port)]
        self.head.node = self._launch(self.head, argv, self.head_shim.environment)
        self.head.told = False

    def adopt_head(self) -> None:
        """Wait until the head serves."""
        assert self.head.node is not None
        self.cluster.adopt_head(self.head.node)

    def add(self, slot: str, *, is_passing: bool = False) -> Member:
        """Make a place for a process, with its own way to the head, and start one."""
        member = self.members[slot] = Member(slot, is_passing=is_passing)
        if not self.spaces.is_far(slot):
            number = len(self.network.proxies)
            upstream = (self.cluster.host, self.cluster.port)
            member.proxy = self.network.open(self.spaces.host, upstream, self.seed + number)
        self.start(member)
        return member

    def start(self, member: Member) -> None:
        """Start a process for a place."""
        member.starts += 1
        member.told = False
        env = {
            FOLDER_ENV: str(self.history_dir),
            LABEL_ENV: member.label,
            client.KEYS_ENV: "500",
            client.ROUND_ENV: str(self.round),
            client.RATE_ENV: str(self.in_flight),
            client.ACTS_ENV: self.acts,
            client.BATCH_ENV: str(self.batch),
            client.WATCH_ENV: str(self.watched),
            client.PACE_ENV: str(self.pace),
        }
        port = member.proxy.port if member.proxy else self.cluster.port
        if member.kind == "worker":
            self._start_worker(member, port, env)
            return
        if member.kind == "client":
            argv = ["-m", "chaos.client", self.cluster.host, str(port)]
            argv.append(str(self.seed * 1_000_003 + hash_of(member.label)))
        else:
            pause = "0.2" if member.slot.endswith("slow") else "0"
            argv = ["-m", "chaos.subscriber", self.cluster.host, str(port), member.label, pause]
        member.node = self._launch(member, argv, env)

    def _start_worker(self, member: Member, port: int, env: dict[str, str]) -> None:
        flags = ["--port", "0", "--name", member.slot, "--cpus", "1" if member.is_passing else "2"]
        flags += ["--functions", "chaos.functions", "--drain-timeout", "10"]
        flags += ["--head", f"rustray://{self.cluster.host}:{port}"]
        folder = None
        if self.is_remote(member.slot):
            folder = self.directory / f"{member.slot}-state"
            folder.mkdir(exist_ok=True, mode=0o700)
            flags += ["--join", self._join_string()]
        argv, env = ["-m", "rustray", "worker", *flags], {**env, **self.worker_shim.environment}
        member.node = self._launch(member, argv, env, state_dir=folder)

    def _join_string(self) -> str:
        """Return the string that lets the remote worker join; good for the whole run."""
        if not self._join:
            made = self.cluster.run("token", "create", "--role", "worker", "--ttl", "24h")
            if made.returncode:
                raise AssertionError(f"no join string: {made.stderr}")
            self._join = made.stdout.strip()
        return self._join

    def _launch(
        self,
        member: Member,
        argv: list[str],
        env: Mapping[str, str],
        *,
        state_dir: Path | None = None,
    ) -> Node:
        through = self.spaces.through(member.slot)
        return self.cluster.launch(member.label, argv, state_dir=state_dir, through=through, **env)

    @staticmethod
    def is_remote(slot: str) -> bool:
        """Whether a worker knows nothing but a join string, as on another machine."""
        return slot == "worker-1"

    # ---- ending -----------------------------------------------------------------------

    def kill(self, member: Member) -> None:
        """End a process as a power cut would, and write that down."""
        if member.node is None:
            return
        executors = member.node.executor_pids() if member.kind == "worker" else []
        member.told = True
        member.node.kill()
        self.note_death(member, executors)

    def tell_to_end(self, member: Member) -> None:
        """Send SIGTERM."""
        member.told = True
        if member.node is not None:
            if member.kind == "worker":
                self._watch.follow(member.label, member.node)
            with contextlib.suppress(ProcessLookupError):
                member.node.signal(signal.SIGTERM)

    def wait_end(self, member: Member, within_s: float = _ORDERLY_END_S) -> None:
        """Wait for the end of a process that was told to, and judge it."""
        if member.node is None:
            return
        try:
            code = member.node.wait(within_s)
        except Exception:
            self.problem(f"{member.label} did not end within {within_s:g} s of SIGTERM")
            self.kill(member)
            return
        self.note_death(member, [], is_clean=True)
        has_failed = member.kind == HEAD and time.monotonic() < self.expected_head_end_until
        if has_failed and code == exits.UNAVAILABLE:
            self.say(f"{member.label} was told to end, and could not commit: exit code {code}")
        elif code not in (0, -signal.SIGTERM):
            self.problem(f"{member.label} was told to end, and its exit code is {code}")

    def note_death(self, member: Member, executors: list[int], *, is_clean: bool = False) -> None:
        """Write a death down, and remember to look for executors that outlive it."""
        by_itself = not member.told and not is_clean
        self.history.write("down", w=member.label, clean=is_clean, by_itself=by_itself)
        if executors:
            self._orphans.append((time.monotonic() + _ORPHANS_GONE_S, member.label, executors))
        member.node = None

    def signal_all(self, member: Member, number: signal.Signals, *, is_whole: bool = True) -> None:
        """Send a signal to a process and, for a worker, to all that belongs to it."""
        if member.node is None:
            return
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(member.node.pid)
            found = [process, *process.children(recursive=True)] if is_whole else [process]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    # ---- looking after ----------------------------------------------------------------

    def problem(self, text: str) -> None:
        """Write down what is wrong by itself."""
        self.has_problem = True
        self.history.write("problem", text=text)
        self.say(f"PROBLEM: {text}")

    def look_after(self) -> None:
        """Find what has ended by itself, and executors without a worker; start what is missing."""
        for member in list(self.members.values()):
            if member.node is not None and not member.node.is_running and not member.busy:
                self._on_end(member)
            if member.node is None and not member.busy and not member.is_passing:
                self._start_again(member)
        for due, label, pids in list(self._orphans):
            if time.monotonic() >= due:
                self._orphans.remove((due, label, pids))
                left = [pid for pid in pids if is_executor(pid)]
                if left:
                    self.problem(f"executors {left} outlive their worker {label}")

    def _on_end(self, member: Member) -> None:
        assert member.node is not None
        code, tail = member.node.process.returncode, member.node.text()[-1500:]
        is_due = member.kind == HEAD and time.monotonic() < self.expected_head_end_until
        clocks_differ = time.monotonic() < self.clocks_differ_until
        is_refused = clocks_differ and code in (REFUSED_EXIT, exits.AUTH)
        if is_refused:
            self.say(f"{member.label} was refused, for the clocks differ")
        elif not member.told and not is_due:
            self.problem(f"{member.label} ended by itself with exit code {code}:\n{tail}")
        elif is_due:
            self.say(f"the head has stopped with exit code {code}, as it should")
            if code == 0:
                self.problem("the head could not commit, and its exit code is 0")
        self.note_death(member, [], is_clean=member.told)

    def _start_again(self, member: Member) -> None:
        if member.kind == HEAD:
            self.head_shim.heal()
            self.spaces.empty_disk()
            try:
                self.start_head()
            except AssertionError as error:
                self.problem(f"the head does not start: {error}")
                self.kill(self.head)
        else:
            self.start(member)

    def heal(self) -> None:
        """End every fault that lasts."""
        self.head_shim.heal()
        self.worker_shim.heal()
        self.spaces.heal()
        for proxy in self.network.proxies:
            self.network.do(proxy.heal)
        for member in self.members.values():
            self.signal_all(member, signal.SIGCONT)
            member.busy = False

    def close(self) -> None:
        """End everything, in whatever state it is."""
        for member in self.members.values():
            self.signal_all(member, signal.SIGCONT)
        self.cluster.stop()
        self.network.close()
        self.head_shim.close()
        self.worker_shim.close()
        self._watch.close()
        self.history.close()
        self.spaces.close()

    def remaining(self) -> list[str]:
        """Return the processes of this run that still live."""
        mark = f"{FOLDER_ENV}={self.history_dir}".encode()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if mark in environment and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        return found

    def expect_nobody(self) -> None:
        """Check that nothing of the run is left: no process, and nothing in shared memory."""
        try:
            eventually(lambda: not self.remaining(), 5)
        except AssertionError:
            self.problem(f"left running: {self.remaining()}")
        left = self.spaces.shared_memory() - self._shared_memory
        if left:
            self.problem(f"left in shared memory: {sorted(left)}")

    def scan_logs(self) -> None:
        """Find tracebacks in what the processes have printed."""
        for path in sorted(self.directory.glob("*.log")):
            text = path.read_text(errors="replace")
            if "Traceback (most recent call last)" in text:
                at = text.index("Traceback (most recent call last)")
                self.problem(f"{path.name} has a traceback:\n{text[max(at - 300, 0) : at + 2000]}")

    def forget_the_dead(self) -> None:
        """Remove histories and logs of processes that have ended, and been judged."""
        for path in self.history_dir.glob(f"*{SUFFIX}"):
            pid = int(path.stem.split("-")[-2])
            if not psutil.pid_exists(pid):
                path.unlink()
        self.scan_logs()
        alive = {member.node.log for member in self.members.values() if member.node}
        for path in self.directory.glob("*.log"):
            if path not in alive:
                path.unlink()

    def remove(self) -> None:
        """Remove the run's directory."""
        shutil.rmtree(self.directory)


def is_executor(pid: int) -> bool:
    """Whether a process of this id lives and is one of ours."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "rustray" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def hash_of(text: str) -> int:
    """Return a number for a text, the same in every process."""
    return int.from_bytes(text.encode(), "big") % 1_000_003
