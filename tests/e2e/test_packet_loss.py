"""A worker and a client behind a link that loses, delays and reorders packets (F17)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.cluster import FUNCTIONS, Cluster
from helpers.lossy import NEAR, lossy_link
from helpers.waiting import eventually

pytestmark = pytest.mark.slow

_SEED = 17
_LOSS = 0.05
_DELAY_S, _JITTER_S = 0.15, 0.1
"""Each way, so that a round trip takes 300 ms ± 200."""
_TASKS, _LARGE, _LARGE_BYTES = 120, 3, 100_000
_WITHIN_S = 120.0


def test_packet_loss_costs_time_only(tmp_path: Path) -> None:
    """No lease and no session is lost by it, nothing is run twice, and nobody gets an error."""
    with lossy_link(_SEED, _LOSS, _DELAY_S, _JITTER_S) as link, Cluster(tmp_path) as cluster:
        argv = ["-m", "rustray", "head", "--port", "0", "--address", NEAR]
        head = cluster.adopt_head(cluster.launch("head", argv, through=link.near))
        join = (cluster.state_dir / "worker.join").read_text().strip()
        argv = ["-m", "rustray", "worker", "--port", "0", "--functions", FUNCTIONS, "--join", join]
        elsewhere = tmp_path / "elsewhere"
        worker = cluster.launch("worker", argv, through=link.far, state_dir=elsewhere)
        eventually(lambda: "joined the head" in worker.text(), _WITHIN_S)
        numbers = [str(number) for number in (cluster.port, _TASKS, _LARGE, _LARGE_BYTES)]
        argv = ["-m", "helpers.far_client", NEAR, str(tmp_path), *numbers]
        client = cluster.launch("client", argv, through=link.far)
        assert client.wait(_WITHIN_S) == 0, client.text() + cluster.logs()
        found = json.loads(client.text().splitlines()[-1])
        assert found["attempts"] == {"1": _TASKS + _LARGE}
        assert found["counters"]["workers_joined"] == 1
        assert not found["counters"].get("workers_lost")
        assert not found["counters"].get("calls_refused")
        assert worker.text().count("joined the head") == 1
        for node in (head, worker):
            assert node.is_running
            assert "Traceback" not in node.text()
        cluster.stop()
        lost, seen = link.counts()
        print(f"{lost} of {seen} packets were lost (seed {_SEED})")
        assert lost > 0.5 * _LOSS * seen > 0
