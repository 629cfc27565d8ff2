#!/bin/sh
# Install the Debian packages of a stage of the image. As root.
#
#   docker/packages.sh build [EXTRAS]  Python to build the environment with; for the extra ffcv a compiler and OpenCV
#   docker/packages.sh run [FILE]      Python to run it with, and the packages named in FILE, one a line
set -eu

usage="usage: docker/packages.sh build [EXTRAS] | run [FILE]"
stage=${1:?"$usage"}
argument=${2:-}

# tini is the first process: it hands signals on and buries the worker processes that outlive their parent.
needs="python3 ca-certificates"
case "$stage" in
build)
    needs="$needs python3-venv"
    case ",$argument," in
    *,ffcv,*) needs="$needs g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev" ;;
    esac
    ;;
run)
    needs="$needs tini"
    if [ -n "$argument" ]; then
        needs="$needs $(tr '\n' ' ' <"$argument")"
    fi
    ;;
*)
    echo "packages.sh: got the stage $stage; $usage" >&2
    exit 2
    ;;
esac

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086  # a list of names
apt-get install -y -qq --no-install-recommends $needs
# What apt keeps would stay in the layer.
apt-get clean
rm -rf /var/lib/apt/lists/*
