"""Decoding the values of many tasks at once."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from rustray.client.failures import is_interrupt, undecodable
from rustray.client.refs import TaskRef
from rustray.task import flat
from rustray.task.spec import Codec


def outcomes(refs: Sequence[TaskRef[Any]]) -> list[Any]:
    """Return the values of references that are done, as `TaskRef.outcome` does of each.

    In one frame: thousands come at once, nearly all of them small pickles.

    Raises:
        RustRayError: as said there, of the first that has no value.
    """
    values: list[Any] = []
    append, loads, beginning = values.append, pickle.loads, flat.BEGINNING
    batch, is_pickle = None, False
    for ref in refs:
        if ref._batch is not batch:
            batch = ref._batch
            is_pickle = batch.entry.task_class.codec is Codec.PICKLE
        data = ref._data  # bytes only where it has succeeded, and the value has come along
        if is_pickle and type(data) is bytes and data[:1] != beginning:
            try:
                append(loads(data))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                raise undecodable(ref.task_id, error) from error
        else:
            append(ref.outcome())
    return values
