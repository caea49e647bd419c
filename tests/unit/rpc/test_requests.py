"""Requests of unary calls: composed without decoding, and their classes read once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.rpc.convert import get_task_class, put_task_class
from rustray.rpc.request_codec import compose_call
from rustray.task.codec import decode_call, encode_call, encode_value
from rustray.task.spec import Codec, TaskClass

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
codecs = st.sampled_from([Codec.JSON, Codec.MSGPACK])


@given(codecs, st.lists(values, max_size=20), st.dictionaries(st.text(max_size=40), values))
def test_a_composed_call_decodes_to_its_arguments(codec: Codec, args: list[Any], kwargs: Any):
    """Composing encoded arguments gives what encoding the call would decode to."""
    payload = compose_call(
        codec,
        [encode_value(codec, value) for value in args],
        {name: encode_value(codec, value) for name, value in kwargs.items()},
    )
    assert decode_call(codec, payload) == (tuple(args), kwargs)
    whole = encode_call(codec, tuple(args), dict(sorted(kwargs.items())))
    if codec is Codec.MSGPACK:
        assert payload == whole


def test_the_order_of_keywords_does_not_change_the_bytes():
    """The same call is the same payload, so that a task submitted twice is one task."""
    one = compose_call(Codec.JSON, [], {"b": b"1", "a": b"2"})
    assert one == compose_call(Codec.JSON, [], {"a": b"2", "b": b"1"}) == b'[[],{"a":2,"b":1}]'


@pytest.mark.parametrize(
    ("codec", "args", "kwargs", "reason"),
    [
        (Codec.JSON, [b"1", b""], {}, r"args\[1\]"),
        (Codec.MSGPACK, [], {"k": b""}, r"kwargs\['k'\]"),
        (Codec.PICKLE, [b"x"], {}, "CODEC_JSON or CODEC_MSGPACK"),
    ],
)
def test_what_cannot_be_composed_is_named(codec: Codec, args: Any, kwargs: Any, reason: str):
    """An empty argument and a codec that carries code are refused by name."""
    with pytest.raises(ValueError, match=reason):
        compose_call(codec, args, kwargs)


def test_a_class_that_comes_again_is_read_once_and_a_bad_one_is_refused_each_time() -> None:
    """Unary calls bring it with each task; what is long is not kept."""
    message = common.TaskClass()
    put_task_class(message, TaskClass("f", priority=3))
    assert get_task_class(message) is get_task_class(message)
    message.priority = 4
    assert get_task_class(message).priority == 4
    long = common.TaskClass()
    put_task_class(long, TaskClass("f", labels=tuple((f"{n:0100}", "v") for n in range(40))))
    assert get_task_class(long) == get_task_class(long)
    assert get_task_class(long) is not get_task_class(long)
    message.num_returns = 1 << 30
    for _ in range(2):
        with pytest.raises(ValueError, match="num_returns"):
            get_task_class(message)
