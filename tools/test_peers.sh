#!/bin/sh
# Install the programs that tests and benchmarks compare vmesh with, and what the example in C is built with. Where that is not allowed, say so and go on:
# the tests that need them skip by name.
set -eu
missing=""
for wanted in qemu-system-riscv64:qemu-system-misc gdb-multiarch:gdb-multiarch cc:gcc make:make \
  protoc-c:protobuf-c-compiler qemu-nbd:qemu-utils passt:passt \
  dockerd:docker.io docker:docker.io docker-compose:docker-compose iptables:iptables debootstrap:debootstrap tcpdump:tcpdump; do
  command -v "${wanted%%:*}" >/dev/null || missing="$missing ${wanted##*:}"
done
for wanted in /usr/lib/riscv64-linux-gnu/opensbi:opensbi /usr/lib/u-boot/qemu-riscv64_smode:u-boot-qemu \
  /usr/include/zmq.h:libzmq3-dev /usr/include/protobuf-c/protobuf-c.h:libprotobuf-c-dev; do
  [ -e "${wanted%%:*}" ] || missing="$missing ${wanted##*:}"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "test_peers: not installed (needs apt and root):$missing" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update </dev/null || true
# From Debian 13 on, QEMU's RISC-V machines may be in a package of their own.
case "$missing" in *qemu-system-misc*)
  apt-cache show qemu-system-riscv >/dev/null 2>&1 && missing="$missing qemu-system-riscv" ;;
esac
apt-get -q install -y --no-install-recommends $missing </dev/null || echo "test_peers: apt could not install:$missing" >&2
