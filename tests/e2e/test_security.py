"""Who gets in, and how far: over real sockets, from the first start on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster, Node, joined
from helpers.waiting import aeventually, eventually
from rustray.common.errors import RustRayError
from rustray.proto.rustray.v1 import worker_pb2
from rustray.rpc.grpcio import grpc
from rustray.security.bind import is_loopback
from rustray.security.certificates import load_server_identity
from rustray.security.enrollment import worker_host
from rustray.security.roles import WORKER_SERVICE
from rustray.security.state_dir import StateDir

pytestmark = pytest.mark.slow

_SECRET = "q7Zt0p9Wc3Xv5Bn1Mk8Lj2Hg4Fd6Sa-rYeUiOoPx"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head as it starts by itself, and one worker that joined without a flag."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_head()
        cluster.start_worker("local", cpus=1)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        yield cluster


@pytest.fixture
def ca_file(cluster: Cluster) -> Path:
    """The authority that a client on another machine was given."""
    return cluster.state_dir / "ca.pem"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The state directory of another machine: it knows no head."""
    return tmp_path / "elsewhere"


def _token(cluster: Cluster, role: str, *flags: str) -> str:
    token = cluster.json("token", "create", "--role", role, *flags)["token"]
    assert isinstance(token, str)
    return token


def test_a_head_listens_on_loopback_alone(cluster: Cluster) -> None:
    """Without a flag, neither head nor worker can be reached from another machine."""
    for node in (cluster.head, cluster.workers["local"]):
        assert node is not None
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(node.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 1
        assert is_loopback(listening[0].removeprefix("::ffff:"))


@pytest.mark.parametrize("flag", ["--no-tls", "--no-auth"])
def test_an_open_head_for_others_is_refused(cluster: Cluster, tmp_path: Path, flag: str) -> None:
    """Other machines are let near neither without TLS nor without tokens: exit code 2, and why."""
    answer = cluster.run(
        "head", "--port", "0", "--address", "0.0.0.0", flag, state_dir=tmp_path / "new"
    )
    assert answer.returncode == 2
    assert "0.0.0.0" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_secrets_are_the_owners_alone(cluster: Cluster) -> None:
    """The state directory has mode 0700, and each file in it 0600."""
    assert cluster.state_dir.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in cluster.state_dir.iterdir()}
    assert {name: mode for name, mode in modes.items() if mode != 0o600} == {}
    assert "admin.token" in modes


def test_plaintext_to_the_tls_port_is_explained(cluster: Cluster, elsewhere: Path) -> None:
    """A client that knows no authority is told what to do: exit code 3, and the head lives on."""
    answer = cluster.run("status", "--head", cluster.address, state_dir=elsewhere)
    assert answer.returncode == 3, answer.stderr
    assert "TLS" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert cluster.json("status")["workers"]


def test_another_authority_is_not_believed(
    cluster: Cluster, tmp_path: Path, elsewhere: Path
) -> None:
    """A client that trusts another CA does not talk to this head, and says what is wrong."""
    other = StateDir(tmp_path / "other")
    other.create()
    load_server_identity(other, ["127.0.0.1"], time.time())
    answer = cluster.run(
        "status",
        "--head",
        cluster.address,
        state_dir=elsewhere,
        RUSTRAY_CA_FILE=str(other.path / "ca.pem"),
        RUSTRAY_TOKEN=_token(cluster, "admin"),
    )
    assert answer.returncode == 3, answer.stderr
    assert "certificate" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("token", [None, "garbage", "a.b.c", "eyJhbGciOiJub25lIn0.e30."])
def test_without_a_good_token_nobody_gets_in(
    cluster: Cluster, ca_file: Path, elsewhere: Path, token: str | None
) -> None:
    """No token and tokens that are none lead to exit code 4."""
    env = {"RUSTRAY_CA_FILE": str(ca_file)}
    if token is not None:
        env["RUSTRAY_TOKEN"] = token
    answer = cluster.run("status", "--head", cluster.address, state_dir=elsewhere, **env)
    assert answer.returncode == 4, answer.stderr
    assert "Traceback" not in answer.stderr


def test_code_takes_a_token_that_allows_code(cluster: Cluster, ca_file: Path) -> None:
    """The submit role runs registered functions; a lambda takes --allow-code as well."""
    for flags, is_allowed in ((), False), (("--allow-code",), True):
        token = _token(cluster, "submit", *flags)
        with rustray.init(cluster.address, token=token, ca_file=ca_file):
            ref = rustray.remote(lambda x: x + 1).remote(41)
            if is_allowed:
                assert rustray.get(ref, timeout=20) == 42
                continue
            with pytest.raises(rustray.AuthorizationError, match="allow-code"):
                rustray.get(ref, timeout=20)


async def test_roles_reach_as_far_as_they_say(cluster: Cluster, ca_file: Path) -> None:
    """The submit role hands in registered functions, observe only looks."""
    spec = rustray.TaskSpec("add", [1, 2])
    submit = cluster.head_node(_token(cluster, "submit"), ca_file=ca_file)
    observe = cluster.head_node(_token(cluster, "observe"), ca_file=ca_file)
    async with submit, observe:
        task_id = await submit.submit_task(spec)
        result = await observe.get_task_result(task_id, 20)
        assert result is not None
        assert result.unwrap() == 3
        assert await observe.list_workers()
        with pytest.raises(rustray.AuthorizationError, match="observe"):
            await observe.submit_task(spec)
        with pytest.raises(rustray.AuthorizationError, match="observe"):
            await observe.cancel_task(task_id)
        with pytest.raises(rustray.AuthorizationError, match="submit"):
            await submit.drain_worker(cluster.workers["local"].node_id)


def test_a_worker_elsewhere_joins_with_one_string(cluster: Cluster, elsewhere: Path) -> None:
    """`token create --role worker` prints all that a machine needs that knows nothing."""
    made = cluster.run("token", "create", "--role", "worker")
    assert made.returncode == 0, made.stderr
    node = cluster.start_worker(
        "remote", "--join", made.stdout.strip(), "--label", "zone=far", state_dir=elsewhere, cpus=1
    )

    def is_there() -> bool:
        workers = cluster.json("workers", "list")["workers"]
        return node.node_id in [worker["worker_id"] for worker in workers]

    try:
        eventually(is_there, 20)
        with cluster.session():
            where = rustray.remote(functions.process_id).options(labels={"zone": "far"})
            assert rustray.get(where.remote(), timeout=20) in node.executor_pids()
        assert _ask_directly(cluster, node, "admin", "worker").worker_id == node.node_id
        with pytest.raises(grpc.RpcError) as refused:  # a token for the head, which it could keep
            _ask_directly(cluster, node, "admin", "head")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        node.end()


def _ask_directly(cluster: Cluster, node: Node, role: str, audience: str) -> Any:
    """Call GetStatus of a worker on another machine, as a program of any language would."""
    workers = cluster.json("workers", "list")["workers"]
    address = next(each["address"] for each in workers if each["worker_id"] == node.node_id)
    token = _token(cluster, role, "--audience", audience)
    credentials = grpc.ssl_channel_credentials((cluster.state_dir / "ca.pem").read_bytes())
    name = (("grpc.ssl_target_name_override", worker_host(node.node_id)),)
    with grpc.secure_channel(address, credentials, name) as channel:
        call = channel.unary_unary(
            WORKER_SERVICE + "GetStatus",
            worker_pb2.WorkerStatusRequest.SerializeToString,
            worker_pb2.WorkerStatusResponse.FromString,
        )
        return call(
            worker_pb2.WorkerStatusRequest(),
            timeout=20,
            metadata=(("authorization", f"Bearer {token}"),),
        )


def test_a_worker_elsewhere_is_not_let_in_with_less(cluster: Cluster, elsewhere: Path) -> None:
    """A submit token makes no worker: exit code 4, no endless knocking."""
    answer = cluster.run(
        "worker", "--head", cluster.address, "--port", "0",
        RUSTRAY_TOKEN=_token(cluster, "submit"),
    )  # fmt: skip
    assert answer.returncode == 4, answer.stderr
    assert "worker" in answer.stderr


def test_a_second_head_is_told_so(cluster: Cluster, tmp_path: Path) -> None:
    """One head a state directory, and one a port: the second exits with 2 and names the reason."""
    same_files = cluster.run("head", "--port", "0")
    assert same_files.returncode == 2
    assert str(cluster.state_dir) in same_files.stderr
    same_port = cluster.run("head", "--port", str(cluster.port), state_dir=tmp_path / "other")
    assert same_port.returncode == 2
    assert str(cluster.port) in same_port.stderr
    assert "Traceback" not in same_files.stderr + same_port.stderr
    assert cluster.json("status")["workers"]


def test_the_simple_mode_works_with_one_secret(tmp_path: Path) -> None:
    """With jwt_secret in config.toml, head, worker and commands mint and take HS256 tokens."""
    config = tmp_path / "config.toml"
    config.write_text(f'[security]\njwt_secret = "{_SECRET}"\ntoken_expiration = 600\n')
    config.chmod(0o600)
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a", cpus=1)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        assert "HS256" in cluster.json("status")["head"]["security"]
        assert cluster.run("submit", "add", "40", "2", "--wait").stdout == "42\n"
        with cluster.session():
            assert rustray.get(rustray.remote(functions.add).remote(1, 2), timeout=20) == 3
        assert _SECRET not in cluster.logs(1_000)


@pytest.mark.parametrize("secret", ["your-secret-key-change-this-in-production", "short"])
def test_a_weak_secret_is_refused(tmp_path: Path, secret: str) -> None:
    """Placeholders and short secrets keep the head from starting, and are not repeated."""
    config = tmp_path / "config.toml"
    config.write_text(f'[security]\njwt_secret = "{secret}"\n')
    config.chmod(0o600)
    answer = Cluster(tmp_path).run("head", "--port", "0")
    assert answer.returncode == 2
    assert "jwt_secret" in answer.stderr
    assert secret not in answer.stderr


_SHORT_LIVED_HEAD = """
import asyncio, sys
from pathlib import Path
from rustray.head.app import run_head
from rustray.head.config import HeadConfig, Listen, Security

# Shorter than the settings allow: a minute is too long for a test.
asyncio.run(run_head(HeadConfig(
    Path(sys.argv[1]), listen=Listen("127.0.0.1", 0), security=Security(token_expiration_s=3.0)
)))
"""


async def test_tokens_are_renewed_without_a_failed_call(tmp_path: Path) -> None:
    """Where tokens live 3 s, a client and a worker go on for 9 s as if nothing were."""
    with Cluster(tmp_path) as cluster:
        script = ["-c", _SHORT_LIVED_HEAD, str(cluster.state_dir)]
        cluster.adopt_head(cluster.launch("head", script))
        join = tmp_path / "join"
        made = cluster.run("token", "create", "--role", "worker", "--ttl", "6s")
        assert made.returncode == 0, made.stderr
        join.write_text(made.stdout)
        worker = cluster.start_worker(
            "far", "--join", f"@{join}", state_dir=tmp_path / "elsewhere", cpus=1
        )
        given = cluster.json("token", "create", "--role", "admin", "--ttl", "3s")["token"]
        ca_file = cluster.state_dir / "ca.pem"
        async with cluster.head_node(given, ca_file=ca_file) as head:
            until_s = time.monotonic() + 9
            await aeventually(lambda: joined(head, 1), 20)
            count = 0

            async def has_worked() -> bool:
                nonlocal count
                task_id = await head.submit_task(rustray.TaskSpec("add", [count, 1]))
                result = await head.get_task_result(task_id, 20)
                assert result is not None
                assert result.unwrap() == count + 1
                count += 1
                return time.monotonic() > until_s

            await aeventually(has_worked, 30)
            assert (await head.get_status()).counters["workers_joined"] == 1
        assert "WARNING" not in worker.text(), worker.text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[node]\nhead_prot = 1\n", "head_port"),
        ("[secruity]\n", "security"),
        ("[node\n", "config.toml"),
        ("[scheduler]\nmax_retries = 'many'\n", "max_retries"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, text: str, said: str) -> None:
    """Unknown keys, broken syntax and bad values: exit code 2, and what was meant."""
    (tmp_path / "config.toml").write_text("[scheduler]\n" + text if "[sche" not in text else text)
    answer = Cluster(tmp_path).run("head", "--port", "0")
    assert answer.returncode == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_errors_travel_as_json_too(cluster: Cluster, ca_file: Path, elsewhere: Path) -> None:
    """With --json a refusal is one JSON object for programs."""
    answer = cluster.run(
        "status", "--json", "--head", cluster.address,
        state_dir=elsewhere, RUSTRAY_CA_FILE=str(ca_file),
    )  # fmt: skip
    assert answer.returncode == 4
    found: dict[str, Any] = json.loads(answer.stdout or answer.stderr)
    assert "UNAUTHENTICATED" in json.dumps(found)
    assert issubclass(rustray.AuthenticationError, RustRayError)
