"""Wall clock, sync and writes of a running process, at the runner's command (see shim.c)."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("shim.c")
_LAYOUT: Final = struct.Struct("=4q")


class Shim:
    """Faults for the processes that are started with its environment.

    Attributes:
        environment: What such a process needs; empty where the shim cannot be built.
        missing: Why there is none, or "".
    """

    def __init__(self, folder: Path) -> None:
        """Compile it, if there is a compiler."""
        self.environment: dict[str, str] = {}
        self.missing = ""
        self._map: mmap.mmap | None = None
        self._values = [0, 0, 0, 0]
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            self.missing = "there is no C compiler here"
            return
        library, control = folder / "shim.so", folder / "faults"
        built = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            self.missing = f"the compiler refuses it: {built.stderr.strip()[-200:]}"
            return
        control.write_bytes(bytes(_LAYOUT.size))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_FAULTS": str(control)}

    def set(
        self,
        *,
        clock_offset_s: int | None = None,
        sync_delay_ms: int | None = None,
        sync_errno: int | None = None,
        write_errno: int | None = None,
    ) -> None:
        """Change some of the faults; they hold at once."""
        assert self._map is not None
        given = (clock_offset_s, sync_delay_ms, sync_errno, write_errno)
        self._values = [
            old if new is None else new for old, new in zip(self._values, given, strict=True)
        ]
        self._map[:] = _LAYOUT.pack(*self._values)

    def heal(self) -> None:
        """End all faults."""
        if self._map is not None:
            self.set(clock_offset_s=0, sync_delay_ms=0, sync_errno=0, write_errno=0)

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
