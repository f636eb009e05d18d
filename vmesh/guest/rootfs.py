"""Debian packages to the tree of a root file system, as `dpkg --unpack` leaves them, on a host of any architecture.

    owners = rootfs.unpack(debs, tree)   then `dpkg --configure -a` in the guest makes a system of it

The files in `tree` belong to whoever calls, who need not be root: owners and special modes are returned, for the guest
to set. Sources: deb(5), deb-control(5), deb-triggers(5), and for dpkg's database Debian's dpkg source,
doc/triggers.txt and lib/dpkg/dbdir.h, with what dpkg itself writes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

from vmesh.guest.errors import GuestError

DATABASE = PurePosixPath("var/lib/dpkg")
FIRST = "base-files"  # brings /bin, /lib and so on as links into /usr, which other packages may go through

_LINKS = 40  # on the way to a file, as Linux has it
_OWN_MODE = 0o777  # modes that need no special right; whoever calls may always write
_CONTROL_LIMIT = 16 << 20  # bytes of a package's control files


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a file is, by number, and its mode without the type."""

    uid: int
    gid: int
    mode: int

    @property
    def is_usual(self) -> bool:
        """Whether nothing is left to set once everything belongs to root."""
        return self.uid == 0 and self.gid == 0 and not self.mode & ~_OWN_MODE


@dataclass(frozen=True, slots=True)
class Filter:
    """Files to leave out or, of those, to have all the same: as in dpkg(1), --path-exclude. `*` fits slashes too."""

    action: Literal["exclude", "include"]
    pattern: str


@dataclass(frozen=True, slots=True)
class _Package:
    """The control part of a package: its fields as they are in `control`, and its other files by name."""

    name: str
    architecture: str
    control: str
    files: Mapping[str, tuple[bytes, int]]  # data and mode
    multi_arch_same: bool

    @property
    def stem(self) -> str:
        """How its files in the database are called."""
        return f"{self.name}:{self.architecture}" if self.multi_arch_same else self.name


def unpack(debs: Sequence[Path], tree: Path, filters: Sequence[Filter] = ()) -> Mapping[str, Owner]:
    """Unpack `debs` into `tree`, an empty folder; returns the owners of all files that are not just root's, by path.

    Of the `filters` that fit a file the last one counts. Raises GuestError for a package that cannot be unpacked.
    """
    owners: dict[str, Owner] = {}
    database = tree / DATABASE
    for folder in ("info", "triggers", "updates", "parts", "alternatives"):
        (database / folder).mkdir(parents=True)
    status: list[str] = []
    interests: list[tuple[str, str]] = []
    for deb in sorted(debs, key=lambda path: (path.name.split("_")[0] != FIRST, path.name)):
        package = _control(deb)
        paths: list[str] = []
        with _archive(deb, "--fsys-tarfile") as archive:
            for member in archive:
                name = _relative(deb, member.name)
                paths.append("/." if name == PurePosixPath() else f"/{name}")
                # Folders stay: scripts of packages put files into them (update-alternatives a link into man1).
                if name != PurePosixPath() and (member.isdir() or _is_wanted(f"/{name}", filters)):
                    _unpack_member(deb, archive, member, name, tree, owners)
        _record(package, paths, database / "info")
        status.append(_status(package, tree))
        interests += _interests(package)
    (database / "status").write_text("\n".join(status))
    (database / "available").touch()
    (database / "arch").write_text("riscv64\n")
    (database / "info" / "format").write_text("1\n")
    _write_interests(interests, database / "triggers")
    return {path: owner for path, owner in sorted(owners.items()) if not owner.is_usual}


def _control(deb: Path) -> _Package:
    files: dict[str, tuple[bytes, int]] = {}
    with _archive(deb, "--ctrl-tarfile") as archive:
        for member in archive:
            if member.isfile():
                if member.size > _CONTROL_LIMIT:
                    raise GuestError(f"{deb}: {member.name}: expected at most {_CONTROL_LIMIT} bytes")
                source = archive.extractfile(member)
                assert source is not None
                files[PurePosixPath(member.name).name] = (source.read(), member.mode & _OWN_MODE)
    try:
        control = files.pop("control")[0].decode()
        fields = {
            name: value.strip() for name, _, value in (line.partition(":") for line in control.splitlines()) if value
        }
        return _Package(
            fields["Package"], fields["Architecture"], control.strip(), files, fields.get("Multi-Arch") == "same"
        )
    except (KeyError, UnicodeDecodeError) as error:
        raise GuestError(f"{deb}: expected a control file with Package and Architecture") from error


def _is_wanted(path: str, filters: Sequence[Filter]) -> bool:
    fitting = [each.action for each in filters if fnmatchcase(path, each.pattern)]
    return not fitting or fitting[-1] == "include"


def _unpack_member(
    deb: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, name: PurePosixPath, tree: Path,
    owners: dict[str, Owner],
) -> None:  # fmt: skip
    """Put a file of a package where it belongs."""
    place = _follow(deb, tree, name.parent) / name.name
    key = str(place.relative_to(tree))
    mode = member.mode & 0o7777
    if member.isdir():
        target = _follow(deb, tree, name)  # may be a link to a folder: /lib
        if not target.exists():
            target.mkdir(parents=True)
            target.chmod(mode & _OWN_MODE | 0o700)
            owners[key] = Owner(member.uid, member.gid, mode)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        raise GuestError(f"{deb}: {member.name}: a folder of another package is there")
    place.unlink(missing_ok=True)
    if member.issym():
        place.symlink_to(member.linkname)
        owners[key] = Owner(member.uid, member.gid, _OWN_MODE)
    elif member.islnk():
        linked = _relative(deb, member.linkname)
        source_path = _follow(deb, tree, linked.parent) / linked.name
        if source_path.is_symlink() or not source_path.is_file():
            raise GuestError(f"{deb}: {member.name}: expected a file at {member.linkname} to link to")
        place.hardlink_to(source_path)
    elif member.isfile():
        source = archive.extractfile(member)
        assert source is not None
        with place.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        place.chmod(mode & _OWN_MODE | 0o600)
        owners[key] = Owner(member.uid, member.gid, mode)
    else:
        raise GuestError(f"{deb}: {member.name}: expected a file, a folder or a link")


def _relative(deb: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\n" in name:
        raise GuestError(f"{deb}: {name!r}: expected a path below the root")
    return path


def _follow(deb: Path, tree: Path, path: PurePosixPath) -> Path:
    """Where `path` is below `tree` when links are followed as in a system whose root `tree` is."""
    place: list[str] = []
    parts = list(reversed(path.parts))
    links = 0
    while parts:
        part = parts.pop()
        if part == "..":
            del place[-1:]
            continue
        here = tree.joinpath(*place, part)
        if not here.is_symlink():
            place.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise GuestError(f"{deb}: {path}: too many links on the way")
        target = PurePosixPath(here.readlink())
        if target.is_absolute():
            place.clear()
        parts += reversed([each for each in target.parts if each != "/"])
    return tree.joinpath(*place)


def _record(package: _Package, paths: Sequence[str], info: Path) -> None:
    for name, (data, mode) in package.files.items():
        path = info / f"{package.stem}.{name}"
        path.write_bytes(data)
        path.chmod(mode)
    (info / f"{package.stem}.list").write_text("".join(f"{path}\n" for path in paths))


def _status(package: _Package, tree: Path) -> str:
    """The package's paragraph of dpkg's status file: unpacked, its configuration files in place."""
    lines = package.control.splitlines()
    lines.insert(1, "Status: install ok unpacked")
    files = [words[0] for line in _lines(package, "conffiles") if len(words := line.split()) == 1]
    if files:
        lines.append("Conffiles:")
    for file in files:
        data = (tree / file.removeprefix("/")).read_bytes()
        lines.append(f" {file} {hashlib.md5(data, usedforsecurity=False).hexdigest()}")
    return "\n".join(lines) + "\n"


def _interests(package: _Package) -> Iterator[tuple[str, str]]:
    """What the package wants to be told of, and its name with how."""
    for line in _lines(package, "triggers"):
        match line.split():
            case ["interest-noawait", trigger]:
                yield trigger, f"{package.stem}/noawait"
            case ["interest" | "interest-await", trigger]:
                yield trigger, package.stem


def _lines(package: _Package, file: str) -> list[str]:
    return package.files.get(file, (b"", 0))[0].decode(errors="replace").splitlines()


def _write_interests(interests: Sequence[tuple[str, str]], folder: Path) -> None:
    """Those in paths go to one file, those in names to a file each."""
    with (folder / "File").open("w") as paths:
        for trigger, package in interests:
            if trigger.startswith("/"):
                paths.write(f"{trigger} {package}\n")
            elif "/" not in trigger:
                with (folder / trigger).open("a") as names:
                    names.write(f"{package}\n")


@contextmanager
def _archive(deb: Path, part: str) -> Iterator[tarfile.TarFile]:
    """A part of a package, read as a stream to its end. Raises GuestError if dpkg-deb or tarfile cannot."""
    with subprocess.Popen(["dpkg-deb", part, str(deb)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacker:
        assert unpacker.stdout is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
                yield archive
            while unpacker.stdout.read(1 << 16):
                pass  # padding behind the archive's end, which dpkg-deb wants to write
        except tarfile.TarError as error:
            raise GuestError(f"{deb}: cannot be unpacked: {error}") from error
        finally:
            unpacker.stdout.close()
    if unpacker.returncode:
        raise GuestError(f"{deb}: cannot be unpacked: dpkg-deb ended with {unpacker.returncode}")
