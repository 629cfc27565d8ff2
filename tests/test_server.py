"""The server of docker/compose.yaml, run here on loopback: accounts, allowed hosts, no password by default."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MISSING = [name for name in ("psycopg2", "flask_wtf") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed: apt-get install postgresql"),
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} missing: pip install 'unidd-pl[server]'"),
]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass
class Server:
    """The MLflow server of docker/serve_mlflow.sh."""

    folder: Path
    postgres: int
    password: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "POSTGRES": f"127.0.0.1:{self.postgres}",
            "POSTGRES_PASSWORD": self.password,
            "MLFLOW_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.password,
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{self.port}",
            "ARTIFACTS": str(self.folder / "artifacts"),
            "HOST_ADDRESS": "127.0.0.1",
            "PORT": str(self.port),
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", str(ROOT / "docker/serve_mlflow.sh")], env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        for _ in range(600):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


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


@pytest.fixture(scope="module")
def server(postgres: tuple[int, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"), *postgres, free_port())
    one.start()
    yield one
    one.kill()


def test_accounts_and_hosts(server: Server) -> None:
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
