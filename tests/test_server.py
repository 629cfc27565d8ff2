"""The server of docker/compose.yaml, run here on loopback: accounts, hosts, no password by default, and its death."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_kill import Process, free_port, measure
from test_server_kill import check

ROOT = Path(__file__).parent.parent
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MISSING = [name for name in ("psycopg2", "flask_wtf") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed: apt-get install postgresql"),
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} missing: pip install 'unidd-pl[server]'"),
]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Port and password of a fresh PostgreSQL server with a database for MLflow."""
    folder = tmp_path_factory.mktemp("postgres")
    password, port = secrets.token_hex(8), free_port()
    (folder / "password").write_text(password)
    as_owner: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        as_owner = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
        for parent in folder.parents[:2]:
            parent.chmod(0o755)

    def run(command: list[str], **options: Any) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **options)

    where = [f"-D{folder}/data"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
    run([*as_owner, str(BINARIES[-1]), *where, "-Umlflow", "-Ascram-sha-256", f"--pwfile={folder}/password"])
    control = [*as_owner, str(BINARIES[-1].with_name("pg_ctl")), *where]
    run([*control, "-w", f"-l{folder}/log", "-o", options, "start"])
    try:
        environment = {**os.environ, "PGPASSWORD": password}
        createdb = [str(BINARIES[-1].with_name("createdb")), "-h127.0.0.1", f"-p{port}", "-Umlflow", "mlflow"]
        run(createdb, env=environment)
        yield port, password
    finally:
        run([*control, "-mimmediate", "stop"])


@pytest.fixture
def server(postgres: tuple[int, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The server of docker/serve_mlflow.sh, not started yet."""
    folder = tmp_path_factory.mktemp("server")
    (database, password), port = postgres, free_port()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "POSTGRES": f"127.0.0.1:{database}",
        "POSTGRES_PASSWORD": password,
        "MLFLOW_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": password,
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        "ARTIFACTS": str(folder / "artifacts"),
        "HOST_ADDRESS": "127.0.0.1",
        "PORT": str(port),
    }
    account = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    one = Process(folder, ["sh", str(ROOT / "docker/serve_mlflow.sh")], environment, port, account)
    yield one
    one.kill()


def test_killed_in_the_middle_of_a_fit(
    server: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.account.items():
        monkeypatch.setenv(key, value)
    result = measure(server, tmp_path, signal.SIGKILL)
    with capsys.disabled():
        sys.stdout.write(f"\nPostgreSQL: {result}\n")
    check(result)


def test_accounts_and_hosts(server: Process) -> None:
    server.start()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default")
    assert refused.value.code == 401
    elsewhere = urllib.request.Request(f"{server.uri}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(elsewhere)
    assert refused.value.code in (400, 403)


def test_no_password_no_server() -> None:
    environment = {key: value for key, value in os.environ.items() if "PASSWORD" not in key}
    ended = subprocess.run(
        ["sh", str(ROOT / "docker/serve_mlflow.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert "POSTGRES_PASSWORD" in ended.stderr
    compose = (ROOT / "docker/compose.yaml").read_text()
    for name in ("POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        assert f"${{{name}:?" in compose
