"""Build and run the image without a Docker engine: the steps of the Dockerfile, in bare Debian roots.

::

    debootstrap --variant=minbase bookworm BASE
    docker/without_engine.py --base BASE --work WORK build            # as root; about 10 GB and as many minutes
    docker/without_engine.py --base BASE --work WORK run -- --version

Each FROM is a copy of BASE, each RUN a chroot with mounts of its own, COPY takes the files that git knows. Enough of
the Dockerfile's language for this one; an instruction that is not understood is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DOCKERFILE = REPOSITORY / "docker/Dockerfile"
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_", "OMP_")
"""Variables of the environment that a build and a run get: how this machine reaches an index, and its threads."""


@dataclass
class Stage:
    """One FROM of the Dockerfile, and what its instructions have set so far."""

    root: Path
    workdir: str = "/"
    user: str = "0"
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def expand(self, text: str) -> str:
        """Replace $NAME and ${NAME} by arguments and environment."""
        known = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        known |= self.arguments | self.environment
        return re.sub(r"\$\{?(\w+)\}?", lambda found: known[found[1]], text)


def instructions(path: Path = DOCKERFILE) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile with their arguments; comments and line ends are gone."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


class Builder:
    """Carries out a Dockerfile.

    Args:
        base: Root of a bare Debian, left as it is.
        work: Folder of the stages' roots.
        arguments: Build arguments.
        mounts: Files and folders of this machine to show in the roots, read-only.
        execute: False reads the Dockerfile and changes nothing.
    """

    def __init__(
        self, base: Path, work: Path, arguments: dict[str, str], mounts: list[Path], *, execute: bool = True
    ) -> None:
        self.base, self.work, self.given, self.mounts, self.execute = base, work, arguments, mounts, execute
        self.stages: dict[str, Stage] = {}
        self.stage = Stage(work)

    def build(self) -> Stage:
        """Carry out every instruction; return the last stage."""
        for name, rest in instructions():
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is None:
                raise ValueError(f"{DOCKERFILE}: got the instruction {name}, which this script does not know: teach it")
            if self.execute:
                print(f"==> {name} {rest}", flush=True)
            started = time.monotonic()
            handler(rest)
            if self.execute and name == "RUN":
                print(f"    {time.monotonic() - started:.0f} s", flush=True)
        return self.stage

    def run(self, command: list[str]) -> int:
        """Run a command in the stage as its user; return its exit status."""
        stage, root = self.stage, shlex.quote(str(self.stage.root))
        script = [
            "set -e",
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs tmpfs {root}/tmp",
        ]
        for path in self.mounts:
            make = f"mkdir -p {root}{path}" if path.is_dir() else f"mkdir -p {root}{path.parent}; touch {root}{path}"
            script += [make, f"mount --bind -o ro {path} {root}{path}"]
        script += [
            f'exec chroot --userspec={stage.user} {root} /usr/bin/env -i -C {stage.workdir} "$@"',
        ]
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        home = "/root" if stage.user == "0" else "/home/unidd"
        environment |= {"PATH": stage.expand("${PATH}"), "HOME": home} | stage.arguments | stage.environment
        given = [f"{name}={value}" for name, value in environment.items()]
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        shell = ["sh", "-c", "\n".join(script), "sh"]
        return subprocess.run([*own, *shell, *given, *command], check=False).returncode

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self.stage.arguments[name] = self.given.get(name, default)

    def _from(self, rest: str) -> None:
        name = rest.partition(" AS ")[2] or "final"
        self.stage = self.stages[name] = Stage(self.work / name)
        if self.execute:
            shutil.rmtree(self.stage.root, ignore_errors=True)
            self.work.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", self.base, self.stage.root], check=True)
            for name in ("resolv.conf", "hosts"):
                shutil.copy(f"/etc/{name}", self.stage.root / "etc" / name)

    def _workdir(self, rest: str) -> None:
        self.stage.workdir = rest
        if self.execute:
            self._inside(rest).mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        words = rest.split()
        stage = self.stages[words.pop(0).partition("=")[2]] if words[0].startswith("--from=") else None
        *sources, target = words
        folder = self._inside(target)
        if not self.execute:
            return
        if stage:
            whole = stage.root / sources[0].lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{whole}/." if whole.is_dir() else str(whole), folder], check=True)
            return
        known = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *sources],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        for name in known:
            destination = folder / (name if sources == ["."] else Path(name).name)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, destination)

    def _run(self, rest: str) -> None:
        if self.execute and (status := self.run(["/bin/sh", "-c", self.stage.expand(rest)])):
            raise SystemExit(f"without_engine.py: the step `{rest}` ended with status {status}")

    def _user(self, rest: str) -> None:
        self.stage.user = self.stage.expand(rest)

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.stage.environment[name] = self.stage.expand(value)

    def _healthcheck(self, rest: str) -> None:
        self.stage.health = json.loads(rest.partition("CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self.stage.entrypoint = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.stage.command = json.loads(rest)

    def _inside(self, path: str) -> Path:
        return self.stage.root / str(Path(self.stage.workdir, path)).lstrip("/")


def main() -> None:
    """Build the roots, or run the image's command or health check in the last of them."""
    parser = argparse.ArgumentParser(description="Build and run the image without a Docker engine.")
    parser.add_argument("--base", type=Path, required=True, help="root of a bare Debian, made by debootstrap")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--mount", type=Path, action="append", default=[], help="path to show in the roots, read-only")
    parser.add_argument("action", choices=["build", "run", "health"])
    parser.add_argument("arguments", nargs="*", help="of the image's command, after --")
    given = parser.parse_args()
    arguments = dict(pair.split("=", 1) for pair in given.build_arg)
    builder = Builder(
        given.base.absolute(), given.work.absolute(), arguments, given.mount, execute=given.action == "build"
    )
    stage = builder.build()
    if given.action == "run":
        sys.exit(builder.run([*stage.entrypoint, *(given.arguments or stage.command)]))
    if given.action == "health":
        sys.exit(builder.run(stage.health))


if __name__ == "__main__":
    main()
