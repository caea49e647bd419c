"""Plant known bugs, and demand that the tests notice: tests/planted/*.toml.

Usage: ``make planted``; ``tools/planted_bugs.py [--quick] [--check] [NAME ...]``.

A bug is a set of edits of our source, each of a text that is found exactly once. Each is made in a
copy of the project, and the tests that the file names are run there: they must be green without
the edits, and every one of them red with them. ``--quick`` runs the fastest of each bug, without
the run before; ``--check`` only looks whether the edits still apply.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLANTED = ROOT / "tests" / "planted"
COPIED = ("src", "tests", "docs", "pyproject.toml", "README.md")
LIMIT_S = 600


class PlantError(Exception):
    """A bug that cannot be planted, or that no test has noticed."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A text of a file, and what takes its place."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Make the edit in a copy of the project.

        Raises:
            PlantError: the text is not there exactly once.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = text.count(self.old)
        if not self.old or found != 1:
            raise PlantError(
                f"its text is in {self.file} {found} times and not once; the source has changed: "
                f"write the edit anew\n{self.old.strip()}"
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Bug:
    """One file of tests/planted.

    Attributes:
        name: Of the file, e.g. "b1_ack_before_commit".
        kills: Tests that must fail with it.
        quick: The fastest of them.
    """

    name: str
    title: str
    edits: tuple[Edit, ...]
    kills: tuple[str, ...]
    quick: str


def load(path: Path) -> Bug:
    """Read a bug.

    Raises:
        PlantError: the file lacks something.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        edits = tuple(Edit(one["file"], one["old"], one["new"]) for one in found["edit"])
        bug = Bug(path.stem, found["title"], edits, tuple(found["kills"]), found["quick"])
    except (KeyError, tomllib.TOMLDecodeError) as error:
        raise PlantError(f"{path.name} cannot be read: {error!r}") from error
    if bug.quick not in bug.kills:
        raise PlantError(f"{path.name}: quick is not one of kills")
    return bug


def load_all(names: list[str]) -> list[Bug]:
    """Read the bugs of these names, or all.

    Raises:
        PlantError: there is none of a name, or a file is not right.
    """
    paths = sorted(PLANTED.glob("*.toml"))
    chosen = [path for path in paths if not names or any(path.stem.startswith(n) for n in names)]
    if not chosen:
        raise PlantError(f"no bug of these names; there are: {', '.join(p.stem for p in paths)}")
    return [load(path) for path in chosen]


def copy_project(target: Path) -> Path:
    """Copy what tests need of the project."""
    target.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy2(source, target / name)
    return target


def failing(project: Path, tests: tuple[str, ...]) -> set[str]:
    """Run tests in a copy of the project; returns those that failed.

    Raises:
        PlantError: one of them was not run.
    """
    report = project / "report.xml"
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",
        f"--junit-xml={report}", *tests,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    answer = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    if answer.returncode not in (0, 1) or not report.is_file():
        raise PlantError(f"the tests could not be run:\n{answer.stdout[-3000:]}{answer.stderr}")
    ran: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        ran[name] = any(child.tag in ("failure", "error") for child in case)
    missing = [test for test in tests if not any(_is_of(name, test) for name in ran)]
    if missing:
        raise PlantError(f"these tests were not run: {', '.join(missing)}")
    return {test for test in tests if any(ran[name] for name in ran if _is_of(name, test))}


def _is_of(name: str, test: str) -> bool:
    return name == test or name.startswith(f"{test}[")


def plant(bug: Bug, folder: Path, tests: tuple[str, ...]) -> None:
    """Plant one bug and run the tests that must notice.

    Raises:
        PlantError: it does not apply, or one of them stays green.
    """
    project = copy_project(folder / bug.name)
    for edit in bug.edits:
        edit.apply(project)
    survived = [test for test in tests if test not in failing(project, tests)] if tests else []
    if survived:
        raise PlantError(f"nobody noticed it in: {', '.join(survived)}")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of the bugs' names")
    parser.add_argument("--quick", action="store_true", help="run the fastest test of each only")
    parser.add_argument("--check", action="store_true", help="only look whether the edits apply")
    options = parser.parse_args()
    failures = 0
    try:
        bugs = load_all(options.names)
        with tempfile.TemporaryDirectory(prefix="rustray-planted-") as name:
            folder = Path(name)
            if not (options.quick or options.check):
                _be_green(bugs, folder)
            for bug in bugs:
                tests = () if options.check else (bug.quick,) if options.quick else bug.kills
                failures += not _judge(bug, folder, tests)
    except PlantError as error:
        print(f"planted: {error}", file=sys.stderr)
        return 2
    return 1 if failures else 0


def _be_green(bugs: list[Bug], folder: Path) -> None:
    """Run all tests without any bug.

    Raises:
        PlantError: one fails.
    """
    tests = tuple(dict.fromkeys(test for bug in bugs for test in bug.kills))
    red = failing(copy_project(folder / "sound"), tests)
    if red:
        raise PlantError(f"these fail without any bug: {', '.join(sorted(red))}")
    print(f"planted: {len(tests)} tests are green without any bug")


def _judge(bug: Bug, folder: Path, tests: tuple[str, ...]) -> bool:
    began = time.monotonic()
    try:
        plant(bug, folder, tests)
    except PlantError as error:
        print(f"planted: {bug.title}: {error}", file=sys.stderr)
        return False
    if tests:
        seconds = time.monotonic() - began
        print(f"planted: {bug.title}: red in all of {len(tests)} tests ({seconds:.1f} s)")
    return True


if __name__ == "__main__":
    sys.exit(main())
