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

from vmesh.guest import initramfs

SUITE = "trixie"
MANIFEST = "manifest.json"
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
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"  # relative ones are to be ignored (XDG)
    return root / "vmesh" / "guest" / "debian-13"


def find() -> Guest | None:
    """The Debian guest in the cache; None if there is none, or if it is not whole.

    The initramfs is made here, from the cached busybox, if this version of vmesh makes another one than it found.
    """
    cache = cache_directory()
    manifest = read_manifest(cache)
    if manifest is None:
        return None
    paths = {role: cache / manifest.directory / image.file for role, image in manifest.images.items()}
    try:
        initrd = _initramfs(paths["busybox"])
    except OSError:
        return None
    versions = {package.name: package.version for package in manifest.packages}
    linux = next((version for name, version in versions.items() if name.startswith("linux-image-")), "?")
    return Guest(
        name=f"Debian 13 (Linux {linux}, OpenSBI {versions.get('opensbi', '?')})",
        bios=str(paths["firmware"]),
        kernel=paths["kernel"],
        initrd=initrd,
        append=APPEND,
        uboot=paths["uboot"],
    )


def _initramfs(busybox: Path) -> Path:
    path = busybox.with_name(f"initramfs-{initramfs.recipe()}.cpio")
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(initramfs.build(busybox.read_bytes()))
        fresh.replace(path)
    return path


def read_manifest(cache: Path) -> Manifest | None:
    """The manifest of `cache`, if it can be read and every image it names is there in its full size."""
    try:
        raw: dict[str, Any] = json.loads((cache / MANIFEST).read_text())
        if raw["format"] != FORMAT:
            return None
        manifest = Manifest(
            raw["directory"],
            {role: Image(**image) for role, image in raw["images"].items()},
            tuple(Package(**package) for package in raw["packages"]),
        )
        whole = all(
            (cache / manifest.directory / image.file).stat().st_size == image.size for image in manifest.images.values()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if whole and manifest.images.keys() >= {"kernel", "firmware", "uboot", "busybox"} else None
