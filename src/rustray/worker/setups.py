"""What the core wants of an executor, in the words of the executors' protocol."""

from __future__ import annotations

from collections.abc import Mapping

from rustray.worker.events import Setting
from rustray.worker.numerics import variables
from rustray.worker.wire import Environment, Setup


def setup_of(setting: Setting, source: Mapping[str, str], package_root: str) -> Setup:
    """Return the setup of the tasks that follow.

    Args:
        setting: What the core wants.
        source: The worker's environment: a number of threads that its user has set stands, and so
            does one that the tasks' own environment sets.
        package_root: Where packages are.
    """
    env, environment, own = setting.runtime_env, None, dict(source)
    if env is not None:
        environment = Environment(
            dict(env.env_vars),
            package_root,
            env.working_dir.hex(),
            tuple(digest.hex() for digest in env.py_modules),
        )
        own.update(environment.variables)
    found = variables(own, setting.threads, setting.gpu_ids)
    return Setup(found, setting.gpu_ids or (), setting.alternative, environment)
