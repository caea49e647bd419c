"""Packages on a worker's disk: kept, unpacked within their place only, removed."""

from __future__ import annotations

import stat
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from rustray.client.packages import pack_directory
from rustray.task.runtime_env import Package
from rustray.worker import package_store
from rustray.worker.package_store import BadPackage, PackageStore, unpacked


def packed(*members: tuple[str | zipfile.ZipInfo, bytes]) -> Package:
    """Make a package that no client of ours would."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    content = buffer.getvalue()
    return Package(sha256(content).digest(), content)


def kept(store: PackageStore, package: Package) -> Path:
    """Keep and unpack a package."""
    store.keep(*package)
    return unpacked(Path(store.path), package.digest.hex())


def test_a_package_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """Content and x bits; once, whoever asks; and nothing stays in the end."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/run.sh").write_text("echo")
    (source / "sub/run.sh").chmod(0o755)
    (source / "a.py").write_bytes(b"x" * 3_000_000)
    store = PackageStore(tmp_path / "packages", "w-1")
    assert store.path == ""
    package = pack_directory("w", source)
    root = kept(store, package)
    assert (root / "a.py").read_bytes() == b"x" * 3_000_000
    assert (root / "sub/run.sh").stat().st_mode & stat.S_IXUSR
    assert kept(store, package) == root
    other = kept(store, packed(("b.py", b"b")))
    store.drop(package.digest)
    assert not root.exists()
    assert other.exists()
    store.close()
    assert list((tmp_path / "packages").iterdir()) == []


def link(name: str) -> zipfile.ZipInfo:
    """Make a member that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "package",
    [
        packed(("../out", b"x")),
        packed(("a/../../out", b"x")),
        packed(("/etc/out", b"x")),
        packed(("a//b", b"x")),
        packed(("./a", b"x")),
        packed(("d/", b"")),
        packed((link("a"), b"/etc"), ("a/out", b"x")),
        Package(b"h" * 32, b"no zip file at all"),
        Package(b"i" * 32, packed(("a", b"x" * 1000)).content[:-30]),
    ],
)
def test_nothing_leads_out_of_its_place(package: Package, tmp_path: Path) -> None:
    """Whatever a peer sends: no file is made elsewhere, no link, and half of it is not left."""
    store = PackageStore(tmp_path / "packages", "w-1")
    with pytest.raises(BadPackage):
        kept(store, package)
    left = {each.name for each in Path(store.path).iterdir() if each.suffix != ".zip"}
    assert not [name for name in left if not name.startswith(".") and name != "lock"], left
    assert not (tmp_path / "out").exists()
    store.close()


def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what comes out, not by what the package says of itself."""
    monkeypatch.setattr(package_store, "MAX_UNPACKED_BYTES", 1_000_000)
    store = PackageStore(tmp_path / "packages", "w-1")
    with pytest.raises(BadPackage, match="takes more than"):
        kept(store, packed(("a", bytes(600_000)), ("b", bytes(600_000))))
    monkeypatch.setattr(package_store, "MAX_FILES", 3)
    with pytest.raises(BadPackage, match="more than 3 files"):
        kept(store, packed(*((f"{n}", b"") for n in range(4))))
    with pytest.raises(FileNotFoundError):
        unpacked(Path(store.path), "00" * 32)
    store.close()


def test_without_a_directory_it_is_a_temporary_one() -> None:
    """As for the embedded cluster."""
    store = PackageStore("", "w-1")
    root = kept(store, packed(("b.py", b"b")))
    assert (root / "b.py").read_bytes() == b"b"
    store.close()
    assert not root.parent.parent.exists()
