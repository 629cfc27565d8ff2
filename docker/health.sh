#!/bin/sh
# Succeed where the command starts and its results can be written; else say what does not work.
set -eu

cd "$(dirname "$0")/.."
unidd --version
[ -w runs ] || {
    echo "health.sh: $(id -un) cannot write to $PWD/runs: make the folder before Docker does, or build with --build-arg UID=\$(id -u)" >&2
    exit 1
}
