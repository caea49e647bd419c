"""Finding and reading the configuration file, and what surrounds a command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rustray.cli import flags
from rustray.cli.load import Surroundings, load, state_dir
from rustray.cli.serve import settings_of
from rustray.cli.values import parse_address, parse_duration
from rustray.common.errors import ConfigError, UsageProblem

SECRET = "k3Jq9ZpL0vXw7RtB2nYc5HfGd8Ms1QaE4u"


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    """Return an empty working directory, home and environment."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    return Surroundings({}, tmp_path / "work", tmp_path / "home")


def with_env(around: Surroundings, **environ: str) -> Surroundings:
    """Return the same surroundings under an environment."""
    return Surroundings(environ, around.working_dir, around.home)


def put(path: Path, port: int) -> Path:
    """Write a file that sets the head's port."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[node]\nhead_port = {port}\n")
    return path


def test_the_file_is_looked_for_in_order(around: Surroundings):
    """Named file, RUSTRAY_CONFIG, ./config.toml, ./rustray.toml, the user's: the first wins."""
    assert load(around).config.node.head_port == 8000
    put(around.home / ".config/rustray/config.toml", 1)
    assert load(around).config.node.head_port == 1
    put(around.working_dir / "rustray.toml", 2)
    assert load(around).config.node.head_port == 2
    put(around.working_dir / "config.toml", 3)
    assert load(around).config.node.head_port == 3
    other = put(around.home / "other.toml", 4)
    named = with_env(around, RUSTRAY_CONFIG=str(other))
    assert load(named).config.node.head_port == 4
    put(around.working_dir / "flag.toml", 5)
    loaded = load(named, path="flag.toml")
    assert loaded.config.node.head_port == 5
    assert str(loaded.config.origin("node.head_port")) == "file flag.toml:2"


def test_somebody_elses_config_toml_is_left_alone(around: Surroundings):
    """A ./config.toml without a section of ours is skipped, with a note."""
    (around.working_dir / "config.toml").write_text("[database]\nurl = 'x'\n")
    put(around.working_dir / "rustray.toml", 2)
    loaded = load(around)
    assert loaded.config.node.head_port == 2
    assert "./config.toml" in loaded.notes[0]


def test_a_named_file_that_is_missing_is_an_error(around: Surroundings):
    """G1: neither --config nor RUSTRAY_CONFIG may name a file that is not there."""
    with pytest.raises(ConfigError, match=r"nope\.toml"):
        load(around, path="nope.toml")
    with pytest.raises(ConfigError, match=r"nope\.toml"):
        load(with_env(around, RUSTRAY_CONFIG="nope.toml"))
    with pytest.raises(ConfigError, match="empty"):
        load(with_env(around, RUSTRAY_CONFIG=""))


def test_what_is_not_a_file_is_refused_without_waiting(around: Surroundings):
    """Directories, pipes, NUL in the name and unreadable files are errors at once."""
    os.mkfifo(around.working_dir / "pipe")
    (around.working_dir / "dir").mkdir()
    for name in ("pipe", "dir", "a\0b", "/dev/zero"):
        with pytest.raises(ConfigError, match="configuration file"):
            load(around, path=name)


def test_a_sparse_giant_is_refused_by_its_size(around: Surroundings):
    """G5: a file of 1 GB is refused after its first MiB."""
    path = around.working_dir / "big.toml"
    with path.open("wb") as opened:
        opened.truncate(1 << 30)
    with pytest.raises(ConfigError, match="too big"):
        load(around, path="big.toml")


def test_a_readable_secret_is_noticed(around: Surroundings):
    """G8: a file with jwt_secret that others can read brings a warning."""
    path = around.working_dir / "rustray.toml"
    path.write_text(f'[security]\njwt_secret = "{SECRET}"\n')
    path.chmod(0o644)
    assert any("chmod 600" in note for note in load(around).notes)
    path.chmod(0o600)
    assert load(around).notes == ()


def test_a_placeholder_secret_is_refused_with_its_place(around: Surroundings):
    """A long but well-known secret is refused, and not repeated."""
    secret = "your-secret-key-change-me-in-production"
    (around.working_dir / "rustray.toml").write_text(f'[security]\njwt_secret = "{secret}"\n')
    with pytest.raises(ConfigError, match=r"rustray\.toml:2") as caught:
        load(around)
    assert secret not in str(caught.value)


def test_the_state_directory_follows_settings_then_the_user(around: Surroundings):
    """Setting, RUSTRAY_STATE_DIR, XDG_STATE_HOME, home: in this order."""
    assert state_dir(load(around).config, around) == around.home / ".local/state/rustray"
    named = with_env(around, RUSTRAY_STATE_DIR="~/s")
    assert state_dir(load(named).config, named) == around.home / "s"
    chosen = load(named, flags=settings_of("head", {"--state-dir": "rel"})).config
    assert state_dir(chosen, named) == around.working_dir / "rel"


GOOD_LINES = [
    ("head", [], {}),
    ("head", ["--port", "0", "--no-tls"], {"--port": "0", "--no-tls": "false"}),
    ("head", ["--port=1", "--port=2"], {"--port": "2"}),
    ("head", ["--json"], {"--json": "true"}),
    ("worker", ["--label", "a=1", "--label=b=2"], {"--label": "a=1,b=2"}),
    ("worker", ["--functions", "a,b", "--functions", "c"], {"--functions": "a,b,c"}),
    ("worker", ["--join", "@file", "--cpus", "-1"], {"--join": "@file", "--cpus": "-1"}),
]


@pytest.mark.parametrize(("command", "argv", "expected"), GOOD_LINES)
def test_a_plain_line_is_read_without_the_framework(command, argv, expected):
    """Well-formed flags of the long-lived commands need no framework."""
    assert flags.parse(command, argv) == expected


@pytest.mark.parametrize(
    "argv", [["--help"], ["--prot", "1"], ["--port"], ["--port", "--no-tls"], ["x"], ["--no-tls=1"]]
)
def test_anything_else_is_left_to_the_framework(argv):
    """Help and mistakes are not answered by the small reader."""
    assert flags.parse("head", argv) is None


def test_every_serving_flag_sets_a_setting_that_exists():
    """The flag tables and the settings agree."""
    from rustray.common.config import RULES

    for table in flags.TABLES.values():
        for flag in table:
            assert not flag.setting or flag.setting in RULES


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("1.5", 1.5), ("500ms", 0.5), ("5m", 300), ("1d", 86_400)]
)
def test_durations_have_units(text: str, seconds: float):
    """A duration is seconds, or a number with a unit."""
    assert parse_duration(text, "--ttl") == seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rustray://head.example:9000", "head.example:9000"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("head", "head:8000"),
        ("rustray://[::1]:8000/", "[::1]:8000"),
        ("[fe80::1]", "[fe80::1]:8000"),
    ],
)
def test_an_address_may_be_short(text: str, expected: str):
    """The scheme and the port may be left out."""
    assert parse_address(text, "--head") == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "http://head:8000", "https://head", ":8000", ":0", "head:0", "head:99999", "head:x",
        "::1", "::1:8000", "[::1", "höst:8000", "head:8000/path", "user@head:1", "a b:1", "-h:1",
        "head:8000\n", "head:٨٠٠٠", "rustray://", "h" * 300,
    ],
)  # fmt: skip
def test_a_bad_address_is_refused(text: str):
    """F3: other schemes, bad ports, IPv6 without brackets and strange hosts are usage errors."""
    with pytest.raises(UsageProblem, match="--head"):
        parse_address(text, "--head")
