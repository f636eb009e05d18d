#!/bin/sh
# Install the programs that tests and benchmarks compare vmesh with. Where that is not allowed, say so and go on:
# the tests that need them skip by name.
set -eu
packages="qemu-system-misc opensbi u-boot-qemu gdb-multiarch device-tree-compiler"

missing=""
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "test_peers: not installed (needs apt and root):$missing" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update </dev/null && apt-get -q install -y --no-install-recommends $missing </dev/null ||
  echo "test_peers: apt could not install:$missing" >&2
