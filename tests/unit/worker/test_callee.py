"""Functions made ready to be called with payloads."""

from __future__ import annotations

import pickle
from hashlib import sha256

import cloudpickle
import numpy as np
import pytest

from rustray.task import flat, pickling
from rustray.task.codec import encode_call
from rustray.task.spec import Codec
from rustray.worker.callee import Callee, FunctionTable, Unresolvable
from rustray.worker.wire import Definition

CODE = cloudpickle.dumps(lambda value: value)


def callee_of(code: bytes = CODE, codec: Codec = Codec.PICKLE, has_inputs: bool = False) -> Callee:
    """Return one that is ready."""
    definition = Definition("echo", int(codec), sha256(code).digest(), code, has_inputs)
    callee = Callee(definition, FunctionTable())
    callee.resolve()
    return callee


def test_small_chunks_are_decoded_by_pickle_itself() -> None:
    """No frame of ours per task: what has its buffers laid beside it is never so small."""
    callee = callee_of()
    assert callee.decoder_of(bytes(flat.MIN_BUFFER_BYTES - 1)) is pickle.loads
    assert callee.decoder_of(bytes(flat.MIN_BUFFER_BYTES)) is pickling.loads
    smallest = pickling.dumps_call_parts((np.zeros(flat.MIN_BUFFER_BYTES, np.uint8),), {})
    assert isinstance(smallest, flat.FlatValue)
    payload = bytes(smallest)
    args, kwargs = callee.decoder_of(payload)(payload)
    assert len(args[0]) == flat.MIN_BUFFER_BYTES
    assert not kwargs


@pytest.mark.parametrize("size", [1, flat.MIN_BUFFER_BYTES])
def test_what_decodes_otherwise_does_so_at_any_size(size: int) -> None:
    """Of other codecs, of tasks that take others' results, and where there is no function."""
    data = bytes(size)
    for callee in (callee_of(codec=Codec.MSGPACK), callee_of(has_inputs=True)):
        assert callee.decoder_of(data) is callee.decode
    call = encode_call(Codec.MSGPACK, (3,), {})
    assert callee_of(codec=Codec.MSGPACK).decoder_of(call)(call) == ([3], {})
    broken = callee_of(code=b"no pickle")
    assert broken.decoder_of(data)(data) == ((), {})
    with pytest.raises(Unresolvable):
        broken.call()
