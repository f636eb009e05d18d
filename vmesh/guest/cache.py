"""Where fetched guests are kept: `$XDG_CACHE_HOME/vmesh/guest/debian-13`, by default below ~/.cache.

manifest.json names the directory with the images in use; it is replaced at once, when they are complete. Sizes are
checked when a guest is looked up, hashes when it is fetched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmesh import private
from vmesh.guest import initramfs
from vmesh.guest.errors import GuestError

SUITE = "trixie"
MANIFEST = "manifest.json"
KERNEL = "linux-image-"  # how the name of the package with the kernel begins
FORMAT = 1  # of the manifest; another one is fetched anew

# No frame buffer, one serial port: the kernel's own driver as soon as it is there, and nothing to wait for.
APPEND = "console=ttyS0 earlycon=sbi"


@dataclass(frozen=True, slots=True)
class Guest:
    """Something to boot: the values of -bios, -kernel, -initrd and -append. `name` is for people."""

    name: str
    bios: str
    kernel: Path
    initrd: Path | None
    append: str
    uboot: Path | None = None  # for -kernel: boots in S-mode


@dataclass(frozen=True, slots=True)
class Image:
    """A file of a fetched guest; `size` in bytes."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package that images were taken from."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in the cache: the images by role (kernel, firmware, uboot, busybox), and where they came from."""

    directory: str
    images: Mapping[str, Image]
    packages: tuple[Package, ...]

    def write(self, cache: Path) -> None:
        """Make this the manifest of `cache`, at once."""
        fresh = cache / f"{MANIFEST}.{os.getpid()}"
        fresh.write_text(json.dumps({"format": FORMAT, "suite": SUITE, **asdict(self)}, indent=1) + "\n")
        fresh.replace(cache / MANIFEST)


def cache_directory() -> Path:
    """Where Debian's guest is kept. It need not exist yet."""
    return private.cache_folder("guest", "debian-13")


def find() -> Guest | None:
    """The Debian guest in the cache; None if there is none, or if it is not whole.

    The initramfs is made here, from the cached busybox and the kernel's package, if this version of vmesh makes another
    one than it found. Raises GuestError if it cannot be made of them, or if somebody else could have
    written what is there.
    """
    cache = cache_directory()
    manifest = read_manifest(cache)
    if manifest is None:
        return None
    paths = {role: cache / manifest.directory / image.file for role, image in manifest.images.items()}
    try:
        initrd = _initramfs(paths["busybox"], cache / "debs" / _kernel(manifest).file)
    except PermissionError as problem:
        raise GuestError(f"{problem.filename} {problem.strerror}") from None
    except OSError:
        return None
    versions = {package.name: package.version for package in manifest.packages}
    return Guest(
        name=f"Debian 13 (Linux {_kernel(manifest).version}, OpenSBI {versions.get('opensbi', '?')})",
        bios=str(paths["firmware"]),
        kernel=paths["kernel"],
        initrd=initrd,
        append=APPEND,
        uboot=paths["uboot"],
    )


def kernel_package() -> Path:
    """The Debian package of the cached guest's kernel, with the modules that belong to it. Raises GuestError."""
    cache = cache_directory()
    manifest = read_manifest(cache)
    path = cache / "debs" / _kernel(manifest).file if manifest else cache
    if not path.is_file():
        raise GuestError("Debian's kernel package is not cached: `vmesh guest fetch` gets it")
    return path


def _kernel(manifest: Manifest) -> Package:
    return next(package for package in manifest.packages if package.name.startswith(KERNEL))


def _initramfs(busybox: Path, kernel: Path) -> Path:
    path = busybox.with_name(f"initramfs-{initramfs.recipe()}.cpio")
    try:
        _size(path)
    except FileNotFoundError:
        fresh = path.with_suffix(f".{os.getpid()}")
        kernel.stat()  # OSError: the package is gone, so the guest is not whole
        from vmesh.guest import modules  # here: with what it needs 20 ms, of each start otherwise

        drivers = modules.load(kernel, initramfs.MODULES)
        fresh.write_bytes(initramfs.build(busybox.read_bytes(), modules.entries(drivers)))
        fresh.replace(path)
    return path


def _size(path: Path) -> int:
    fd = private.open_file(path, os.O_RDONLY)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def read_manifest(cache: Path) -> Manifest | None:
    """The manifest of `cache`, if it can be read and every image it names is there in its full size.

    Raises GuestError for what somebody else could have written.
    """
    try:
        raw: dict[str, Any] = json.loads(private.read_bytes(cache / MANIFEST))
        if raw["format"] != FORMAT:
            return None
        manifest = Manifest(
            raw["directory"],
            {role: Image(**image) for role, image in raw["images"].items()},
            tuple(Package(**package) for package in raw["packages"]),
        )
        whole = all(_size(cache / manifest.directory / image.file) == image.size for image in manifest.images.values())
    except PermissionError as problem:
        raise GuestError(f"{problem.filename} {problem.strerror}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    whole = whole and manifest.images.keys() >= {"kernel", "firmware", "uboot", "busybox"}
    return manifest if whole and any(package.name.startswith(KERNEL) for package in manifest.packages) else None
