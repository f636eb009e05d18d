"""What is run or believed later is not taken from where somebody else can write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmesh import private
from vmesh.guest import cache
from vmesh.guest.errors import GuestError
from vmesh_services.cpu.controllers.virt import NATIVE
from vmesh_services.cpu.core import image
from vmesh_services.cpu.core.region_store import RegionStore, RegionWriter
from vmesh_services.cpu.core.regions import Translation
from vmesh_services.cpu.isa.riscv.definition import ISA

CODE = Translation(b"\0\0", b"\0\0", b"code")
DIGEST = b"1" * 24


@pytest.fixture
def disown(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Gives a file to somebody else; where that takes privileges, all files are somebody else's."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, 65534, -1)
        else:
            user = os.geteuid() + 1
            monkeypatch.setattr(os, "geteuid", lambda: user)

    return give


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = private.cache_folder("native") / "file"
    private.make_folder(path.parent)
    path.write_bytes(b"ours")
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(PermissionError, match=words):
        private.read_bytes(path)


def test_of_this_user_alone(file: Path) -> None:
    assert private.read_bytes(file) == b"ours"
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_of_somebody_else(file: Path, disown: Callable[[Path], None]) -> None:
    disown(file)
    refused(file, "belongs to user")


def test_in_a_folder_of_somebody_else(file: Path, disown: Callable[[Path], None]) -> None:
    disown(file.parent)
    refused(file, "belongs to user")
    with pytest.raises(PermissionError):
        private.make_folder(file.parent)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_that_others_may_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    refused(file, f"written by others, mode {mode:04o}")


def test_a_folder_of_ours_is_closed_to_others(file: Path) -> None:
    file.parent.chmod(0o777)
    assert private.read_bytes(file) == b"ours"
    assert file.parent.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file(file: Path, kind: str) -> None:
    file.unlink()
    match kind:
        case "link":
            (file.parent / "other").write_bytes(b"ours")
            file.symlink_to("other")
        case "fifo":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
    with pytest.raises(OSError, match=str(file.name)):
        private.read_bytes(file)


def test_a_cache_that_is_named_relatively(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another one in each folder, also in those of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert private.cache_folder("native").is_relative_to(Path.home())


def test_a_core_of_somebody_else_is_not_run(
    file: Path, disown: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, planted = (image.CoreImage(code, {"symbol": 0}, [""], ["symbol"]) for code in (b"good", b"planted"))
    monkeypatch.setattr(image, "build_core", lambda isa, controllers: good)
    path = image.cache_folder() / f"{image.key()}.core"
    path.write_bytes(image._pack(planted))
    assert image.load_core(ISA, NATIVE) == planted
    disown(path)
    assert image.load_core(ISA, NATIVE) == good
    assert "belongs to user" in capsys.readouterr().err


def test_regions_of_somebody_else_are_not_run(file: Path, disown: Callable[[Path], None]) -> None:
    path = file.with_name("some.regions")
    writer = RegionWriter(path)
    writer.append(DIGEST, CODE)
    writer.close()
    assert RegionStore(path).find(DIGEST) == [CODE]
    disown(path)
    assert RegionStore(path).find(DIGEST) == []
    other = RegionWriter(path)
    other.append(b"2" * 24, CODE)
    assert path.stat().st_size == 44 + 16 + len(b"".join((CODE.steps, CODE.entries, CODE.code)))


@pytest.mark.parametrize("which", [cache.MANIFEST, "images-1/kernel", "images-1", "."])
def test_a_guest_of_somebody_else_is_not_booted(file: Path, disown: Callable[[Path], None], which: str) -> None:
    folder = cache.cache_directory()
    (folder / "images-1").mkdir(parents=True)
    images = {role: cache.Image(role, len(role), "") for role in ("kernel", "firmware", "uboot", "busybox")}
    for role in images:
        (folder / "images-1" / role).write_text(role)
    packages = (cache.Package("linux-image-6", "6", "l.deb", 1, ""),)
    cache.Manifest("images-1", images, packages).write(folder)
    assert cache.read_manifest(folder) is not None
    disown(folder / which)
    with pytest.raises(GuestError, match="belongs to user"):
        cache.find()
