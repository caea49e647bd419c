"""Pin every dependency with its hashes: pyproject.toml -> requirements/{base,dev,bench}.txt.

Usage: ``make lock`` (network needed). Each supported Python resolves for itself, because what a
release needs may differ between them; the three answers are merged into one file per set, with a
marker where they disagree. pip-tools does the resolving, in a throw-away environment each.
Neither an index nor a path of this machine gets into the files.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
PIP_TOOLS = "pip-tools==7.6.2"
# Each set holds the ones before it; `bench` last, so that the peers never move our own pins.
SETS: dict[str, tuple[str, ...]] = {
    "base": ("demo",),
    "dev": ("demo", "dev"),
    "bench": ("demo", "dev", "bench"),
}
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned release.

    Attributes:
        requirement: ``name==version``, with an environment marker if the release has one.
        hashes: ``sha256:...`` of every file of the release, sorted.
    """

    requirement: str
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the distribution."""
        return self.requirement.split("==")[0]


def main() -> None:
    """Write all sets."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    (ROOT / "requirements").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        compilers = {version: _pip_compile(version, work) for version in PYTHONS}
        settled: dict[str, Path] = {}
        for name, extras in SETS.items():
            wanted = work / f"{name}.in"
            wanted.write_text("\n".join(_requirements(project, extras)) + "\n")
            found: dict[str, dict[str, Pin]] = {}
            for version, command in compilers.items():
                output = work / f"{name}-{version}.txt"
                _compile(command, wanted, output, settled.get(version))
                settled[version] = output
                found[version] = {pin.name: pin for pin in _parse(output.read_text())}
            (ROOT / "requirements" / f"{name}.txt").write_text(HEADER + _merge(found))
            print(f"wrote requirements/{name}.txt")


def _requirements(project: dict[str, dict[str, object]], extras: tuple[str, ...]) -> list[str]:
    table = project["project"]
    build = project["build-system"]["requires"]
    optional = table["optional-dependencies"]
    assert isinstance(build, list)
    assert isinstance(optional, dict)
    dependencies = table["dependencies"]
    assert isinstance(dependencies, list)
    return [*build, *dependencies, *(item for extra in extras for item in optional[extra])]


def _pip_compile(version: str, work: Path) -> list[str]:
    """Make an environment of this Python with pip-tools in it; return the command."""
    find = [str(ROOT / "tools" / "find_python.sh"), version]
    python = subprocess.run(find, check=False, capture_output=True, text=True).stdout.strip()
    if not python:
        sys.exit(f"make lock needs Python {version} (all of: {', '.join(PYTHONS)})")
    folder = work / f"venv-{version}"
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / "bin" / "python"
    subprocess.run([inside, "-m", "pip", "install", "--quiet", PIP_TOOLS], check=True)
    return [str(inside), "-m", "piptools", "compile"]


def _compile(command: list[str], wanted: Path, output: Path, earlier: Path | None) -> None:
    arguments = ["--quiet", "--generate-hashes", "--strip-extras", "--allow-unsafe"]
    arguments += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    arguments += ["--no-emit-trusted-host", "--no-emit-options", "--resolver=backtracking"]
    if earlier is not None:
        plain = earlier.with_suffix(".constraints")
        plain.write_text("".join(f"{pin.requirement}\n" for pin in _parse(earlier.read_text())))
        arguments += ["--constraint", str(plain)]
    subprocess.run([*command, *arguments, "--output-file", str(output), str(wanted)], check=True)


def _parse(text: str) -> list[Pin]:
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        if "==" not in line or line.lstrip().startswith("#"):
            continue
        requirement = line.split(" --hash", 1)[0].strip()
        pins.append(Pin(requirement, tuple(sorted(re.findall(r"--hash=(sha256:[0-9a-f]+)", line)))))
    return pins


def _merge(found: dict[str, dict[str, Pin]]) -> str:
    """Join what each Python resolved; a pin that not all share gets a marker."""
    blocks = []
    for name in sorted({name for pins in found.values() for name in pins}):
        users: dict[Pin, list[str]] = {}
        for version, pins in found.items():
            if name in pins:
                users.setdefault(pins[name], []).append(version)
        for pin, versions in users.items():
            line = pin.requirement
            if len(versions) < len(found):
                marker = " or ".join(f'python_version == "{version}"' for version in versions)
                base, _, own = line.partition(" ; ")
                line = f"{base} ; ({own}) and ({marker})" if own else f"{base} ; {marker}"
            hashes = "".join(f" \\\n    --hash={digest}" for digest in pin.hashes)
            blocks.append(f"{line}{hashes}\n")
    return "".join(blocks)


if __name__ == "__main__":
    main()
