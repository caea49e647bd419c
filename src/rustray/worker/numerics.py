"""Environment variables by which libraries learn how many threads and which GPUs are theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
GPU_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
GPU_ORDER: Final = "CUDA_DEVICE_ORDER"
_AMD_VARIABLE: Final = "ROCR_VISIBLE_DEVICES"
_NONE: Final = ("-1", "none", "void", "NoDevFiles")


def variables(
    own: Mapping[str, str], threads: int, gpu_ids: Sequence[str] | None
) -> dict[str, str]:
    """Return what to set before a task is called.

    Args:
        own: The worker's environment: a number of threads that its user has set stands.
        threads: How many the task may use.
        gpu_ids: What it may see; None: what the worker itself may.
    """
    found = {name: str(threads) for name in THREAD_VARIABLES if name not in own}
    if gpu_ids is not None:
        found.update(dict.fromkeys(GPU_VARIABLES, ",".join(gpu_ids)))
        if GPU_ORDER not in own:
            found[GPU_ORDER] = "PCI_BUS_ID"
    return found


def visible_gpus(own: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the ids of the GPUs that this environment leaves visible; None: all that there are."""
    for name in GPU_VARIABLES:
        if name in own:
            return _ids(own[name])
    if _AMD_VARIABLE in own:  # they are numbered anew from 0
        return tuple(map(str, range(len(_ids(own[_AMD_VARIABLE])))))
    return None


def _ids(text: str) -> tuple[str, ...]:
    """Split a list of ids; what comes after one that names nothing does not count, as for CUDA."""
    found: list[str] = []
    for each in map(str.strip, text.split(",")):
        if not each or each in _NONE:
            break
        found.append(each)
    return tuple(found)
