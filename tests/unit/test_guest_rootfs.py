"""Packages to a root file system: what is where, whose it is, what dpkg is told."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmesh.guest import rootfs
from vmesh.guest.errors import GuestError
from vmesh.guest.rootfs import Filter, Owner

Build = Callable[..., Path]


@dataclass(frozen=True)
class File:
    """A member of a package's archive."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    uid: int = 0
    gid: int = 0


def folder(name: str, mode: int = 0o755) -> File:
    return File(name, mode=mode, kind=tarfile.DIRTYPE)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> File:
    return File(name, mode=0o777, kind=kind, link=target)


@pytest.fixture
def build(peer: Callable[[str], str], tmp_path: Path) -> Build:
    """Makes a package of files, its control files beside `control` given by name."""
    peer("dpkg-deb")

    def make(name: str, files: Sequence[File], control: Mapping[str, str] | None = None, extra: str = "") -> Path:
        text = (
            f"Package: {name}\nVersion: 1\nArchitecture: riscv64\nMaintainer: a <a@b.c>\n{extra}Description: d\n x: y\n"
        )
        path = tmp_path / f"{name}_1_riscv64.deb"
        scripts = {"control": text, **(control or {})}
        with path.open("wb") as file:
            file.write(b"!<arch>\n")
            members = [
                ("debian-binary", b"2.0\n"),
                ("control.tar", _tar([File(f"./{key}", value.encode(), 0o755) for key, value in scripts.items()])),
                ("data.tar", _tar([folder("./"), *files])),
            ]
            for member, data in members:
                file.write(f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
                file.write(data + b"\n" * (len(data) % 2))
        return path

    return make


def _tar(files: Sequence[File]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in files:
            member = tarfile.TarInfo(file.name)
            member.size, member.mode, member.type, member.linkname = len(file.data), file.mode, file.kind, file.link
            member.uid, member.gid = file.uid, file.gid
            archive.addfile(member, io.BytesIO(file.data))
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def test_unpack_files_links_and_folders(build: Build, tree: Path) -> None:
    files = [
        folder("./usr"),
        folder("./usr/bin"),
        File("./usr/bin/a", b"program", 0o755),
        link("./usr/bin/b", "a"),
        link("./usr/bin/c", "./usr/bin/a", tarfile.LNKTYPE),
        folder("./root", 0o700),
    ]

    owners = rootfs.unpack([build("one", files)], tree)

    assert (tree / "usr/bin/a").read_bytes() == b"program"
    assert (tree / "usr/bin/a").stat().st_mode & 0o7777 == 0o755
    assert (tree / "usr/bin/b").readlink() == Path("a")
    assert (tree / "usr/bin/c").samefile(tree / "usr/bin/a")
    assert (tree / "root").stat().st_mode & 0o7777 == 0o700
    assert (tree / "usr/bin/a").stat().st_uid == os.geteuid()
    assert owners == {}


def test_unpack_what_is_not_simply_roots_is_left_to_the_guest(build: Build, tree: Path) -> None:
    files = [
        folder("./bin"),
        File("./bin/su", b"s", 0o4755),
        File("./bin/chage", b"c", 0o2755, gid=42),
        folder("./tmp", 0o1777),
        File("./bin/ls", b"l", 0o755),
    ]

    owners = rootfs.unpack([build("one", files)], tree)

    assert owners == {
        "bin/su": Owner(0, 0, 0o4755),
        "bin/chage": Owner(0, 42, 0o2755),
        "tmp": Owner(0, 0, 0o1777),
    }
    assert (tree / "bin/su").stat().st_mode & 0o7777 == 0o755


def test_unpack_goes_through_the_links_of_the_first_package(build: Build, tree: Path) -> None:
    base = build(
        "base-files", [folder("./usr"), folder("./usr/lib"), link("./lib", "usr/lib"), link("./etc", "/usr/lib")]
    )
    other = build("a-library", [folder("./lib"), File("./lib/x", b"x"), File("./etc/y", b"y")])

    rootfs.unpack([other, base], tree)

    assert (tree / "lib").is_symlink()
    assert (tree / "usr/lib/x").read_bytes() == b"x"
    assert (tree / "usr/lib/y").read_bytes() == b"y"


def test_unpack_last_filter_that_fits_counts(build: Build, tree: Path) -> None:
    files = [folder("./doc"), folder("./doc/a"), File("./doc/a/manual"), File("./doc/a/copyright"), File("./other")]
    filters = [Filter("exclude", "/doc/*"), Filter("include", "/doc/*/copyright")]

    rootfs.unpack([build("one", files)], tree, filters)

    assert sorted(path.name for path in tree.rglob("*") if path.is_file() and "dpkg" not in path.parts) == [
        "copyright",
        "other",
    ]
    assert "/doc/a/manual" in (tree / rootfs.DATABASE / "info/one.list").read_text()


def test_unpack_folders_stay_where_their_files_are_left_out(build: Build, tree: Path) -> None:
    """Scripts of packages put files of their own there: update-alternatives links to manual pages."""
    files = [folder("./man"), folder("./man/man1"), File("./man/man1/java.1")]

    rootfs.unpack([build("one", files)], tree, [Filter("exclude", "/man*")])

    assert [path.name for path in (tree / "man").rglob("*")] == ["man1"]


def test_unpack_dpkg_knows_the_packages_and_their_state(build: Build, tree: Path, peer: Callable[[str], str]) -> None:
    control = {"conffiles": "/etc/a.conf\n", "postinst": "#!/bin/sh\n", "md5sums": ""}
    one = build("one", [folder("./etc"), File("./etc/a.conf", b"set\n")], control)
    two = build("two", [], {}, "Multi-Arch: same\nDepends: one\n")

    rootfs.unpack([one, two], tree)

    def query(*arguments: str) -> str:
        command = [peer("dpkg-query"), "--admindir", str(tree / rootfs.DATABASE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert query("-W", "-f", "${Package} ${Status} ${Depends}\n").splitlines() == [
        "one install ok unpacked ",
        "two install ok unpacked one",
    ]
    assert query("-W", "-f", "${Conffiles}", "one").split() == ["/etc/a.conf", hashlib.md5(b"set\n").hexdigest()]
    assert "/etc/a.conf" in query("-L", "one")
    info = tree / rootfs.DATABASE / "info"
    assert os.access(info / "one.postinst", os.X_OK)
    assert (info / "two:riscv64.list").read_text() == "/.\n"


def test_unpack_packages_are_told_of_what_they_asked_for(build: Build, tree: Path) -> None:
    triggers = "# what\ninterest-noawait ldconfig\ninterest /usr/lib/x\nactivate-noawait other\n"

    rootfs.unpack([build("one", [], {"triggers": triggers}), build("two", [], {"triggers": "interest ldconfig"})], tree)

    folder = tree / rootfs.DATABASE / "triggers"
    assert (folder / "ldconfig").read_text() == "one/noawait\ntwo\n"
    assert (folder / "File").read_text() == "/usr/lib/x one\n"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([File("/etc/passwd", b"x")], "expected a path below the root"),
        ([File("./a/../../b", b"x")], "expected a path below the root"),
        ([File("./dev/null", kind=tarfile.CHRTYPE)], "expected a file, a folder or a link"),
        ([link("./a", "./nothing", tarfile.LNKTYPE)], "expected a file at ./nothing to link to"),
        ([link("./a", "../../outside", tarfile.LNKTYPE)], "expected a path below the root"),
        ([link("./a", "b"), link("./b", "a"), File("./a/c")], "too many links"),
        ([folder("./a"), File("./a")], "a folder of another package is there"),
    ],
)
def test_unpack_what_no_package_has_is_refused(build: Build, tree: Path, files: Sequence[File], complaint: str) -> None:
    with pytest.raises(GuestError, match=complaint):
        rootfs.unpack([build("one", files)], tree)


def test_unpack_links_out_of_the_tree_stay_in_it(build: Build, tree: Path) -> None:
    files = [link("./up", "../../.."), link("./abs", "/"), File("./up/a", b"a"), File("./abs/b", b"b")]

    rootfs.unpack([build("one", files)], tree)

    assert (tree / "a").read_bytes() == b"a"
    assert (tree / "b").read_bytes() == b"b"


def test_unpack_noise_is_refused(tree: Path, tmp_path: Path, peer: Callable[[str], str]) -> None:
    peer("dpkg-deb")
    (tmp_path / "noise_1_all.deb").write_bytes(b"noise")

    with pytest.raises(GuestError, match=r"noise_1_all\.deb: cannot be unpacked"):
        rootfs.unpack([tmp_path / "noise_1_all.deb"], tree)
