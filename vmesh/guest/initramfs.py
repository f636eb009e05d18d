"""The initramfs of the Debian guest: busybox, and an /init that gives a shell and powers the machine off after it.

The shell ends at Ctrl-D, so whoever types for the user sends that when the input ends. Linux drops what comes before it
opens the port: send it again, about once a second, until the machine ends.
The archive is not compressed, since unpacking it costs the guest more than reading it. Source for the format: Linux
Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

INIT = """\
#!/bin/sh
# Process 1: a shell, or what vmesh.run=COMMAND or vmesh.run="COMMAND ..." on the kernel's command line says; then off.
export PATH=/bin HOME=/root
/bin/busybox mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
hostname vmesh
read -r line </proc/cmdline
case "$line" in
*vmesh.run=\\"*) command=${line#*vmesh.run=\\"} command=${command%%\\"*} ;;
*vmesh.run=*) command=${line#*vmesh.run=} command=${command%% *} ;;
*) command= ;;
esac
cd /root
if [ -n "$command" ]; then
    sh -c "$command"
    status=$?
    [ $status -eq 0 ] || echo "vmesh.run: exit status $status"
else
    echo
    echo "Linux $(uname -r) on vmesh, $(nproc) hart(s). Ctrl-D or 'exit' powers off."
    # The end of the session's leader throws away what is still to be written: it waits for that (stty does) first.
    setsid cttyhack sh -c 'sh -i; stty sane'
fi
stty sane
poweroff -f
"""

_ROOT_MODE = 0o755
_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_CONSOLE, _NULL, _TTY_S0 = (5, 1), (1, 3), (4, 64)  # major and minor numbers (Linux admin-guide/devices.txt)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the archive; `mode` has the type bits, `device` is major and minor of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(busybox: bytes) -> bytes:
    """The archive, byte for byte the same for the same busybox."""
    return archive(_entries(busybox))


def recipe() -> str:
    """A short name for what `build` makes of a busybox; it changes with what this module puts in."""
    return f"{zlib.crc32(build(b'')):08x}"


def archive(entries: Iterator[Entry]) -> bytes:
    """A cpio archive in the newc form."""
    parts: list[bytes] = []
    for inode, entry in enumerate(entries, start=1):
        parts += _member(inode, entry)
    parts += _member(0, Entry(_TRAILER, 0))
    return b"".join(parts)


def _entries(busybox: bytes) -> Iterator[Entry]:
    for folder in ("bin", "dev", "proc", "root", "sys", "tmp", "etc"):
        yield Entry(folder, stat.S_IFDIR | _ROOT_MODE)
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)
    yield Entry("dev/null", stat.S_IFCHR | 0o666, device=_NULL)
    yield Entry("dev/ttyS0", stat.S_IFCHR | 0o600, device=_TTY_S0)
    yield Entry("init", stat.S_IFREG | _ROOT_MODE, INIT.encode())
    yield Entry("bin/busybox", stat.S_IFREG | _ROOT_MODE, busybox)
    # Debian's busybox finds its other commands by itself, through /proc/self/exe.
    yield Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox")


def _member(inode: int, entry: Entry) -> list[bytes]:
    """Header, name and data, each padded to 4 bytes."""
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return [header, bytes(-len(header) % 4), entry.data, bytes(-len(entry.data) % 4)]
