"""What is made of grpc before anything else uses it."""

from __future__ import annotations

import logging

import pytest

from rustray.rpc import grpcio


def test_a_caller_that_is_gone_is_no_error_of_the_heads(caplog: pytest.LogCaptureFixture) -> None:
    """Bug: grpc wrote a traceback into the log for each answer that nobody waited for any more."""
    logger = logging.getLogger(grpcio.cygrpc._LOGGER.name)
    with caplog.at_level(logging.DEBUG):
        logger.error("ExecuteBatchError raised in core by servicer method [%s]", "/a/B")
        logger.error("Unexpected [%s] raised by servicer method [%s]", "ValueError", "/a/B")
    assert [record.args for record in caplog.records] == [("ValueError", "/a/B")]
