"""The initramfs of the Debian guest: busybox, drivers, and an /init that hands over to a disk or gives a shell.

With root=DEVICE on the kernel's command line (and, as for any Linux, rootfstype=, init= and rw) /init mounts that and
the system on it goes on. Else it gives a shell and powers the machine off after it.

Linux drops what comes before it opens the port, so with vmesh.stdin= there, /init tells whoever types without looking
when input is wanted, in control strings on the console (APC: ECMA-48, 8.3.2), which terminals do not show:
    vmesh:ready      now: a command begins, or the shell shows its prompt
    vmesh:more:K     (vmesh.stdin=script) the K-th piece, from 0: SOH, its size in decimal, newline, as many bytes; 0 is
                     the end of the input. Asked for again every two seconds. A line without SOH is taken as it is, EOT
                     at the begin of one is the end too.
    vmesh:status:N   of the command, the shell or the script, before the power is turned off
vmesh.stdin=prompts gives the shell on a terminal; vmesh.stdin=script has it read commands, without prompts and echo,
or vmesh.run's command its input without echo.
The archive is not compressed, since unpacking it costs the guest more than reading it. Source for the format: Linux
Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

INIT = """\
#!/bin/sh
# Process 1: the system on root=DEVICE of the kernel's command line; without that a shell, or what vmesh.run=COMMAND or
# vmesh.run="COMMAND ..." there says, then off.
export PATH=/bin HOME=/root
tell() {
    [ -z "$stdin" ] || printf '\\033_vmesh:%s\\033\\\\' "$1"
}
# The pieces of the input, of which it asks for one after the other: the terminal holds no more.
pieces() {
    soh=$(printf '\\001') eot=$(printf '\\004') piece=0
    while :; do
        tell more:$piece >&3
        until IFS= read -r -n 1 -t 2 first; do tell more:$piece >&3; done
        [ "$first" != "$eot" ] || break
        rest=
        [ -z "$first" ] || IFS= read -r rest
        case $first in
        "$soh")
            [ "$rest" -gt 0 ] || break
            dd bs="$rest" count=1 iflag=fullblock 2>/dev/null || break
            piece=$((piece + 1))
            ;;
        *) printf '%s\\n' "$first$rest" ;;
        esac
    done
}
/bin/busybox mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
hostname vmesh
# Drivers of the devices that are there; the first of them bring up others.
for bus in platform virtio; do
    modprobe -qa $(cat /sys/bus/$bus/devices/*/modalias 2>/dev/null) 2>/dev/null
done
read -r line </proc/cmdline
root= type=ext4 mode=ro init=/sbin/init stdin=
set -f
for word in $line; do
    case $word in
    root=*) root=${word#*=} ;;
    rootfstype=*) type=${word#*=} ;;
    init=*) init=${word#*=} ;;
    vmesh.stdin=*) stdin=${word#*=} ;;
    ro | rw) mode=$word ;;
    esac
done
set +f
if [ -n "$root" ]; then
    modprobe -qa autofs4  # systemd would, but has no modules there
    # A link may be an absolute one, which leads there only when that is the root.
    if mount -t "$type" -o "$mode" "$root" /mnt && { [ -x "/mnt$init" ] || [ -L "/mnt$init" ]; }; then
        # By its name: busybox finds its commands through /proc.
        for folder in dev sys proc; do /bin/busybox mount -o move /$folder /mnt/$folder; done
        exec /bin/busybox switch_root /mnt "$init"
    fi
    echo "root=$root: expected a file system of type $type there, with $init on it"
fi
case "$line" in
*vmesh.run=\\"*) command=${line#*vmesh.run=\\"} command=${command%%\\"*} ;;
*vmesh.run=*) command=${line#*vmesh.run=} command=${command%% *} ;;
*) command= ;;
esac
cd /root
if [ -n "$command" ]; then
    [ "$stdin" != script ] || stty -echo
    tell ready
    sh -c "$command"
    status=$?
    [ $status -eq 0 ] || [ "$stdin" = script ] || echo "vmesh.run: exit status $status"
elif [ "$stdin" = script ]; then
    stty raw -echo
    mkfifo /tmp/input
    exec 3>&1 4<&0
    pieces <&4 >/tmp/input &
    sh </tmp/input
    status=$?
    kill $! 2>/dev/null
else
    echo
    echo "Linux $(uname -r) on vmesh, $(nproc) hart(s). Ctrl-D or 'exit' powers off."
    [ -z "$stdin" ] || export PS1='\\[\\033_vmesh:ready\\033\\\\\\\\\\]\\w \\$ '  # ash takes two as one
    # The end of the session's leader throws away what is still to be written: it waits for that (stty does) first.
    setsid cttyhack sh -c 'sh -i; echo $? >/tmp/status; stty sane'
    read -r status </tmp/status
fi
tell status:$status
stty sane
poweroff -f
"""

# The kernel's modules that the guest has, beside those they depend on: drivers of the board's devices, the file systems
# of a disk (which asks for its checksum by an alias) and of a shared folder, and what systemd looks for.
MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon", "9pnet_virtio"),
    "qemu_fw_cfg",
    *("ext4", "crc32c_generic", "9p", "autofs4"),
)

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


# What busybox's udhcpc runs, and where it looks for it.
_LEASE = """\
#!/bin/sh
case $1 in
deconfig)
    ip link set "$interface" up
    ip -4 addr flush dev "$interface"
    ;;
bound | renew)
    ip -4 addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    for each in $router; do ip route replace default via "$each" dev "$interface" && break; done
    for each in $dns; do echo "nameserver $each"; done >/etc/resolv.conf
    ;;
esac
"""
# What mount without -t tries: the kernel loads the driver when it is asked for the first, then what it has.
_FILE_SYSTEMS = "ext4\n*\n"


def build(busybox: bytes, modules: Iterable[Entry] = ()) -> bytes:
    """The archive, byte for byte the same for the same busybox and modules."""
    return archive(chain(_entries(busybox), modules))


def recipe() -> str:
    """A short name for what `build` makes of a busybox and MODULES; it changes with what this module puts in."""
    return f"{zlib.crc32(build(b'') + ' '.join(MODULES).encode()):08x}"


def archive(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in the newc form."""
    parts: list[bytes] = []
    for inode, entry in enumerate(entries, start=1):
        parts += _member(inode, entry)
    parts += _member(0, Entry(_TRAILER, 0))
    return b"".join(parts)


def _entries(busybox: bytes) -> Iterator[Entry]:
    for folder in ("bin", "sbin", "dev", "proc", "root", "sys", "tmp", "etc", "etc/udhcpc", "mnt"):
        yield Entry(folder, stat.S_IFDIR | _ROOT_MODE)
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)
    yield Entry("dev/null", stat.S_IFCHR | 0o666, device=_NULL)
    yield Entry("dev/ttyS0", stat.S_IFCHR | 0o600, device=_TTY_S0)
    yield Entry("init", stat.S_IFREG | _ROOT_MODE, INIT.encode())
    yield Entry("bin/busybox", stat.S_IFREG | _ROOT_MODE, busybox)
    yield Entry("etc/udhcpc/default.script", stat.S_IFREG | _ROOT_MODE, _LEASE.encode())
    yield Entry("etc/filesystems", stat.S_IFREG | 0o644, _FILE_SYSTEMS.encode())
    # Debian's busybox finds its other commands by itself, through /proc/self/exe.
    yield Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    yield Entry("sbin/modprobe", stat.S_IFLNK | 0o777, b"../bin/busybox")  # what the kernel itself calls for a module


def _member(inode: int, entry: Entry) -> list[bytes]:
    """Header, name and data, each padded to 4 bytes."""
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return [header, bytes(-len(header) % 4), entry.data, bytes(-len(entry.data) % 4)]
