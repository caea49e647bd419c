"""`runtime_env` as users write it, made ready to travel."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rustray.common.errors import PayloadError
from rustray.task.runtime_env import (
    MAX_MODULES,
    MAX_PACKAGE_BYTES,
    Package,
    RuntimeEnv,
    check_variables,
)
from rustray.task.spec import TaskClass

FIELDS: Final = ("env_vars", "working_dir", "py_modules", "excludes")


def check_runtime_env(runtime_env: object) -> None:
    """Refuse unknown fields and values of the wrong kind; nothing is read from disk.

    Raises:
        ValueError: names the field.
    """
    if runtime_env is None:
        return
    if not isinstance(runtime_env, Mapping) or set(runtime_env) - set(FIELDS):
        raise ValueError(
            f"runtime_env must map some of {', '.join(FIELDS)} to values, not {runtime_env!r:.200}"
        )
    check_variables(runtime_env.get("env_vars") or {})
    path = runtime_env.get("working_dir")
    if path is not None and (not isinstance(path, str | os.PathLike) or not str(path)):
        raise ValueError(f"runtime_env: working_dir is the path of a directory, not {path!r:.80}")
    for name, kinds in (("py_modules", str | os.PathLike | types.ModuleType), ("excludes", str)):
        listed = runtime_env.get(name) or ()
        if not isinstance(listed, list | tuple) or not all(isinstance(e, kinds) for e in listed):
            raise ValueError(f"runtime_env: {name} must be a list of texts, not {listed!r:.80}")
    if len(runtime_env.get("py_modules") or ()) > MAX_MODULES:
        raise ValueError(f"runtime_env: at most {MAX_MODULES} py_modules are allowed")


def merged(job: Mapping[str, Any] | None, task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Lay a task's environment over that of its job: variables add up, the rest replaces."""
    found = {**(job or {}), **(task or {})}
    variables = {**((job or {}).get("env_vars") or {}), **((task or {}).get("env_vars") or {})}
    if variables:
        found["env_vars"] = variables
    return {name: value for name, value in found.items() if value}


class Packer:
    """Makes environments ready, each once: later changes on the disk are not seen.

    Attributes:
        job: What all tasks of the session have.
    """

    def __init__(self, job: Mapping[str, Any] | None = None) -> None:
        check_runtime_env(job)
        self.job = dict(job or {})
        self._known: dict[str, tuple[RuntimeEnv, tuple[Package, ...]]] = {}

    def prepare(
        self, task: Mapping[str, Any] | None
    ) -> tuple[RuntimeEnv | None, tuple[Package, ...]]:
        """Return a task's whole environment, None for that of the worker, and its packages.

        Raises:
            PayloadError: something is missing, too large, or cannot travel.
        """
        wanted = merged(self.job, task)
        if not set(wanted) - {"excludes"}:
            return None, ()
        key = json.dumps(wanted, sort_keys=True, default=_name)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _pack(wanted)
        return found

    def apply(
        self, task_class: TaskClass, task: Mapping[str, Any] | None
    ) -> tuple[TaskClass, tuple[Package, ...]]:
        """Return a class with its whole environment, and the packages of that; as `prepare`."""
        if task_class.is_put:
            return task_class, ()
        env, packages = self.prepare(task)
        return (task_class if env is None else replace(task_class, runtime_env=env)), packages


def _name(value: object) -> str:
    return str(_path_of(value))


def _path_of(module: Any) -> Path:
    """Return where a module is: a path, or what an imported module was loaded from.

    Raises:
        PayloadError: it was loaded from no file.
    """
    if not isinstance(module, types.ModuleType):
        return Path(module)
    paths = list(getattr(module, "__path__", ()))
    file = getattr(module, "__file__", None)
    if len(paths) == 1 or (not paths and file):
        return Path(paths[0] if paths else str(file))
    raise PayloadError(
        f"py_modules: {module.__name__!r} was loaded from no single file or directory"
    )


def _pack(wanted: Mapping[str, Any]) -> tuple[RuntimeEnv, tuple[Package, ...]]:
    from rustray.client.packages import check_patterns, pack_directory, pack_module

    excludes: Sequence[str] = wanted.get("excludes") or ()
    check_patterns("runtime_env: excludes", excludes)
    packages: list[Package] = []
    working_dir = b""
    if "working_dir" in wanted:
        packages.append(
            pack_directory("runtime_env: working_dir", Path(wanted["working_dir"]), excludes)
        )
        working_dir = packages[0].digest
    modules = [
        pack_module("runtime_env: py_modules", _path_of(each), excludes)
        for each in wanted.get("py_modules") or ()
    ]
    packages += modules
    size = sum(len(each.content) for each in packages)
    if size > MAX_PACKAGE_BYTES:
        raise PayloadError(
            f"runtime_env takes {size / 2**20:.1f} MiB compressed, at most "
            f"{MAX_PACKAGE_BYTES >> 20} are allowed: it is for code and small files"
        )
    variables = tuple(sorted((wanted.get("env_vars") or {}).items()))
    made = RuntimeEnv(variables, working_dir, tuple(each.digest for each in modules))
    return made, tuple({each.digest: each for each in packages}.values())
