"""What counts as a guest in the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmesh import guest
from vmesh.guest import initramfs, modules
from vmesh.guest.cache import MANIFEST, Image, Manifest, Package, cache_directory, find, kernel_package, read_manifest
from vmesh.guest.errors import GuestError

ROLES = ("kernel", "firmware", "uboot", "busybox")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a whole guest in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = cache_directory()
    (cache / "images-1").mkdir(parents=True)
    for role in ROLES:
        (cache / "images-1" / role).write_text(role)
    images = {role: Image(role, len(role), "0" * 64) for role in ROLES}
    packages = (
        Package("linux-image-6.12.1-riscv64", "6.12.1-2", "l.deb", 1, ""),
        Package("opensbi", "1.6-1", "o.deb", 1, ""),
    )
    Manifest("images-1", images, packages).write(cache)
    (cache / "debs").mkdir()
    (cache / "debs" / "l.deb").write_text("kernel's package")
    monkeypatch.setattr(modules, "load", _load)
    return cache


def _load(deb: Path, names: Sequence[str]) -> tuple[modules.Module, ...]:
    assert deb.read_text() == "kernel's package"
    return tuple(modules.Module(name, "6.12.1-riscv64", name.encode(), (), ()) for name in names)


def test_find_whole_guest_has_the_values_of_the_flags(cache: Path) -> None:
    found = find()

    assert found is not None
    assert found.name == "Debian 13 (Linux 6.12.1-2, OpenSBI 1.6-1)"
    assert found.bios == str(cache / "images-1" / "firmware")
    assert found.kernel.read_text() == "kernel"
    assert found.initrd is not None
    drivers = modules.entries(_load(cache / "debs" / "l.deb", initramfs.MODULES))
    assert found.initrd.read_bytes() == initramfs.build(b"busybox", drivers)
    assert "console=ttyS0" in found.append


def test_find_initramfs_of_another_version_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = find()
    monkeypatch.setattr(initramfs, "INIT", "#!/bin/sh\necho another\n")
    after = find()

    assert before is not None
    assert after is not None
    assert before.initrd != after.initrd


def test_find_kernel_package_is_gone_gives_none_if_the_initramfs_is_not_made_yet(cache: Path) -> None:
    deb = kernel_package()
    find()
    deb.unlink()
    assert find() is not None

    for made in cache.glob("images-1/initramfs-*"):
        made.unlink()

    assert find() is None
    with pytest.raises(GuestError, match="not cached"):
        kernel_package()


def test_find_empty_cache_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert find() is None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_find_image_that_is_not_whole_gives_none(cache: Path, role: str, damage: str) -> None:
    path = cache / "images-1" / role
    if damage == "missing":
        path.unlink()
    else:
        path.write_text(role[:-1])

    assert find() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"format": 2}',
        '{"format": 1, "directory": "d", "images": {"kernel": 3}, "packages": []}',
    ],
)
def test_read_manifest_of_another_form_gives_none(cache: Path, text: str) -> None:
    (cache / MANIFEST).write_text(text)

    assert read_manifest(cache) is None


def test_read_manifest_without_a_role_gives_none(cache: Path) -> None:
    raw = json.loads((cache / MANIFEST).read_text())
    del raw["images"]["uboot"]
    (cache / MANIFEST).write_text(json.dumps(raw))

    assert read_manifest(cache) is None


def test_default_without_a_cached_guest_is_the_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    built_in = guest.default(tmp_path)

    assert (built_in.bios, built_in.initrd, built_in.append) == ("none", None, "")
    assert built_in.kernel.is_relative_to(tmp_path)
    assert built_in.kernel.stat().st_size > 0


def test_default_with_a_cached_guest_is_that(cache: Path, tmp_path: Path) -> None:
    assert guest.default(tmp_path) == find()
