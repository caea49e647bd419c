"""Settings: precedence, provenance, and group G of the bad-input corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from rustray.common.config import RULES, Flag, describe, mentions_rustray, resolve
from rustray.common.errors import ConfigError
from rustray.common.settings import STRATEGIES
from rustray.common.toml_file import MAX_FILE_BYTES, parse_toml
from rustray.head.config import HeadConfig, Listen, Security
from rustray.scheduler import load_balancer

GOOD_SECRET = "9f2c7d41e8b35a60c4d1f7820b9e6a35d8c1"


def from_file(text: str | bytes, **env: str):
    """Resolve a file's text under an environment."""
    return resolve(file=parse_toml(text, "rustray.toml"), env=env)


def test_the_documented_keys_have_the_documented_defaults():
    """With nothing said, the defaults are those of the design."""
    config = resolve()
    assert (config.node.address, config.node.head_port, config.node.worker_port) == (
        "127.0.0.1",
        8000,
        8001,
    )
    assert config.security.token_expiration == 3600
    assert (config.security.tls, config.security.auth) == (True, True)
    assert (config.scheduler.strategy, config.scheduler.max_retries) == ("LeastLoaded", 3)
    assert config.scheduler.max_payload_bytes == 16 * 1024 * 1024
    assert {str(origin) for origin in config.origins.values()} == {"default"}


def test_flag_beats_environment_beats_file_beats_default():
    """Each source overrides the next, and the origin of each value is kept."""
    file = parse_toml(
        "[node]\nhead_port = 1\nworker_port = 2\naddress = '::1'\n", "/etc/rustray.toml"
    )
    config = resolve(
        file=file,
        env={"RUSTRAY_NODE__HEAD_PORT": "3", "RUSTRAY_NODE__WORKER_PORT": "4"},
        flags={"node.head_port": Flag("--port", "5")},
    )
    assert (config.node.head_port, config.node.worker_port, config.node.address) == (5, 4, "::1")
    assert str(config.origin("node.head_port")) == "flag --port"
    assert str(config.origin("node.worker_port")) == "env RUSTRAY_NODE__WORKER_PORT"
    assert str(config.origin("node.address")) == "file /etc/rustray.toml:4"
    assert str(config.origin("node.state_dir")) == "default"


def test_the_state_directory_has_a_short_variable_below_the_long_one():
    """RUSTRAY_STATE_DIR works, and RUSTRAY_NODE__STATE_DIR wins over it."""
    assert resolve(env={"RUSTRAY_STATE_DIR": "/a"}).node.state_dir == "/a"
    both = {"RUSTRAY_STATE_DIR": "/a", "RUSTRAY_NODE__STATE_DIR": "/b"}
    assert resolve(env=both).node.state_dir == "/b"


def test_every_kind_of_value_can_come_from_the_environment():
    """Numbers, switches, lists and tables have a text form."""
    config = resolve(
        env={
            "RUSTRAY_SECURITY__TLS": "Off",
            "RUSTRAY_SCHEDULER__LEASE_TTL_S": "7.5",
            "RUSTRAY_WORKER__FUNCTIONS": "a.b, c",
            "RUSTRAY_WORKER__LABELS": "zone=a,disk=ssd",
            "RUSTRAY_WORKER__RESOURCES": "licences=2,beam=0.5",
        }
    )
    assert config.security.tls is False
    assert config.scheduler.lease_ttl_s == 7.5
    assert config.worker.functions == ("a.b", "c")
    assert config.worker.labels == {"zone": "a", "disk": "ssd"}
    assert config.worker.resources == {"licences": 2, "beam": 0.5}


def test_a_file_may_take_a_value_from_the_environment():
    """${NAME} stands for a variable, so that a secret need not stand in the file."""
    config = from_file('[security]\njwt_secret = "${JWT}"\n', JWT=GOOD_SECRET)
    assert config.security.jwt_secret == GOOD_SECRET


def test_secrets_are_never_shown():
    """The list for display carries a secret's origin, not its value."""
    config = from_file(f'[security]\njwt_secret = "{GOOD_SECRET}"\n')
    shown = {setting.name: setting for setting in describe(config)}
    assert list(shown) == list(RULES)
    assert shown["security.jwt_secret"].value == "********"
    assert str(shown["security.jwt_secret"].origin) == "file rustray.toml:2"
    assert GOOD_SECRET not in repr(list(shown.values()))


BAD_FILES = [
    pytest.param("[node]\nhead_prt = 1\n", ["head_prt", "rustray.toml:2", "'head_port'"], id="G2"),
    pytest.param("[nod]\nhead_port = 1\n", ["[nod]", "rustray.toml:1", "[node]"], id="G2-section"),
    pytest.param("[zebra]\n", ["[zebra]", "scheduler"], id="G2-no-near-miss"),
    pytest.param("strategy = 'Random'\n", ["strategy", "[scheduler]"], id="G2-outside"),
    pytest.param("[node]\nstrategy = 'Random'\n", ["strategy", "[scheduler]"], id="G2-elsewhere"),
    pytest.param("node = 3\n", ["[node]", "rustray.toml:1", "section"], id="G2-section-is-value"),
    pytest.param(
        "[node]\nhead_port = 1\nhead_port = 2\n", ["rustray.toml:3", "twice"], id="G3-key"
    ),
    pytest.param("[node]\n[node]\n", ["rustray.toml:2", "twice"], id="G3-section"),
    pytest.param(
        '[node]\nhead_port = "8"\n', ["node.head_port", ":2", "text", "0 to 65535"], id="G4-text"
    ),
    pytest.param("[node]\nhead_port = true\n", ["node.head_port", "switch"], id="G4-bool-for-int"),
    pytest.param("[node]\nhead_port = 8.0\n", ["node.head_port", "whole number"], id="G4-float"),
    pytest.param("[node]\naddress = 8\n", ["node.address", "text"], id="G4-int-for-text"),
    pytest.param("[node]\naddress = ''\n", ["node.address", "empty"], id="G4-empty"),
    pytest.param("[security]\ntls = 1\n", ["security.tls", "true or false"], id="G4-int-for-bool"),
    pytest.param("[security]\ntls = 'no'\n", ["security.tls", "true or false"], id="G4-text-bool"),
    pytest.param("[worker]\nfunctions = 'a'\n", ["worker.functions", "list"], id="G4-list"),
    pytest.param("[worker]\nfunctions = [1]\n", ["worker.functions", "list"], id="G4-list-item"),
    pytest.param("[worker]\nlabels = {a = 1}\n", ["worker.labels", "a=1"], id="G4-label"),
    pytest.param("[worker]\nresources = {a = -1}\n", ["worker.resources", "a=-1"], id="G4-amount"),
    pytest.param("[worker]\nresources = 3\n", ["worker.resources", "table"], id="G4-table"),
    pytest.param("[worker]\nname = 2020-01-01\n", ["worker.name", "date"], id="G4-date"),
    pytest.param("[node\n", ["rustray.toml:1", "not valid TOML"], id="G5-invalid"),
    pytest.param('[node]\naddress = "x', ["rustray.toml:2", "not valid TOML"], id="G5-end"),
    pytest.param(b"\xef\xbb\xbf[node]\n", ["byte order mark"], id="G5-bom"),
    pytest.param(b"\xff\xfe[\x00n\x00", ["UTF-16"], id="G5-utf16"),
    pytest.param(b"[node]\n\x80\x81", ["rustray.toml:2", "UTF-8"], id="G5-binary"),
    pytest.param(b"[node]\n# \0", ["rustray.toml:2", "NUL"], id="G5-nul"),
    pytest.param(b"#" * (MAX_FILE_BYTES + 1), ["too big"], id="G5-huge"),
    pytest.param("a = " + "[" * 50_000, ["nested"], id="G5-deep"),
    pytest.param("[node]\nhead_port = " + "1" * 5_000, ["not valid TOML"], id="G5-digits"),
    pytest.param("include = ['a.toml']\n", ["include", "outside"], id="G6"),
    pytest.param("[scheduler]\nmax_pending_tasks = 0\n", ["max_pending_tasks", "1 to"], id="G13-0"),
    pytest.param("[scheduler]\nlease_ttl_s = -1\n", ["lease_ttl_s", "out of range"], id="G13-neg"),
    pytest.param("[scheduler]\nlease_ttl_s = nan\n", ["lease_ttl_s", "finite"], id="G13-nan"),
    pytest.param("[scheduler]\nlease_ttl_s = inf\n", ["lease_ttl_s", "finite"], id="G13-inf"),
    pytest.param(
        "[scheduler]\nlease_ttl_s = 3\n", ["heartbeat_interval_s", "default", ":2"], id="G13-order"
    ),
    pytest.param(
        "[scheduler]\nresult_memory_mb = 1\n", ["max_payload_bytes", "more than"], id="G13-memory"
    ),
    pytest.param("[node]\nhead_port = 65536\n", ["65536", "0 to 65535"], id="G13-port"),
    pytest.param("[scheduler]\nresult_ttl_s = 0\n", ["result_ttl_s", "1 to"], id="G14"),
    pytest.param("[node]\naddress = '${NOPE}'\n", ["node.address", "${NOPE}", "not set"], id="G15"),
    pytest.param("[node]\naddress = '${EMPTY}'\n", ["${EMPTY}", "empty"], id="G15-empty"),
    pytest.param("[scheduler]\nstrategy = 'least_loaded'\n", ["'LeastLoaded'"], id="strategy-case"),
    pytest.param("[scheduler]\nstrategy = 'Zebra'\n", ["Zebra", "BinPack"], id="strategy"),
    pytest.param('[node]\naddress = "a\\u001b[31m"\n', ["node.address", "\\x1b"], id="escape"),
]


@pytest.mark.parametrize(("text", "expected"), BAD_FILES)
def test_a_bad_file_is_refused_with_key_place_and_range(text: str | bytes, expected: list[str]):
    """Each bad file is a ConfigError that names what is wrong, where, and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        from_file(text, EMPTY="")
    message = str(caught.value)
    assert all(part in message for part in expected), message
    assert "\x1b" not in message
    assert "\0" not in message


BAD_ENV = [
    pytest.param("RUSTRAY_NODE__HEAD_PORT", "", ["set but empty", "0 to 65535"], id="G7-empty"),
    pytest.param("RUSTRAY_NODE__ADDRESS", "", ["set but empty"], id="G7-empty-text"),
    pytest.param("RUSTRAY_STATE_DIR", "", ["set but empty"], id="G7-empty-single"),
    pytest.param("RUSTRAY_NODE__HEAD_PORT", "abc", ["RUSTRAY_NODE__HEAD_PORT"], id="G7-text"),
    pytest.param("RUSTRAY_NODE__HEAD_PORT", "٨٠", ["node.head_port"], id="G7-arabic-digits"),
    pytest.param("RUSTRAY_NODE__HEAD_PORT", "1_0", ["node.head_port"], id="G7-underscore"),
    pytest.param("RUSTRAY_NODE__HEAD_PORT", "1" * 5000, ["node.head_port"], id="G7-digits"),
    pytest.param("RUSTRAY_NODE__HEAD_PORT", "0x10", ["node.head_port"], id="G7-hex"),
    pytest.param("RUSTRAY_SECURITY__TLS", "maybe", ["true or false"], id="G7-switch"),
    pytest.param("RUSTRAY_SCHEDULER__LEASE_TTL_S", "nan", ["lease_ttl_s"], id="G7-nan"),
    pytest.param("RUSTRAY_SCHEDULER__LEASE_TTL_S", "1e400", ["lease_ttl_s"], id="G7-overflow"),
    pytest.param("RUSTRAY_WORKER__LABELS", "zone", ["worker.labels", "K=V"], id="G7-labels"),
    pytest.param("RUSTRAY_WORKER__LABELS", "a=1,a=2", ["worker.labels"], id="G7-label-twice"),
    pytest.param("RUSTRAY_WORKER__RESOURCES", "a=x", ["worker.resources"], id="G7-amounts"),
    pytest.param("RUSTRAY_WORKER__FUNCTIONS", "a,,b", ["worker.functions"], id="G7-names"),
    pytest.param("RUSTRAY_NODE__PROT", "1", ["RUSTRAY_NODE__PROT"], id="G7-unknown"),
    pytest.param("RUSTRAY_NODE__HEAD_PRT", "1", ["RUSTRAY_NODE__HEAD_PORT?"], id="G7-near"),
    pytest.param("RUSTRAY_node__head_port", "1", ["RUSTRAY_NODE__HEAD_PORT?"], id="G7-case"),
    pytest.param("RUSTRAY_ADRESS", "x", ["RUSTRAY_ADDRESS?"], id="G7-single"),
]


@pytest.mark.parametrize(("variable", "text", "expected"), BAD_ENV)
def test_a_bad_variable_is_refused_by_name(variable: str, text: str, expected: list[str]):
    """Junk, emptiness and unknown names in the environment are errors, never defaults."""
    with pytest.raises(ConfigError) as caught:
        resolve(env={variable: text})
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_variables_that_others_set_are_left_alone():
    """Kubernetes' service variables and the known short ones are no settings."""
    resolve(
        env={
            "RUSTRAY_PORT": "tcp://10.0.0.1:8000",
            "RUSTRAY_SERVICE_HOST": "10.0.0.1",
            "RUSTRAY_TOKEN": "x",
            "RUSTRAY_TOKEN_FILE": "y",
            "HOME": "/nowhere",
        }
    )


BAD_SECRETS = [("short-one-with-an-odd-word", "26 bytes"), ("", "empty")]


@pytest.mark.parametrize(("secret", "reason"), BAD_SECRETS)
def test_a_guessable_secret_is_refused_and_not_repeated(secret: str, reason: str):
    """A short or empty secret is refused; the message keeps it to itself."""
    with pytest.raises(ConfigError, match=reason) as caught:
        from_file(f'[security]\njwt_secret = "{secret}"\n')
    assert not secret or secret not in str(caught.value)


def test_a_secret_of_the_wrong_type_is_not_repeated():
    """Even a number given as the secret stays out of the message."""
    with pytest.raises(ConfigError) as caught:
        from_file("[security]\njwt_secret = 1234567890123456\n")
    assert "1234567890123456" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("[node]\n", True), ("[nod]\n", True), ("[database]\nurl='x'\n", False)],
)
def test_a_file_with_a_common_name_may_be_somebody_elses(text: str, expected: bool):
    """A config.toml without a section of ours, or nearly so, is not for us."""
    assert mentions_rustray(parse_toml(text, "config.toml")) is expected


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "head.example"])
@pytest.mark.parametrize(("tls", "auth"), [(False, True), (True, False), (False, False)])
def test_an_open_bind_without_tls_and_auth_is_refused(address: str, tls: bool, auth: bool):
    """F15: other machines get in only with TLS and tokens on."""
    with pytest.raises(ConfigError, match="from other machines"):
        HeadConfig(Path("/x"), Listen(address), Security(tls=tls, auth=auth))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_may_go_without_tls(address: str):
    """On loopback TLS and tokens can be turned off."""
    HeadConfig(Path("/x"), Listen(address), Security(tls=False, auth=False))


def test_the_head_gets_its_part_of_the_settings():
    """HeadConfig carries each value to its place, and its repr keeps the secret to itself."""
    config = resolve(
        env={
            "RUSTRAY_SECURITY__JWT_SECRET": GOOD_SECRET,
            "RUSTRAY_SCHEDULER__STRATEGY": "Spread",
            "RUSTRAY_SCHEDULER__MAX_RETRIES": "-1",
            "RUSTRAY_NODE__HEAD_PORT": "0",
        }
    )
    head = HeadConfig.from_config(config, Path("/state"))
    assert (head.listen.port, head.scheduling.strategy, head.scheduling.max_retries) == (
        0,
        "Spread",
        -1,
    )
    assert head.security.jwt_secret == GOOD_SECRET
    assert head.state_dir == Path("/state")
    assert GOOD_SECRET not in repr(head)


def test_head_config_has_the_defaults_of_the_settings():
    """A HeadConfig made by hand equals one made from no settings at all."""
    assert HeadConfig.from_config(resolve(), Path("/s")) == HeadConfig(Path("/s"))


def test_the_settings_name_every_strategy_of_the_balancer():
    """What the file may name and what the scheduler offers are the same eight."""
    assert set(STRATEGIES) == set(load_balancer.STRATEGIES)
