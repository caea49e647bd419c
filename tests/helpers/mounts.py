"""File systems for a test that turn read-only, in mount namespaces of their own; all need root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IMAGE_MB = 64


def need_root_and(*tools: str) -> None:
    """Skip the test, and say why, where a namespace or a mount cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts")
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"there is no `{tool}` here")


def read_only_at(place: Path) -> tuple[str, ...]:
    """Return the command that starts a program for which a directory is mounted read-only.

    It has a mount namespace of its own, which ends with it: nobody else sees the mount.
    """
    need_root_and("unshare", "mount")
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    unshare = ("unshare", "--mount", "--propagation", "private")
    through = (*unshare, "sh", "-c", script, str(place))
    probe = subprocess.run([*through, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"cannot mount here: {probe.stderr.strip()[:200]}")
    return through


@contextmanager
def own_disk(place: Path) -> Iterator[Path]:
    """Mount a real file system of its own (ext4 in a file) at a directory, and unmount it."""
    need_root_and("mkfs.ext4", "mount", "umount")
    image = place.with_name(f"{place.name}.img")
    with image.open("wb") as file:
        file.truncate(_IMAGE_MB << 20)
    _try("mkfs.ext4", "-q", "-F", str(image))
    place.mkdir(mode=0o700, exist_ok=True)
    _mount(image, place)
    place.chmod(0o700)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fail_disk(place: Path) -> None:
    """Have the kernel give the file system up, as it does after an error of the disk.

    From then on it is read-only, also for those who have files open for writing.
    """
    subprocess.run(["mount", "-o", "remount,abort", str(place)], check=True, capture_output=True)


def repair_disk(place: Path) -> None:
    """Mount it anew, as after a restart of the machine."""
    subprocess.run(["umount", str(place)], check=True)
    _mount(place.with_name(f"{place.name}.img"), place)


def _mount(image: Path, place: Path) -> None:
    _try("mount", "-o", "loop", str(image), str(place))


def _try(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"{command[0]} is refused here: {answer.stderr.strip()[:200]}")
