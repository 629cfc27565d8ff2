#!/bin/sh
# Make the user that the image runs as, and the folders that it may write to. As root.
#
#   docker/user.sh [UID]               default 1000; give your own (`id -u`) to write to folders of yours
set -eu

uid=${1:-1000}
case "$uid" in
'' | *[!0-9]* | 0)
    echo "user.sh: got the UID $uid, expected a number above 0: the image does not run as root" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
useradd --uid "$uid" --create-home --shell /usr/sbin/nologin unidd
mkdir -p data runs
chown unidd: data runs
