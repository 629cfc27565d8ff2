#!/bin/sh
# Print the Debian packages of the libraries that FFCV was linked with, one a line; nothing where FFCV is not installed.
# The image installs these alone, without the compiler and the headers that built it.
#
#   docker/libraries.sh VENV
set -eu

venv=${1:?"usage: docker/libraries.sh VENV"}
module=$(find "$venv" -name '_libffcv*.so')
[ -n "$module" ] || exit 0

missing=$(ldd "$module" | grep 'not found' || true)
if [ -n "$missing" ]; then
    echo "libraries.sh: $module needs what is not installed: $missing" >&2
    exit 1
fi
# Only what it names itself: apt knows what these need in turn.
for name in $(objdump -p "$module" | awk '$1 == "NEEDED" { print $2 }'); do
    path=$(ldd "$module" | awk -v name="$name" '$1 == name { print $3 }')
    [ -n "$path" ] || continue # the loader itself
    # /lib is a link to /usr/lib, and dpkg knows a file by one of the two names.
    dpkg-query --search "$(readlink -f "$path")" 2>/dev/null ||
        dpkg-query --search "$(readlink -f "$path" | sed 's|^/usr||')"
done | cut -d: -f1 | sort -u
