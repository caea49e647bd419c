"""Workers and clients of another release at a real head (F36)."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.cluster import Cluster

pytestmark = pytest.mark.slow

_UNAVAILABLE = 3
_OTHER = (
    "from rustray.rpc import versions; versions.PROTOCOL = {newest}; "
    "versions.OLDEST_PROTOCOL = {oldest}; from rustray.cli.main import main; main()"
)
_CLIENT = (
    "from rustray.rpc import versions; versions.PROTOCOL = {newest}; "
    "versions.OLDEST_PROTOCOL = {oldest}; import rustray; rustray.init({address!r})"
)


def test_a_release_that_is_one_ahead_works_with_this_head(tmp_path: Path) -> None:
    """It speaks this head's version with it."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        code = _OTHER.format(newest=2, oldest=1)
        flags = ["worker", "--port", "0", "--name", "ahead", "--functions", "e2e.functions"]
        cluster.launch("ahead", ["-c", code, *flags])
        done = cluster.json("submit", "add", "1", "2", "--wait-for-resources", "--wait")
        assert done["value"] == 3
        code = _CLIENT.format(newest=2, oldest=1, address=cluster.address)
        assert cluster.launch("client", ["-c", code]).wait() == 0


def test_a_release_that_does_not_fit_is_told_so_and_ends(tmp_path: Path) -> None:
    """Exit code 3 and both versions, no endless knocking; the head does not count it a worker."""
    with Cluster(tmp_path) as cluster:
        head = cluster.start_head()
        code = _OTHER.format(newest=3, oldest=2)
        worker = cluster.launch("far-ahead", ["-c", code, "worker", "--port", "0"])
        assert worker.wait() == _UNAVAILABLE
        assert "speaks versions 2 to 3 of rustray's protocol, the head version 1" in worker.text()
        assert "upgrade rustray on the head's machine" in worker.text()
        assert "Traceback" not in worker.text()
        code = _CLIENT.format(newest=3, oldest=2, address=cluster.address)
        client = cluster.launch("client", ["-c", code])
        assert client.wait() != 0
        assert "VersionMismatch: the client speaks versions 2 to 3" in client.text()
        status = cluster.json("status")
        assert not status["workers"] or not status["workers"].get("ready")
        assert status["counters"]["calls_refused_version_mismatch"] >= 2
        assert head.is_running
