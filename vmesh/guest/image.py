"""`vmesh guest image`: a disk with Debian 13 on it, which boots to a login.

    image.main(["-o", "debian.img"])   exit status: 0 if the disk is there afterwards, 1 with one line on stderr if not
    image.build(path, size)            the same as a function; raises GuestError

A host of another architecture can unpack Debian's packages, but not run their scripts, and only root may give files to
others. So the host unpacks (rootfs.py) and makes a file system of that (mke2fs -d), and a machine boots the disk once,
as the default guest does with root=/dev/vda, where dpkg configures all packages as root. That needs neither root nor
qemu-user nor user namespaces on the host, and the disk comes out the same wherever it is made, but for times and
identifiers. The packages are pinned by content in image.lock.

What was done is not lost: packages stay in the cache, and a disk that was unpacked and not configured to its end (a
script failed, the machine was killed) stays beside the one to be made, where the same command goes on with it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from vmesh.command_line import Parser
from vmesh.guest import rootfs
from vmesh.guest.apt import Apt, Deb, host_mirror, require_apt
from vmesh.guest.cache import SUITE, Guest, cache_directory, find
from vmesh.guest.errors import GuestError
from vmesh.guest.fetch import ARCHITECTURE, Report, download, fetch, locked, progress_bar
from vmesh.guest.rootfs import Owner
from vmesh.spawn import python

LOCK = Path(__file__).with_name("image.lock")

# What image.lock was made from, as apt-get install takes it.
PACKAGES = (
    *("?essential", "?priority(required)", "systemd-sysv", "udev", "dbus", "libpam-systemd", "systemd-resolved"),
    *("login", "passwd", "procps", "iproute2", "iputils-ping", "wget"),
)

DEFAULT_SIZE = "1G"
APPEND = "root=/dev/vda"
EMULATORS = ("vmesh", "qemu")

_TOOLS = {"mke2fs": "e2fsprogs", "dpkg-deb": "dpkg"}  # programs, and Debian's packages with them
_QEMU = {"qemu-system-riscv64": "qemu-system-misc"}
_UNITS = {"M": 1 << 20, "G": 1 << 30}
_SPARE = 1.5  # times what is unpacked, the least that a disk must hold: dpkg and the journal want some
_POLL = 0.2  # seconds between looks at what a machine says
_SILENCE = 1800.0  # seconds without output after which a machine is given up: some packages compile, on a busy host
_MEMORY = "1G"  # of that machine: a JDK's packages start it
_SSH = "openssh-server"
_KEYS = ("ssh-", "ecdsa-", "sk-")  # how a public key begins: sshd(8), AUTHORIZED_KEYS FILE FORMAT

_SCRIPT = "etc/vmesh-configure"
_OWNERS = "etc/vmesh-owners"  # what that begins with, once: the packages' own scripts may change owners later
_DONE = "vmesh-configure: done"
_FAILED = "vmesh-configure: failed"

# Files of packages that are left out, as dpkg's path-exclude and path-include have it: nobody reads them there, and the
# compiled forms of hwdb.d (which hardware there is in the world) and of messages in 17 languages take a guest a minute.
PATHS = (
    rootfs.Filter("exclude", "/usr/share/doc/*"),
    rootfs.Filter("include", "/usr/share/doc/*/copyright"),
    rootfs.Filter("exclude", "/usr/share/man/*/*"),  # not the sections' folders, where alternatives are linked
    rootfs.Filter("exclude", "/usr/share/info/*"),
    rootfs.Filter("exclude", "/usr/share/locale/*"),
    rootfs.Filter("exclude", "/usr/lib/udev/hwdb.d/*"),
    rootfs.Filter("exclude", "/usr/lib/systemd/catalog/*.*.catalog"),
)

SOURCES = """\
Types: deb
URIs: {mirror}
Suites: {suite} {suite}-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""

FILES: Mapping[str, str] = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 0\n",
    "etc/machine-id": "",  # systemd makes one when the disk boots
    "etc/systemd/network/80-ethernet.network": "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n",
    "etc/dpkg/dpkg.cfg.d/excludes": "".join(f"path-{each.action}={each.pattern}\n" for each in PATHS),
    "usr/sbin/policy-rc.d": "#!/bin/sh\n# No services while packages are configured.\nexit 101\n",
}

# Process 1 of the first boot: what debootstrap does in its second stage. The scripts before installation come first,
# those of base-passwd before all others, as everything needs /etc/passwd; then what Debian's policy calls essential.
CONFIGURE = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C TERM=dumb
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
fail() {{
    echo "{failed}: $1"
    sync
    poweroff -ff
}}
# Whether nothing has been done to configure it: this script goes on with what an earlier boot of it has left.
is_unpacked() {{
    [ "$(dpkg-query -W -f '${{db:Status-Status}}' "$1")" = unpacked ]
}}
if [ "$0" != /run/configure ]; then
    mount -t tmpfs run /run
    cp "$0" /run/configure
    exec /run/configure  # what is deleted while it is used keeps the disk from being read-only
fi
hostname -F /etc/hostname  # which keys and the like are named by
if [ -e /{owners} ]; then
    sh -e /{owners} || fail /{owners}
    rm /{owners}
fi
cd /var/lib/dpkg/info
for script in base-passwd.preinst *.preinst; do
    package=${{script%.preinst}}
    is_unpacked "$package" || continue
    export DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE="${{package%:*}}" DPKG_MAINTSCRIPT_ARCH={architecture}
    ./"$script" install </dev/null || fail "$script"
done
unset DPKG_MAINTSCRIPT_NAME DPKG_MAINTSCRIPT_PACKAGE DPKG_MAINTSCRIPT_ARCH
cd /
for package in base-passwd base-files libc6 perl-base mawk debconf; do
    is_unpacked "$package" || continue
    dpkg --force-depends --force-unsafe-io --no-triggers --configure "$package" </dev/null ||
        fail "dpkg --configure $package"
done
dpkg --force-unsafe-io --configure -a </dev/null || fail "dpkg --configure -a"
passwd -d root >/dev/null || fail passwd
systemctl enable serial-getty@ttyS0.service systemd-networkd.service systemd-resolved.service || fail systemctl
systemctl disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer
rm -f /usr/sbin/policy-rc.d /etc/resolv.conf /{script}
ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
: >/etc/machine-id
sync
mount -o remount,ro / || fail "mount -o remount,ro /"
echo "{done}"
poweroff -ff
"""


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = Parser(
        prog="vmesh guest image",
        description="Make a disk with Debian 13 on it, which boots to a login as root, without a password.",
        epilog=f"Boot it with: vmesh run -append {APPEND} -drive file=FILE,format=raw,if=virtio. "
        f"Needs of the host: {', '.join(sorted({'apt', *_TOOLS.values()}))}; not root.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("debian.img"), metavar="FILE", help="the disk (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=DEFAULT_SIZE,
        metavar="N",
        help="of the disk, a sparse file (default: %(default)s)",
    )
    parser.add_argument(
        "--package", action="append", default=[], metavar="NAME",
        help="have this one too; the suite's current packages are then taken, not the pinned ones",
    )  # fmt: skip
    parser.add_argument(
        "--ssh-key", type=Path, metavar="FILE",
        help=f"your public key: have {_SSH} too, where root may log in with it (as --package, the current packages)",
    )  # fmt: skip
    parser.add_argument("--mirror", metavar="URI", help="Debian mirror to use (default: the one of the host's apt)")
    parser.add_argument(
        "--emulator",
        choices=EMULATORS,
        default=EMULATORS[0],
        help="what the packages are configured in (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        with progress_bar() as report:
            build(
                options.output, options.size, packages=options.package, mirror=options.mirror,
                emulator=options.emulator, ssh_key=read_key(options.ssh_key) if options.ssh_key else "", report=report,
            )  # fmt: skip
    except GuestError as error:
        print(f"vmesh guest image: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vmesh guest image: {error.filename or options.output}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vmesh guest image: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{options.output}: vmesh run -append {APPEND} -drive file={options.output},format=raw,if=virtio")
    return 0


def build(
    path: Path, size: int, *, packages: Sequence[str] = (), mirror: str | None = None, emulator: str = EMULATORS[0],
    ssh_key: str = "", report: Report = lambda *_: None,
) -> None:  # fmt: skip
    """Make the disk `path` of `size` bytes; what was there is replaced only by a whole one.

    With `packages` the suite's current ones are taken, else those pinned. With `ssh_key`, a line of authorized_keys,
    sshd is among them and root may log in so. Raises GuestError or OSError.
    """
    require_tools({**_TOOLS, **(_QEMU if emulator == "qemu" else {})})
    guest = find() or fetch(mirror=mirror, report=report)
    folder = cache_directory() / "image"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, report):
        debs, mirror = fetch_packages(folder, [*packages, *[_SSH] * bool(ssh_key)], mirror, report)
        files = {"root/.ssh/authorized_keys": f"{ssh_key}\n"} if ssh_key else {}
        unfinished = _unfinished(path, size, mirror, debs, files)
        if not unfinished.exists():
            _unpack(folder, debs, unfinished, size, mirror, files, report)
        try:
            configure(guest, unfinished, emulator, len(debs), folder / "configure.log", report)
        except GuestError as error:
            kept = f"what was done is in {unfinished}: the same command goes on with it, or anew once it is removed"
            raise GuestError(f"{error}; {kept}") from error
        unfinished.replace(path)


def _unfinished(path: Path, size: int, mirror: str, debs: Sequence[Path], files: Mapping[str, str]) -> Path:
    """Where the disk is until it is whole: the same place for the same disk. Others for `path` are removed."""
    recipe = (size, mirror, sorted(deb.name for deb in debs), sorted(files.items()), PATHS, SOURCES, FILES, CONFIGURE)
    stem = f"{path.name}.unfinished-"
    found = path.with_name(stem + hashlib.sha256(repr(recipe).encode()).hexdigest()[:12])
    for other in path.absolute().parent.iterdir():
        if other.name.startswith(stem) and other.name != found.name:
            other.unlink()
    return found


def _unpack(
    folder: Path, debs: Sequence[Path], path: Path, size: int, mirror: str, files: Mapping[str, str], report: Report
) -> None:
    """Make the disk `path` with the packages on it, not configured."""
    with tempfile.TemporaryDirectory(prefix="tree-", dir=folder) as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        report("unpack", 0, 0)
        owners = rootfs.unpack(debs, tree, PATHS)
        report("unpack", 1, 1)
        write_settings(tree, owners, mirror, files)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            make_file_system(tree, fresh, size)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def fetch_packages(
    folder: Path, packages: Sequence[str] = (), mirror: str | None = None, report: Report = lambda *_: None
) -> tuple[Sequence[Path], str]:
    """Have the packages of the disk below `folder`; returns them, and the mirror they came from. Raises GuestError."""
    require_apt()
    apt = Apt(folder / "apt", SUITE, ARCHITECTURE, mirror or host_mirror())
    apt.prepare()
    if packages:
        report("package lists", 0, 0)
        apt.update()
        debs = apt.closure([*PACKAGES, *packages])
        report("package lists", 1, 1)
    else:
        debs = pinned(apt.mirror)
    target = folder / "debs"
    target.mkdir(exist_ok=True)
    download(apt, debs, target, report)
    return [target / deb.file for deb in debs], apt.mirror


def pinned(mirror: str) -> tuple[Deb, ...]:
    """The packages of image.lock, to be had from `mirror`. A line there: SHA256, bytes, path on a mirror."""
    root = mirror.rstrip("/")
    found = []
    for line in LOCK.read_text().splitlines():
        sha256, size, place = line.split()
        found.append(Deb(f"{root}/{place}", place.rpartition("/")[2], int(size), sha256))
    return tuple(found)


def parse_size(text: str) -> int:
    """Bytes of "512M" or "2G". Raises GuestError."""
    match = re.fullmatch(r"(\d{1,6})([MG])", text)
    if match is None or int(match[1]) == 0:
        raise GuestError(f"'{text}': expected a number of mebibytes or gibibytes: 512M, 2G")
    return int(match[1]) * _UNITS[match[2]]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except GuestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_key(path: Path) -> str:
    """The public key in a file of ssh-keygen's. Raises GuestError for what is none, OSError."""
    text = path.read_text(errors="replace").strip()
    if not text.startswith(_KEYS) or len(text.split()) < 2 or "\n" in text:
        raise GuestError(
            f"--ssh-key {path}: expected one public key, as in ~/.ssh/id_ed25519.pub (ssh-keygen makes it)"
        )
    return text


def require_tools(tools: Mapping[str, str] = _TOOLS) -> None:
    """Raises GuestError, with the Debian package to install, if a program is not there."""
    for program, package in tools.items():
        if _tool(program) is None:
            raise GuestError(f"this host has no {program}: install Debian's package {package}")


def _tool(program: str) -> str | None:
    """Its path; the sbin folders are not on everybody's PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def write_settings(
    tree: Path, owners: Mapping[str, Owner], mirror: str, files: Mapping[str, str] = MappingProxyType({})
) -> None:
    """The files that make a system of this tree, `files` too, and the script that configures it when it boots.

    `mirror` is where the system's own apt gets its packages.
    """
    groups: dict[Owner, list[str]] = {}
    for path, owner in owners.items():
        groups.setdefault(owner, []).append(shlex.quote(f"/{path}"))
    lines = [] if os.geteuid() == 0 else ["find / -xdev ! -user 0 -exec chown -h 0:0 {} +"]
    for owner, paths in groups.items():
        words = " ".join(paths)
        lines += [f"chown -h {owner.uid}:{owner.gid} {words}", f"chmod {owner.mode:o} {words}"]
    script = CONFIGURE.format(owners=_OWNERS, done=_DONE, failed=_FAILED, script=_SCRIPT, architecture=ARCHITECTURE)
    sources = {"etc/apt/sources.list.d/debian.sources": SOURCES.format(mirror=mirror, suite=SUITE)}
    owned = {_OWNERS: "".join(f"{line}\n" for line in lines)}
    for name, text in {**FILES, **sources, **files, **owned, _SCRIPT: script}.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if text.startswith("#!") else 0o644)


def make_file_system(tree: Path, path: Path, size: int) -> None:
    """An ext4 file system of `size` bytes in the new file `path`, with what is in `tree`. Raises GuestError."""
    used = sum(each.lstat().st_blocks * 512 for each in tree.rglob("*"))
    if size < used * _SPARE:
        raise GuestError(f"--size: expected at least {int(used * _SPARE) >> 20}M for these packages")
    with path.open("xb") as file:
        file.truncate(size)
    command = [_tool("mke2fs") or "mke2fs", "-q", "-F", "-t", "ext4", "-L", "debian", "-E", "root_owner=0:0"]
    done = subprocess.run([*command, "-d", str(tree), str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestError(f"mke2fs failed: {(done.stderr.strip().splitlines() or ['(no reason)'])[-1]}")


def configure(
    guest: Guest, path: Path, emulator: str, packages: int, log: Path, report: Report = lambda *_: None
) -> None:
    """Boot the disk `path` once, for its packages to be configured; what the machine says goes to `log`.

    Raises GuestError, with the last of that, if the machine does not say that it has done it.
    """
    started = b"\nSetting up "  # what dpkg says of each package
    append = f"{guest.append} loglevel=4 {APPEND} rw init=/{_SCRIPT}"
    command = [
        *(("qemu-system-riscv64", "-M", "virt") if emulator == "qemu" else python("vmesh.cli", "run")),
        *("-m", _MEMORY, "-nographic", "-bios", guest.bios, "-kernel", str(guest.kernel), "-initrd", str(guest.initrd)),
        *("-append", append, "-drive", f"file={str(path).replace(',', ',,')},format=raw,if=virtio"),
    ]
    said = b""
    heard = time.monotonic()
    with log.open("wb") as sink, log.open("rb") as source, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
    ) as machine:  # fmt: skip
        try:
            while machine.poll() is None and time.monotonic() < heard + _SILENCE:
                if more := source.read():
                    said += more.replace(b"\r", b"")
                    heard = time.monotonic()
                report("configure", min(said.count(started), packages - 1), packages)
                with suppress(subprocess.TimeoutExpired):
                    machine.wait(_POLL)
        finally:
            machine.terminate()
        machine.wait()
        said += source.read().replace(b"\r", b"")
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    if _DONE not in lines:
        failures = [line for line in lines if line.startswith(_FAILED)] or lines[-3:] or ["nothing"]
        raise GuestError(
            f"the machine that configures the packages said (all of it is in {log}): {' / '.join(failures)}"
        )
    report("configure", packages, packages)
