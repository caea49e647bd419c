"""Generate the Python code of the protocol beside its .proto files; ``--check`` only compares.

The compiler runs with ``src`` as its root, so the generated modules import each other by their
real names (``rustray.proto.rustray.v1...``) and need no patching.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"
PROTO = SRC / "rustray" / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def main(arguments: list[str]) -> int:
    """Generate, or with ``--check`` say what differs; return the exit code."""
    sources = sorted(PROTO.rglob("*.proto"))
    if not sources:
        print(f"no .proto files under {PROTO.relative_to(SRC.parent)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fresh = _generate(sources, Path(folder))
    if arguments != ["--check"]:
        return _write(fresh)
    wrong = [path for path, text in fresh.items() if _read(SRC / path) != text]
    wrong += [path for path in _committed() if path not in fresh]
    for path in sorted(wrong):
        print(f"not what the .proto files say (run make proto): src/{path}", file=sys.stderr)
    return 1 if wrong else 0


def _generate(sources: list[Path], target: Path) -> dict[Path, bytes]:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SRC}"]
    command += [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, *map(str, sources)], check=True)
    return {path.relative_to(target): path.read_bytes() for path in target.rglob("*.py*")}


def _committed() -> list[Path]:
    return [path.relative_to(SRC) for path in PROTO.rglob("*.py*") if path.name.endswith(SUFFIXES)]


def _write(fresh: dict[Path, bytes]) -> int:
    for path in _committed():
        if path not in fresh:
            (SRC / path).unlink()
    for path, text in fresh.items():
        if _read(SRC / path) != text:
            (SRC / path).write_bytes(text)
            print(f"wrote src/{path}")
    return 0


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
