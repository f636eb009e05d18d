"""The disk with Debian on it: what goes into it, and what is refused. That it boots is a system test."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vmesh.guest import Guest, image, rootfs
from vmesh.guest.errors import GuestError
from vmesh.guest.rootfs import Owner

GUEST = Guest("a guest", "bios", Path("kernel"), Path("initrd"), "console=ttyS0")


def test_lock_names_each_package_once_and_all_that_matters() -> None:
    debs = image.pinned("http://mirror/debian/")

    names = [deb.name for deb in debs]
    assert len(names) == len(set(names))
    assert {"base-files", "dpkg", "libc6", "systemd-sysv", "udev", "apt", "wget"} <= set(names)
    assert all(re.fullmatch("[0-9a-f]{64}", deb.sha256) and deb.size > 0 for deb in debs)
    assert all(deb.uri.startswith("http://mirror/debian/pool/main/") and deb.uri.endswith(deb.file) for deb in debs)


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("2G", 2 << 30)])
def test_size_is_read(text: str, size: int) -> None:
    assert image.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1", "0G", "-1G", "1.5G", "1T", "9999999G", "1G "])
def test_size_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GuestError, match="expected a number of mebibytes or gibibytes"):
        image.parse_size(text)
    with pytest.raises(SystemExit, match="2"):
        image.main([f"--size={text}"])
    assert "argument --size: " in capsys.readouterr().err


def test_tool_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(GuestError, match="no nosuch-tool: install Debian's package some-tools"):
        image.require_tools({"sh": "dash", "nosuch-tool": "some-tools"})


def settings(tree: Path, owners: Mapping[str, Owner]) -> str:
    """The script that gives files to their owners."""
    image.write_settings(tree, owners, "http://mirror/debian")
    return (tree / "etc/vmesh-owners").read_text()


def test_settings_script_gives_files_to_their_owners(tmp_path: Path) -> None:
    special = "usr/bin/a b"
    script = settings(tmp_path, {"usr/bin/su": Owner(0, 0, 0o4755), special: Owner(0, 42, 0o2755)})

    assert "chown -h 0:0 /usr/bin/su\nchmod 4755 /usr/bin/su\n" in script
    assert "chown -h 0:42 '/usr/bin/a b'\nchmod 2755 '/usr/bin/a b'\n" in script
    for name in ("configure", "owners"):
        subprocess.run(["sh", "-n", str(tmp_path / f"etc/vmesh-{name}")], check=True)
    assert (tmp_path / "etc/vmesh-configure").stat().st_mode & 0o777 == 0o755


def test_settings_who_is_not_root_leaves_all_owners_to_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = "find / -xdev ! -user 0 -exec chown -h 0:0 {} +"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert everything not in settings(tmp_path, {})

    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert everything in settings(tmp_path, {})


def test_settings_system_gets_packages_from_the_same_mirror_and_leaves_out_the_same(tmp_path: Path) -> None:
    settings(tmp_path, {})

    assert "URIs: http://mirror/debian\n" in (tmp_path / "etc/apt/sources.list.d/debian.sources").read_text()
    assert "path-exclude=/usr/share/man/*/*\n" in (tmp_path / "etc/dpkg/dpkg.cfg.d/excludes").read_text()


def test_file_system_holds_the_tree(peer: Callable[[str], str], tmp_path: Path) -> None:
    peer("mke2fs")
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/hostname").write_text("debian\n")
    disk = tmp_path / "disk"

    image.make_file_system(tmp_path / "tree", disk, 16 << 20)

    assert disk.stat().st_size == 16 << 20
    command = [peer("debugfs"), "-R", "cat /etc/hostname", str(disk)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "debian\n"


def test_file_system_too_small_for_the_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(b"x" * (3 << 20))

    with pytest.raises(GuestError, match=r"--size: expected at least [45]M"):
        image.make_file_system(tmp_path / "tree", tmp_path / "disk", 3 << 20)
    assert not (tmp_path / "disk").exists()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stands in for `vmesh run`: prints this."""

    def says(text: str) -> None:
        script = tmp_path / "machine"
        script.write_text(f"#!/bin/sh\necho \"$@\" >'{tmp_path}/arguments'\nprintf '%b' '{text}'\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return says


def test_configure_counts_packages(machine: Callable[[str], None], tmp_path: Path) -> None:
    machine(r"boot\r\nSetting up a ...\r\nSetting up b ...\r\nvmesh-configure: done\r\n")
    reports: list[tuple[str, int, int]] = []

    image.configure(GUEST, tmp_path / "a,b", "vmesh", 2, tmp_path / "log", lambda *report: reports.append(report))

    assert reports[-1] == ("configure", 2, 2)
    assert "Setting up b" in (tmp_path / "log").read_text()
    arguments = (tmp_path / "arguments").read_text()
    assert "root=/dev/vda rw init=/etc/vmesh-configure" in arguments
    assert f"-drive file={tmp_path}/a,,b,format=raw,if=virtio" in arguments


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            r"Setting up a\r\nvmesh-configure: failed: dpkg\r\nPowering off.\r\n",
            "said .*: vmesh-configure: failed: dpkg$",
        ),
        (r"panic\r\n", ": panic$"),
        ("", ": nothing$"),
    ],
)
def test_configure_that_fails_tells_what_the_machine_said(
    machine: Callable[[str], None], tmp_path: Path, text: str, complaint: str
) -> None:
    machine(text)

    with pytest.raises(GuestError, match=complaint):
        image.configure(GUEST, tmp_path / "disk", "vmesh", 2, tmp_path / "log")


@pytest.fixture
def disk(peer: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one is to be made, of no packages; what is in the folder `disks` so far is another one."""
    peer("mke2fs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "find", lambda: GUEST)
    monkeypatch.setattr(image, "fetch_packages", lambda *_: ([], "mirror"))
    path = tmp_path / "disks" / "disk"
    path.parent.mkdir()
    path.write_text("before")
    return path


def test_build_that_fails_leaves_what_was_there_and_is_gone_on_with(
    machine: Callable[[str], None], disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("panic")
    with pytest.raises(GuestError, match="panic; what was done is in"):
        image.build(disk, 64 << 20)

    assert disk.read_text() == "before"
    (unfinished,) = set(disk.parent.iterdir()) - {disk}
    assert [path.name for path in (tmp_path / "cache").rglob("tree-*")] == []
    with unfinished.open("r+b") as file:  # as the machine has left it
        file.seek(32 << 20)
        file.write(b"half of the work")

    with monkeypatch.context() as once:
        once.setattr(rootfs, "unpack", lambda *_: pytest.fail("unpacked again"))
        machine("vmesh-configure: done\n")
        image.build(disk, 64 << 20)

    assert disk.stat().st_size == 64 << 20
    assert b"half of the work" in disk.read_bytes()
    assert list(disk.parent.iterdir()) == [disk]


def test_build_of_another_disk_begins_anew(machine: Callable[[str], None], disk: Path) -> None:
    machine("panic")
    for size, key in ((64, ""), (32, ""), (32, "ssh-ed25519 AAAA me")):
        with pytest.raises(GuestError, match="panic"):
            image.build(disk, size << 20, ssh_key=key)
        (unfinished,) = set(disk.parent.iterdir()) - {disk}
        assert unfinished.stat().st_size == size << 20


def test_public_key_is_put_where_sshd_looks_for_it(tmp_path: Path) -> None:
    image.write_settings(tmp_path, {}, "mirror", {"root/.ssh/authorized_keys": "ssh-ed25519 AAAA me\n"})
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA me\n"


@pytest.mark.parametrize("text", ["", "-----BEGIN OPENSSH PRIVATE KEY-----\nx", "ssh-rsa", "ssh-rsa a b\nssh-rsa c d"])
def test_what_is_no_public_key_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(GuestError, match="expected one public key"):
        image.read_key(tmp_path / "key")
    (tmp_path / "key").write_text("ssh-ed25519 AAAA me@here\n")
    assert image.read_key(tmp_path / "key") == "ssh-ed25519 AAAA me@here"
