"""`vmesh guest fetch`: Debian 13's riscv64 kernel, OpenSBI, U-Boot and busybox into the cache, verified.

    fetch.main(["--if-missing"])   exit status: 0 if the guest is there afterwards, 1 with one line on stderr if not
    fetch.fetch()                  the same as a function; raises GuestError

The packages are pinned by content; where the mirror no longer has them, and with --refresh, they are the suite's
current ones, whose signatures and hashes apt verifies. The hashes are looked at once more before anything is unpacked.
Only one process fetches at a time, a download that was cut short is gone on with, and the guest in use is replaced only
by a whole one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmesh import private
from vmesh.command_line import Parser
from vmesh.guest.apt import Apt, Deb, host_mirror, require_apt
from vmesh.guest.cache import KERNEL, SUITE, Guest, Image, Manifest, Package, cache_directory, find, read_manifest
from vmesh.guest.errors import GuestError
from vmesh.guest.pinned import pinned

ARCHITECTURE = "riscv64"
KERNEL_PACKAGE = "linux-image-riscv64"  # depends on the package with the kernel in it

# Role of an image: which package it is in (how the name begins), its path there (a pattern), its name in the cache.
SOURCES: Mapping[str, tuple[str, str, str]] = {
    "kernel": (KERNEL, r"\./boot/vmlinu[xz]-.*", "vmlinux"),
    "firmware": ("opensbi", r"\./usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic\.bin", "fw_dynamic.bin"),
    "uboot": ("u-boot-qemu", r"\./usr/lib/u-boot/qemu-riscv64_smode/u-boot\.bin", "u-boot.bin"),
    "busybox": ("busybox-static", r"\./(usr/)?bin/busybox", "busybox"),
}

Report = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is (0: unknown)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = Parser(prog="vmesh guest fetch", description="Fetch Debian's riscv64 guest with apt.")
    parser.add_argument("--if-missing", action="store_true", help="do nothing if a whole guest is cached")
    parser.add_argument("--refresh", action="store_true", help="look for newer packages even if a guest is cached")
    parser.add_argument("--mirror", metavar="URI", help="Debian mirror to use (default: the one of the host's apt)")
    options = parser.parse_args(arguments)
    cached = find()
    if cached is not None and not options.refresh:
        if not options.if_missing:
            print(f"{cached.name}: already in {cached.kernel.parent} (--refresh looks for newer packages)")
        return 0
    try:
        with progress_bar() as report:
            guest = fetch(mirror=options.mirror, refresh=options.refresh, report=report)
    except GuestError as error:
        print(f"vmesh guest fetch: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vmesh guest fetch: {error.filename or cache_directory()}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vmesh guest fetch: interrupted; the next one goes on from here", file=sys.stderr)
        return 130
    print(f"{guest.name}: in {guest.kernel.parent}")
    return 0


def fetch(*, mirror: str | None = None, refresh: bool = False, report: Report = lambda *_: None) -> Guest:
    """Fill the cache and return the guest in it. Raises GuestError or OSError; what was cached before is then kept.

    With `refresh` newer packages are looked for, otherwise a guest that another process fetched meanwhile will do.
    """
    require_apt()
    cache = cache_directory()
    os.umask(os.umask(0o022) | 0o022)  # what others may write is not used
    private.make_folder(cache)
    with locked(cache, report):
        guest = None if refresh else find()
        if guest is None:
            _fill(cache, mirror or host_mirror(), refresh, report)
            guest = find()
    if guest is None:
        raise GuestError(f"{cache}: the guest that was just fetched is not whole; is something else writing there?")
    return guest


def _fill(cache: Path, mirror: str, refresh: bool, report: Report) -> None:
    apt = Apt(cache / "apt", SUITE, ARCHITECTURE, mirror)
    apt.prepare()
    folder = cache / "debs"
    folder.mkdir(exist_ok=True)
    debs: Sequence[Deb] = () if refresh else pinned(mirror)
    try:
        download(apt, debs, folder, report)
    except GuestError as gone:
        debs = ()
        problem = f"; before that, for the pinned packages: {gone}"
    else:
        problem = ""
    try:
        if not debs:
            debs = _current(apt, report)
            download(apt, debs, folder, report)
    except GuestError as error:
        raise GuestError(f"{error}{problem}") from None
    for path in folder.iterdir():
        if path.name not in {deb.file for deb in debs}:
            path.unlink()
    _install(cache, debs, folder, report)


def _current(apt: Apt, report: Report) -> Sequence[Deb]:
    """The suite's current packages."""
    report("package lists", 0, 0)
    apt.update()
    kernel = next((name for name in apt.dependencies(KERNEL_PACKAGE) if name.startswith(KERNEL)), None)
    if kernel is None:
        raise GuestError(f"{KERNEL_PACKAGE}: expected it to depend on a linux-image package")
    report("package lists", 1, 1)
    return apt.describe([kernel, *(package for package, _, _ in SOURCES.values() if package != KERNEL)])


def download(apt: Apt, debs: Sequence[Deb], folder: Path, report: Report) -> None:
    """Have every file of `debs` in `folder`, with its hash as the lists say it. Raises GuestError."""
    total = sum(deb.size for deb in debs)
    missing = [deb for deb in debs if not _matches(folder / deb.file, deb)]
    if missing:
        apt.download(missing, folder, lambda done: report("packages", min(done, total), total))
    for deb in missing:
        if not _matches(folder / deb.file, deb):
            raise GuestError(f"{folder / deb.file}: expected SHA256 {deb.sha256}, the file has another")
    report("packages", total, total)


def _install(cache: Path, debs: Sequence[Deb], folder: Path, report: Report) -> None:
    """Unpack the images beside the ones in use and name them in the manifest, unless those are of the same packages."""
    previous = read_manifest(cache)
    directory = "images-" + hashlib.sha256("".join(sorted(deb.sha256 for deb in debs)).encode()).hexdigest()[:12]
    if previous is not None and previous.directory == directory:
        return
    for leaving in cache.glob("new-*"):
        shutil.rmtree(leaving)
    fresh = cache / f"new-{directory}"
    fresh.mkdir()
    images: dict[str, Image] = {}
    for done, (role, (package, pattern, file)) in enumerate(SOURCES.items()):
        report("images", done, len(SOURCES))
        deb = next(deb for deb in debs if deb.name.startswith(package))
        images[role] = _extract(folder / deb.file, pattern, fresh / file)
    report("images", len(SOURCES), len(SOURCES))
    shutil.rmtree(cache / directory, ignore_errors=True)
    fresh.rename(cache / directory)
    packages = tuple(Package(deb.name, deb.version, deb.file, deb.size, deb.sha256) for deb in debs)
    Manifest(directory, images, packages).write(cache)
    keep = {directory, previous.directory if previous else ""}  # a machine that runs may have to load its images again
    for old in cache.glob("images-*"):
        if old.name not in keep:
            shutil.rmtree(old)


def _extract(deb: Path, pattern: str, target: Path) -> Image:
    """Write the one regular file of a package whose path matches to `target`. Raises GuestError if there is none."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacker:
        assert unpacker.stdout is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and re.fullmatch(pattern, member.name):
                        return _copy(archive, member, target)
        except tarfile.TarError as error:
            raise GuestError(f"{deb}: cannot be unpacked: {error}") from error
        finally:
            unpacker.kill()  # the rest of the package is of no interest
    raise GuestError(f"{deb}: expected a file {pattern} in it, there is none")


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> Image:
    source = archive.extractfile(member)
    assert source is not None
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        while part := source.read(1 << 20):
            digest.update(part)
            sink.write(part)
    return Image(target.name, member.size, digest.hexdigest())


def _matches(path: Path, deb: Deb) -> bool:
    """Whether `path` is the whole, right file."""
    if not path.is_file() or path.stat().st_size != deb.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == deb.sha256


@contextmanager
def locked(cache: Path, report: Report) -> Iterator[None]:
    """One fetch at a time; the lock goes with the process that holds it."""
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another fetch is at work, waiting", 0, 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A bar per step on stderr; where that is no terminal, a line per step at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step)
            progress.update(tasks[step], completed=done, total=total or None)

        yield report
