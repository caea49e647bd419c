"""One head with TLS, tokens and a worker for each module of the corpus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.bad_input import BadInput
from helpers.cluster import Cluster
from helpers.waiting import eventually

MAX_PAYLOAD_BYTES = 4_096


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head with low limits, whose journal is sound in the end, and one honest worker."""
    settings = {
        "SCHEDULER__MAX_PAYLOAD_BYTES": str(MAX_PAYLOAD_BYTES),
        "SCHEDULER__LEASE_TTL_S": "5",
        "SCHEDULER__HEARTBEAT_INTERVAL_S": "1",
    }
    with Cluster(tmp_path_factory.mktemp("corpus"), settings) as cluster:
        cluster.start_head()
        cluster.start_worker("honest", "--label", "zone=here", cpus=2)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        yield cluster
        found = cluster.json("state", "check")
        assert found["tasks"] > 0


@pytest.fixture(scope="module")
def head(cluster: Cluster) -> Iterator[BadInput]:
    """The head, for its worst callers."""
    head = BadInput(cluster)
    head.good_call()
    yield head
    head.close()
