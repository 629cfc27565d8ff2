#!/bin/sh
# Install the project and its tools into a virtual environment. Used by `make setup` and by the Dockerfile.
#
#   docker/install.sh VENV [EXTRAS]      e.g.  docker/install.sh .venv dev,ffcv
#
# Environment: PYTHON, the interpreter to build on (default python3).
set -eu

venv=${1:?"usage: docker/install.sh VENV [EXTRAS]"}
extras=${2:-}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "install.sh: $python is $("$python" --version 2>&1), expected Python 3.11 or newer: set PYTHON" >&2
    exit 1
fi

# Debian ships venv and pip apart from Python.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        docker/packages.sh build
    else
        echo "install.sh: Python has no venv module; run: sudo docker/packages.sh build" >&2
        exit 1
    fi
fi

# FFCV comes as source and needs a compiler, OpenCV and libjpeg-turbo.
case ",$extras," in
*,ffcv,*)
    if ! { command -v g++ && pkg-config --exists opencv4 libturbojpeg; } >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            docker/packages.sh build ffcv
        else
            echo "install.sh: FFCV needs packages that only root can install; run: sudo docker/packages.sh build ffcv" >&2
            exit 1
        fi
    fi
    ;;
esac

"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
