"""Fetching: apt's answers, packages to images, and that a guest in use is replaced only by a whole one."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vmesh.guest import apt as apt_module
from vmesh.guest import fetch as fetch_module
from vmesh.guest.apt import Apt, Deb, parse_printed_uris
from vmesh.guest.cache import cache_directory, find, read_manifest
from vmesh.guest.errors import GuestError
from vmesh.guest.initramfs import MODULES

HASH = "0123456789abcdef" * 4
CONTENT = {
    "linux-image-6.12.1-riscv64": ("boot/vmlinux-6.12.1-riscv64", b"kernel" * 1000),
    "opensbi": ("usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin", b"firmware"),
    "u-boot-qemu": ("usr/lib/u-boot/qemu-riscv64_smode/u-boot.bin", b"loader"),
    "busybox-static": ("usr/bin/busybox", b"busybox"),
}


@pytest.fixture
def debs(peer: Callable[[str], str], tmp_path: Path) -> dict[str, Path]:
    """Small real packages by name."""
    built = {}
    for name, (path, data) in CONTENT.items():
        tree = tmp_path / "trees" / name
        (tree / path).parent.mkdir(parents=True)
        (tree / path).write_bytes(data)
        if name.startswith("linux-image-"):
            built_in = tree / "usr/lib/modules/6.12.1-riscv64/modules.builtin"
            built_in.parent.mkdir(parents=True)
            built_in.write_text("".join(f"kernel/{module}.ko\n" for module in MODULES))
        (tree / "DEBIAN").mkdir()
        control = f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
        (tree / "DEBIAN" / "control").write_text(control)
        built[name] = tmp_path / f"{name}_1.0-1_all.deb"
        subprocess.run([peer("dpkg-deb"), "-b", str(tree), str(built[name])], check=True, capture_output=True)
    return built


class LocalApt:
    """Stands in for Apt: packages from a folder, and a count of downloads."""

    def __init__(self, debs: dict[str, Path]) -> None:
        self.debs = debs
        self.downloads: list[list[str]] = []

    def prepare(self) -> None: ...

    def update(self) -> None: ...

    def dependencies(self, package: str) -> tuple[str, ...]:
        return ("linux-base", "linux-image-6.12.1-riscv64")

    def describe(self, packages: Sequence[str]) -> tuple[Deb, ...]:
        paths = [self.debs[name] for name in packages]
        return tuple(
            Deb(p.as_uri(), p.name, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths
        )

    def download(self, debs: Sequence[Deb], folder: Path, on_progress: Callable[[int], None]) -> None:
        self.downloads.append([deb.name for deb in debs])
        for deb in debs:
            (folder / deb.file).write_bytes(self.debs[deb.name].read_bytes())
        on_progress(1)


@pytest.fixture
def local(debs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalApt:
    local = LocalApt(debs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch_module, "Apt", lambda *_: local)
    monkeypatch.setattr(fetch_module, "require_apt", lambda: None)
    monkeypatch.setattr(fetch_module, "host_mirror", lambda: "mirror")
    monkeypatch.setattr(fetch_module, "pinned", lambda _: local.describe(list(local.debs)))
    return local


def test_fetch_fills_the_cache_with_the_packages_files(local: LocalApt) -> None:
    guest = fetch_module.fetch()

    assert guest == find()
    assert guest.kernel.read_bytes() == b"kernel" * 1000
    assert Path(guest.bios).read_bytes() == b"firmware"
    assert guest.uboot is not None
    assert guest.uboot.read_bytes() == b"loader"
    manifest = read_manifest(cache_directory())
    assert manifest is not None
    assert {image.sha256 for image in manifest.images.values()} == {
        hashlib.sha256(data).hexdigest() for _, data in CONTENT.values()
    }
    assert {package.version for package in manifest.packages} == {"1.0-1"}


def test_fetch_again_does_not_ask_apt(local: LocalApt) -> None:
    fetch_module.fetch()
    fetch_module.fetch()

    assert len(local.downloads) == 1


def test_fetch_pinned_packages_need_no_lists(local: LocalApt, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_sync() -> None:
        raise GuestError("apt-get failed: mirror sync in progress")

    monkeypatch.setattr(local, "update", out_of_sync)

    fetch_module.fetch()

    with pytest.raises(GuestError, match="mirror sync"):
        fetch_module.fetch(refresh=True)


def test_fetch_takes_current_packages_where_the_pinned_ones_are_gone(
    local: LocalApt, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = local.download

    def without_pinned(debs: Sequence[Deb], folder: Path, on_progress: Callable[[int], None]) -> None:
        if any("gone" in deb.file for deb in debs):
            raise GuestError("apt-helper failed: 404")
        download(debs, folder, on_progress)

    monkeypatch.setattr(local, "download", without_pinned)
    monkeypatch.setattr(fetch_module, "pinned", lambda _: (Deb("uri", "gone_1_all.deb", 1, HASH),))

    assert fetch_module.fetch().kernel.read_bytes() == b"kernel" * 1000

    monkeypatch.setattr(local, "describe", lambda _: (Deb("uri", "also-gone_1_all.deb", 1, HASH),))
    (cache_directory() / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(GuestError, match=r"404; before that, for the pinned packages: .*404"):
        fetch_module._fill(cache_directory(), "mirror", False, lambda *_: None)


def test_fetch_refresh_downloads_only_what_changed(local: LocalApt, debs: dict[str, Path]) -> None:
    fetch_module.fetch()
    old = find()
    debs["opensbi"].rename(debs["opensbi"].with_name("opensbi_1.1-1_all.deb"))
    debs["opensbi"] = debs["opensbi"].with_name("opensbi_1.1-1_all.deb")
    debs["opensbi"].write_bytes(debs["opensbi"].read_bytes() + b"\n")

    new = fetch_module.fetch(refresh=True)

    assert local.downloads[1] == ["opensbi"]
    assert old is not None
    assert new.kernel != old.kernel
    assert old.kernel.exists(), "a machine that runs may still need the guest it was started with"
    assert {path.name for path in (cache_directory() / "debs").iterdir()} == {path.name for path in debs.values()}


def test_fetch_damaged_download_is_refused_and_the_old_guest_stays(local: LocalApt, debs: dict[str, Path]) -> None:
    before = fetch_module.fetch()
    described = local.describe(list(debs))
    debs["opensbi"].write_bytes(debs["opensbi"].read_bytes()[:-1] + b"!")
    (cache_directory() / "debs" / debs["opensbi"].name).unlink()
    local.describe = lambda packages: described  # type: ignore[method-assign]

    with pytest.raises(GuestError, match="expected SHA256"):
        fetch_module.fetch(refresh=True)
    assert find() == before


def test_fetch_package_without_the_file_is_refused(local: LocalApt, debs: dict[str, Path]) -> None:
    debs["busybox-static"].write_bytes(debs["opensbi"].read_bytes())

    with pytest.raises(GuestError, match=r"expected a file .*busybox in it"):
        fetch_module.fetch()
    assert find() is None


def test_fetch_package_that_is_no_package_is_refused(local: LocalApt, debs: dict[str, Path]) -> None:
    debs["opensbi"].write_bytes(b"no archive")

    with pytest.raises(GuestError, match=r"opensbi_1\.0-1_all\.deb"):
        fetch_module.fetch()
    assert find() is None


def test_fetch_waits_for_another_and_takes_its_guest(local: LocalApt) -> None:
    cache = cache_directory()
    cache.mkdir(parents=True)
    waiting = threading.Event()
    results = []

    def report(step: str, _done: int, _total: int) -> None:
        if "waiting" in step:
            waiting.set()

    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: results.append(fetch_module.fetch(report=report)))
        thread.start()
        assert waiting.wait(30)
        fetch_module._fill(cache, "mirror", False, lambda *_: None)
    thread.join(30)

    assert results == [find()]
    assert len(local.downloads) == 1


def test_main_without_apt_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    assert fetch_module.main(["--if-missing"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("vmesh guest fetch: this host has no apt-get")


def test_main_if_missing_with_a_guest_is_silent(local: LocalApt, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_module.fetch()

    assert fetch_module.main(["--if-missing"]) == 0
    assert capsys.readouterr() == ("", "")


def test_parse_printed_uris_gives_names_versions_sizes_and_hashes() -> None:
    printed = f"'uri:/a%3a1_r.deb' busybox-static_1%3a1.37.0-6_riscv64.deb 941532 SHA256:{HASH}\n"

    (deb,) = parse_printed_uris(printed, 1)

    assert deb == Deb("uri:/a%3a1_r.deb", "busybox-static_1%3a1.37.0-6_riscv64.deb", 941532, HASH)
    assert (deb.name, deb.version) == ("busybox-static", "1:1.37.0-6")


@pytest.mark.parametrize(
    "printed",
    [
        "",
        f"'uri:/x' ../../etc/passwd 5 SHA256:{HASH}\n",
        "'uri:/x' x_1_all.deb 5 MD5Sum:0123\n",
        f"'uri:/x' x_1_all.deb 5 SHA256:{HASH}\n'uri:/y' y_1_all.deb 5 SHA256:{HASH}\n",
    ],
)
def test_parse_printed_uris_anything_else_is_refused(printed: str) -> None:
    with pytest.raises(GuestError, match="expected 1 files"):
        list(parse_printed_uris(printed, 1))


@pytest.mark.peer
def test_update_of_an_unsigned_mirror_is_refused(peer: Callable[[str], str], tmp_path: Path) -> None:
    peer("apt-get")
    suite = tmp_path / "mirror" / "dists" / "trixie"
    (suite / "main" / "binary-riscv64").mkdir(parents=True)
    (suite / "main" / "binary-riscv64" / "Packages").write_text("")
    (suite / "Release").write_text("Codename: trixie\nComponents: main\nArchitectures: riscv64\n")
    apt = Apt(tmp_path / "state", "trixie", "riscv64", f"file:{tmp_path}/mirror")
    apt.prepare()

    with pytest.raises(GuestError, match=r"apt-get failed: .*not signed"):
        apt.update()


@pytest.mark.peer
def test_closure_has_the_files_with_their_sha256(peer: Callable[[str], str], tmp_path: Path) -> None:
    """Asked for the URIs of an installation, older versions of apt (2.6, of Debian 12) prefer to give MD5."""
    peer("apt-get")
    fields = "Version: 1\nArchitecture: riscv64\nMaintainer: a <a@b.c>\nDescription: d\nSize: 7"
    hashes = f"MD5sum: {'0' * 32}\nSHA256: {HASH}"
    (tmp_path / "Packages").write_text(
        "".join(
            f"Package: {name}\n{more}Filename: ./{name}_1_riscv64.deb\n{fields}\n{hashes}\n\n"
            for name, more in (("one", "Depends: two\n"), ("two", ""), ("three", ""))
        )
    )
    apt = Apt(tmp_path / "state", "trixie", "riscv64", "mirror")
    apt.prepare()
    (tmp_path / "state" / "sources.list").write_text(f"deb [trusted=yes] file:{tmp_path} ./\n")
    apt.update()

    found = apt.closure(["one"])

    assert sorted((deb.name, deb.size, deb.sha256) for deb in found) == [("one", 7, HASH), ("two", 7, HASH)]


@pytest.mark.peer
def test_update_of_a_mirror_that_is_not_there_is_refused(peer: Callable[[str], str], tmp_path: Path) -> None:
    peer("apt-get")
    apt = Apt(tmp_path / "state", "trixie", "riscv64", f"file:{tmp_path}/none")
    apt.prepare()

    with pytest.raises(GuestError, match="apt-get failed"):
        apt.update()


@pytest.mark.peer
def test_download_goes_on_with_a_part_and_checks_the_hash(peer: Callable[[str], str], tmp_path: Path) -> None:
    peer("apt-get")
    source = tmp_path / "x_1_all.deb"
    source.write_bytes(b"package" * 1000)
    good = Deb(
        source.as_uri().replace("file://", "copy:"), source.name, 7000, hashlib.sha256(source.read_bytes()).hexdigest()
    )
    folder = tmp_path / "debs"
    folder.mkdir()
    (folder / good.file).write_bytes(source.read_bytes()[:3000])
    apt = Apt(tmp_path / "state", "trixie", "riscv64", "unused")

    apt.download([good], folder, lambda _: None)

    assert (folder / good.file).read_bytes() == source.read_bytes()
    with pytest.raises(GuestError, match="apt-helper failed"):
        apt.download([replace(good, file="y_1_all.deb", sha256=HASH)], folder, lambda _: None)


def test_host_mirror_is_debians_own_and_not_the_security_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt_module, "KEYRING", Path(__file__))
    listed = "Other stable uri:/other\nDebian bookworm-security uri:/sec\nDebian bookworm uri:/debian\n"
    monkeypatch.setattr(apt_module, "_output", lambda _: listed)

    assert apt_module.host_mirror() == "uri:/debian"


def test_host_mirror_without_debian_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt_module, "KEYRING", Path(__file__))
    monkeypatch.setattr(apt_module, "_output", lambda _: "Other stable uri:/other\n")

    with pytest.raises(GuestError, match="--mirror URI"):
        apt_module.host_mirror()
