"""Makes an executor's process what a runtime environment says, before any user code is there."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from rustray.worker.package_store import BadPackage, unpacked
from rustray.worker.wire import Environment


def enter(environment: Environment) -> str:
    """Set variables, current directory and import path, for good; returns why not, or ""."""
    os.environ.update(environment.variables)
    root = Path(environment.root)
    added = []
    try:
        if environment.working_dir:
            directory = unpacked(root, environment.working_dir)
            os.chdir(directory)
            added.append(str(directory))
        added += [str(unpacked(root, each)) for each in environment.py_modules]
    except (BadPackage, OSError) as error:
        return f"{type(error).__name__}: {error}"
    sys.path[:0] = added
    importlib.invalidate_caches()
    return ""
