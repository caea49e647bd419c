"""What of the client's disk travels: the same bytes for the same content, and clear refusals."""

from __future__ import annotations

import io
import json
import os
import socket
import zipfile
from pathlib import Path
from typing import Any

import pytest

import rustray
from rustray.client import packages
from rustray.client.options import check_options
from rustray.client.packages import is_ignored, pack_directory, pack_module
from rustray.client.runtime_envs import Packer, check_runtime_env, merged
from rustray.common.errors import PayloadError
from rustray.task.runtime_env import MAX_UNPACKED_BYTES, Package


def names(package: Package) -> list[str]:
    """List what is in a package."""
    with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
        return archive.namelist()


def make(root: Path, *files: str) -> Path:
    """Make a directory with these files; each holds its own name."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_the_same_content_is_the_same_package(tmp_path: Path) -> None:
    """Order of making, times and places do not matter; content, names and x bits do."""
    one = make(tmp_path / "one", "b.py", "a.py", "sub/c.txt")
    two = make(tmp_path / "two", "sub/c.txt", "a.py", "b.py")
    os.utime(two / "a.py", (1, 1))
    first, second = pack_directory("w", one), pack_directory("w", two)
    assert first == second
    assert names(first) == ["a.py", "b.py", "sub/c.txt"]
    (two / "a.py").chmod(0o755)
    assert pack_directory("w", two).digest != first.digest
    (two / "a.py").chmod(0o644)
    (two / "a.py").write_text("other")
    assert pack_directory("w", two).digest != first.digest


def test_what_is_ignored_stays_behind(tmp_path: Path) -> None:
    """By the file, by excludes, and always what is made anew everywhere."""
    root = make(
        tmp_path, "a.py", "data/big.bin", "log.txt", "x/log.txt", "x/__pycache__/a.pyc",
        ".git/HEAD", "build/a.py", "x/build", ".rustrayignore", "keep/only.csv", "only.csv",
    )  # fmt: skip
    (root / ".rustrayignore").write_text("# comment\n\ndata/\n*.txt\nbuild/\n")
    found = names(pack_directory("w", root, ["/only.csv"]))
    assert found == [".rustrayignore", "a.py", "keep/only.csv", "x/build"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_directory", "is_found"),
    [
        ("*.pyc", "a/b/c.pyc", False, True),
        ("data/", "data", False, False),
        ("data/", "a/data", True, True),
        ("/data", "a/data", False, False),
        ("/data", "data", False, True),
        ("a/*.bin", "a/x.bin", False, True),
        ("a/*.bin", "b/a/x.bin", False, False),
        ("x", "xy", False, False),
    ],
)
def test_patterns(pattern: str, path: str, is_directory: bool, is_found: bool) -> None:
    """Names anywhere, paths from the top, directories only."""
    assert is_ignored(path, is_directory, [pattern]) is is_found


def test_a_link_within_travels_as_what_it_points_to(tmp_path: Path) -> None:
    """A file is a file on the other side."""
    root = make(tmp_path / "w", "a.py")
    (root / "link.py").symlink_to("a.py")
    package = pack_directory("w", root)
    with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
        assert archive.read("link.py") == b"a.py"


def bad_socket(root: Path) -> None:
    """Leave a socket."""
    here = Path.cwd()
    os.chdir(root)  # its path may be too long for an address
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s")
    finally:
        os.chdir(here)


def bad_pipe(root: Path) -> None:
    """Leave a named pipe."""
    os.mkfifo(root / "p")


def bad_link_out(root: Path) -> None:
    """Leave a link to what is outside."""
    (root / "out").symlink_to("/etc/passwd")


def bad_link_up(root: Path) -> None:
    """Leave a link to a directory that holds it."""
    (root / "up").symlink_to(root)


def bad_link_to_nothing(root: Path) -> None:
    """Leave a link to nothing."""
    (root / "dangling").symlink_to("nothing")


def bad_name(root: Path) -> None:
    """Leave a file whose name is no UTF-8."""
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff"))).write_text("x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bad_socket, "is a socket, and cannot travel; leave it out by a line in .rustrayignore"),
        (bad_pipe, "is a pipe"),
        (bad_link_out, "is a link that points out of it, to '/etc/passwd'"),
        (bad_link_up, "is a link to no file"),
        (bad_link_to_nothing, "is a link to no file"),
        (bad_name, "has a name that is no UTF-8"),
    ],
)
def test_what_cannot_travel_is_named(spoil: Any, message: str, tmp_path: Path) -> None:
    """With its path and what to do; where it is left out, the rest travels."""
    root = make(tmp_path / "w", "a.py")
    spoil(root)
    with pytest.raises(PayloadError, match=message) as caught:
        Packer({"working_dir": root}).prepare(None)
    assert "working_dir" in str(caught.value)
    (bad,) = [each for each in os.listdir(root) if each != "a.py"]
    if bad.isprintable():
        assert names(pack_directory("w", root, [bad])) == ["a.py"]


def test_too_many_files_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The issue's 10^5 files, with a bound that a test can reach; and so for bytes."""
    root = make(tmp_path, *(f"{n}" for n in range(30)))
    monkeypatch.setattr(packages, "MAX_FILES", 29)
    with pytest.raises(PayloadError, match="has more than 29 files: it is for code"):
        pack_directory("working_dir", root)
    monkeypatch.setattr(packages, "MAX_FILES", 10_000)
    (root / "huge").touch()
    os.truncate(root / "huge", MAX_UNPACKED_BYTES + 1)
    with pytest.raises(PayloadError, match="takes more than 256 MiB: it is for code"):
        pack_directory("working_dir", root)
    (root / "huge").write_bytes(os.urandom(70_000))
    monkeypatch.setattr(packages, "MAX_PACKAGE_BYTES", 50_000)
    with pytest.raises(PayloadError, match="compressed: it is for code"):
        pack_directory("working_dir", root)


@pytest.mark.parametrize(
    ("runtime_env", "message"),
    [
        ({"working_dir": "/no/such/place"}, "does not exist"),
        ({"working_dir": __file__}, "is no directory"),
        ({"py_modules": ["/no/such/place"]}, "does not exist"),
        ({"py_modules": ["/dev/null"]}, "neither a directory nor a .py file"),
        ({"py_modules": [Any]}, "must be a list"),
        ({"working_dir": ".", "excludes": ["!a"]}, "is no pattern"),
        ({"pip": ["numpy"]}, "must map some of env_vars, working_dir, py_modules, excludes"),
        ({"env_vars": {"A": 5}}, "text to text"),
        ({"env_vars": {"A=B": "x"}}, "no variable"),
        ({"env_vars": {"A": "x\0"}}, "no variable"),
        ({"env_vars": {f"V{n}": "x" for n in range(300)}}, "300 env_vars"),
        ({"env_vars": {"A": "x" * 70_000}}, "take 70001 bytes"),
        ({"env_vars": {"A": "\udc80"}}, "no text that can travel"),
        ({"working_dir": ""}, "is the path of a directory"),
        ("working_dir", "must map"),
    ],
)
def test_a_bad_environment_is_refused_before_anything_is_sent(
    runtime_env: Any, message: str
) -> None:
    """By init for the job, before a cluster is started or a head is called."""
    with pytest.raises((ValueError, PayloadError), match=message):
        rustray.init("rustray://127.0.0.1:1", runtime_env=runtime_env)
    assert not rustray.is_initialized()


def test_options_are_checked_without_a_look_at_the_disk() -> None:
    """A decorator costs nothing; what is not there is found at the first use."""
    check_options({"runtime_env": {"working_dir": "/no/such/place"}})
    with pytest.raises(ValueError, match="runtime_env"):
        check_options({"runtime_env": {"conda": "x"}})


def test_a_task_lays_its_environment_over_the_jobs() -> None:
    """Variables add up, the rest replaces."""
    job = {"env_vars": {"A": "1", "B": "2"}, "working_dir": "x"}
    task = {"env_vars": {"B": "3"}, "working_dir": "y", "py_modules": ["m"]}
    assert merged(job, task) == {
        "env_vars": {"A": "1", "B": "3"}, "working_dir": "y", "py_modules": ["m"],
    }  # fmt: skip
    assert merged(None, None) == {}
    assert Packer().prepare(None) == (None, ())
    check_runtime_env(None)


def test_a_directory_is_packed_once(tmp_path: Path) -> None:
    """What changes on disk later is not seen; a module that is imported is found by its file."""
    root = make(tmp_path / "w", "a.py")
    packer = Packer({"working_dir": root})
    env, (package,) = packer.prepare({"env_vars": {"A": "1"}})
    assert env is not None
    assert (env.env_vars, env.working_dir) == ((("A", "1"),), package.digest)
    make(root, "b.py")
    assert packer.prepare({"env_vars": {"A": "1"}})[0] == env
    assert packer.prepare({"env_vars": {"A": "2"}})[0] != env
    module, (one,) = Packer().prepare({"py_modules": [json]})
    assert module is not None
    assert "json/decoder.py" in names(one)
    assert names(pack_module("m", root / "a.py")) == ["a.py"]
    assert names(pack_module("m", root)) == ["w/a.py", "w/b.py"]
