#!/bin/sh
# engine_base.sh SUITE ARCHIVE: Debian with its Python and nothing else, from the host's mirror, as a tar archive for `docker import`.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=python3 "$1" "$work/root"
cd "$work/root"
rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/locale/* usr/share/man/*
tar -c . >"$2.$$"
mv "$2.$$" "$2"
