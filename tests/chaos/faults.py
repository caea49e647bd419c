"""The nemesis' mix: every fault, how often it comes, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chaos import faults_host, faults_network, faults_process
from chaos.strike import Fault


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault in the nemesis' mix.

    Attributes:
        fault: What it does.
        weight: How often it comes.
        needs: "", "shim", "namespace", or "no shim": where it can be had.
    """

    fault: Fault
    weight: int
    needs: str = ""

    @property
    def name(self) -> str:
        """Its name in timeline and figures."""
        return str(getattr(self.fault, "__name__", self.fault))


MIX: Final = (
    Kind(faults_process.kill_head, 6),
    Kind(faults_process.kill_head_in_recovery, 2),
    Kind(faults_process.stop_head, 2),
    Kind(faults_process.freeze_head, 3),
    Kind(faults_process.kill_worker, 6),
    Kind(faults_process.kill_worker_and_head, 2),
    Kind(faults_process.drain_worker, 3),
    Kind(faults_process.freeze_worker, 6),
    Kind(faults_process.kill_executor, 8),
    Kind(faults_process.freeze_executor, 3),
    Kind(faults_process.kill_client, 4),
    Kind(faults_process.freeze_client, 2),
    Kind(faults_process.crowd, 2),
    Kind(faults_network.cut, 4),
    Kind(faults_network.stall, 5),
    Kind(faults_network.vanish, 3),
    Kind(faults_network.delay, 3),
    Kind(faults_network.throttle, 2),
    Kind(faults_network.flap, 2),
    Kind(faults_network.far_link, 5, "namespace"),
    Kind(faults_host.jump_clock, 3, "shim"),
    Kind(faults_host.slow_sync, 3, "shim"),
    Kind(faults_host.fail_sync, 2, "shim"),
    Kind(faults_host.fail_writes, 2, "shim"),
    Kind(faults_host.limit_files, 2, "no shim"),
    Kind(faults_host.limit_descriptors, 2),
    Kind(faults_host.lock_journal, 2),
    Kind(faults_host.talk_nonsense, 3),
)
BY_NAME: Final = {kind.name: kind for kind in MIX}
