"""An embedded cluster for the modules that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import rustray


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    with rustray.init(num_cpus=2):
        yield


@pytest.fixture
def cluster(_cluster: None) -> None:
    """An embedded cluster of two slots, shared by the tests of a module."""
