"""Calls are composed from encoded arguments without decoding one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.rpc.request_codec import compose_call
from rustray.task.codec import decode_call, encode_call, encode_value
from rustray.task.spec import Codec

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
