"""The environment that a task's code finds: variables, working directory, modules.

Directories travel as packages: zip files that are named by their SHA-256, and hold what the client
found on its disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

MAX_VARIABLES: Final = 256
MAX_VARIABLES_BYTES: Final = 64 * 1024
MAX_MODULES: Final = 16
MAX_PACKAGE_BYTES: Final = 24 << 20
"""Of all packages of one environment, compressed: they travel in one message."""
MAX_UNPACKED_BYTES: Final = 256 << 20
MAX_FILES: Final = 10_000
HASH_BYTES: Final = 32


class Package(NamedTuple):
    """A zip file with what a client found on its disk.

    Attributes:
        digest: SHA-256 of the content.
    """

    digest: bytes
    content: bytes


class RuntimeEnv(NamedTuple):
    """What a task's process is to be like; equal ones share processes.

    Attributes:
        env_vars: (name, value) of environment variables, by name.
        working_dir: SHA-256 of the package that is its current directory; b"": the worker's.
        py_modules: SHA-256 of packages that are on its import path.
    """

    env_vars: tuple[tuple[str, str], ...] = ()
    working_dir: bytes = b""
    py_modules: tuple[bytes, ...] = ()

    @property
    def packages(self) -> tuple[bytes, ...]:
        """Return the hashes of all packages, each once."""
        own = (self.working_dir,) if self.working_dir else ()
        return tuple(dict.fromkeys((*own, *self.py_modules)))

    def check(self) -> None:
        """Verify every field.

        Raises:
            ValueError: names what is wrong.
        """
        check_variables(dict(self.env_vars))
        if len(self.env_vars) != len(dict(self.env_vars)):
            raise ValueError("runtime_env: a variable is named twice")
        if len(self.py_modules) > MAX_MODULES:
            raise ValueError(f"runtime_env: at most {MAX_MODULES} py_modules are allowed")
        for digest in self.packages:
            if len(digest) != HASH_BYTES:
                raise ValueError(f"runtime_env: a package's hash has {HASH_BYTES} bytes")


def check_variables(variables: Mapping[str, str]) -> None:
    """Verify environment variables.

    Raises:
        ValueError: names the one that cannot be, or says that there are too many.
    """
    if not isinstance(variables, Mapping):
        raise ValueError(f"runtime_env: env_vars maps names to texts, not {variables!r:.80}")
    if len(variables) > MAX_VARIABLES:
        raise ValueError(
            f"runtime_env: {len(variables)} env_vars, at most {MAX_VARIABLES} are allowed"
        )
    size = 0
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"runtime_env: env_vars maps text to text: {name!r:.80}={value!r:.80}")
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(f"runtime_env: there can be no variable {name!r:.80}={value!r:.80}")
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise ValueError(f"runtime_env: {name!r:.80} is no text that can travel") from None
    if size > MAX_VARIABLES_BYTES:
        raise ValueError(
            f"runtime_env: env_vars take {size} bytes, at most {MAX_VARIABLES_BYTES} are allowed"
        )
