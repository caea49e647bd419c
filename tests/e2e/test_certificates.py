"""Head and workers that run longer than their certificates last."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

import rustray
from helpers.cluster import FUNCTIONS, Cluster
from helpers.waiting import aeventually

pytestmark = pytest.mark.slow

_AFTER_TWO_MONTHS = (
    "import functools, time; from rustray.security import renewal as r; "
    "r.keep_identity = functools.partial(r.keep_identity, check_s=0.2, clock=lambda: "
    "time.time() + {days} * 86400); from rustray.cli.main import main; main()"
)
"""A program whose certificates are looked at as if so many days had gone by."""
_SERVICE = re.compile(r"its service at (\S+):(\d+);")


async def test_certificates_are_renewed_while_head_and_workers_run(tmp_path: Path) -> None:
    """New connections see new ones, from the same authority; what is connected stays so."""
    with Cluster(tmp_path) as cluster:
        # The worker elsewhere is there from the start, so that its stream sees the renewal.
        head = cluster.start_head()
        ca_pem = (cluster.state_dir / "ca.pem").read_bytes()
        first = ssl.get_server_certificate((cluster.host, cluster.port))
        head.end()
        code = _AFTER_TWO_MONTHS.format(days=61)
        argv = ["-c", code, "head", "--port", str(cluster.port)]
        cluster.adopt_head(cluster.launch("head", argv))
        join = (cluster.state_dir / "worker.join").read_text().strip()
        code = _AFTER_TWO_MONTHS.format(days=80)
        flags = ["worker", "--port", "0", "--name", "far", "--functions", FUNCTIONS]
        far = cluster.launch("far", ["-c", code, *flags, "--join", join], state_dir=tmp_path / "x")
        await aeventually(lambda: "joined the head" in far.text(), 20)
        with cluster.as_own():
            async with cluster.head_node() as client:
                held = await client.submit_task(rustray.TaskSpec("hold", [str(tmp_path), 1]))
                await aeventually(lambda: (tmp_path / "runs-1").exists(), 20)
                await aeventually(lambda: "renewed the certificate" in far.text(), 20)
                node = cluster.head
                assert node is not None
                await aeventually(lambda: "renewed the certificate" in node.text(), 20)
                second = ssl.get_server_certificate((cluster.host, cluster.port))
                assert second != first
                assert (cluster.state_dir / "ca.pem").read_bytes() == ca_pem
                # This one's clock stays ahead of its certificates, so it has a new one each time.
                service = _service(far.text())
                before = ssl.get_server_certificate(service)
                await aeventually(lambda: ssl.get_server_certificate(service) != before, 20)
                assert cluster.run("status").returncode == 0
                (tmp_path / "go").touch()
                result = await client.get_task_result(held, 20)
                assert result is not None
                assert result.attempts == 1
        assert far.text().count("joined the head") == 1


def _service(text: str) -> tuple[str, int]:
    found = _SERVICE.search(text)
    assert found is not None
    return found[1], int(found[2])
