"""Modules of Debian's kernel, from its package, with those that they depend on.

    modules.load(deb, ["virtio_net", "ext4"])  the modules in the order that insmod wants, uncompressed
    modules.entries(loaded)                    the same for an initramfs, with what modprobe needs to find them

What a module depends on and which names it answers to is in the module itself, section .modinfo: the package has no
modules.dep, a system makes that when it installs the package (depmod(8)).
"""

from __future__ import annotations

import io
import lzma
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from vmesh.guest.errors import GuestError
from vmesh.guest.initramfs import Entry

_SUFFIX = ".ko.xz"


@dataclass(frozen=True, slots=True)
class Module:
    """A module: `name` with underscores, its ELF file, what it needs loaded before it, which aliases it answers to.

    `release` is the kernel's (uname -r) that it belongs to.
    """

    name: str
    release: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def load(deb: Path, names: Sequence[str]) -> tuple[Module, ...]:
    """The modules called `names` (with - or _) and all that they depend on, each after what it depends on.

    A name that is built into the kernel needs nothing and gives nothing. Raises GuestError if there is no such module,
    or if `deb` is no kernel package.
    """
    release, compressed, built_in = _read(deb)
    loaded: dict[str, Module] = {}

    def add(name: str, dependents: tuple[str, ...]) -> None:
        name = _canonical(name)
        if name in loaded or name in built_in:
            return
        if name in dependents:
            raise GuestError(f"{deb}: modules depend on each other: {', '.join(dependents)}")
        if name not in compressed:
            wanted_by = f", which {dependents[-1]} needs" if dependents else ""
            raise GuestError(f"{deb}: expected a module {name} in it{wanted_by}, there is none")
        module = _module(deb, name, release, compressed[name])
        for other in module.depends:
            add(other, (*dependents, name))
        loaded[name] = module

    for name in names:
        add(name, ())
    return tuple(loaded.values())


def entries(loaded: Sequence[Module]) -> Iterator[Entry]:
    """The modules below /lib/modules/RELEASE of an initramfs, for modprobe. Source: modules.dep(5), modprobe.d(5)."""
    yield Entry("lib", stat.S_IFDIR | 0o755)
    yield Entry("lib/modules", stat.S_IFDIR | 0o755)
    for release in dict.fromkeys(module.release for module in loaded):
        folder = f"lib/modules/{release}"
        yield Entry(folder, stat.S_IFDIR | 0o755)
        for module in loaded:
            yield Entry(f"{folder}/{module.name}.ko", stat.S_IFREG | 0o644, module.data)
        yield Entry(f"{folder}/modules.dep", stat.S_IFREG | 0o644, _dep_table(loaded).encode())
        aliases = "".join(f"alias {alias} {module.name}\n" for module in loaded for alias in module.aliases)
        yield Entry(f"{folder}/modules.alias", stat.S_IFREG | 0o644, aliases.encode())


def _dep_table(loaded: Sequence[Module]) -> str:
    """modules.dep: each module with all that must be there before it, the last to be loaded first."""
    order = [module.name for module in loaded]
    needs: dict[str, set[str]] = {}
    for module in loaded:  # a module comes after what it depends on
        direct = {_canonical(name) for name in module.depends} & needs.keys()
        needs[module.name] = direct.union(*(needs[name] for name in direct))
    return "".join(
        " ".join([f"{name}.ko:", *(f"{other}.ko" for other in sorted(needs[name], key=order.index, reverse=True))])
        + "\n"
        for name in order
    )


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _read(deb: Path) -> tuple[str, Mapping[str, bytes], frozenset[str]]:
    """The kernel's release, its modules as they are in the package, and the names of those that are built in."""
    compressed: dict[str, bytes] = {}
    built_in: frozenset[str] = frozenset()
    release = ""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpacker:
        assert unpacker.stdout is not None
        try:
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
                for member in archive:
                    path = Path(member.name)
                    if not (member.isfile() and "modules" in path.parts):
                        continue
                    if member.name.endswith(_SUFFIX):
                        source = archive.extractfile(member)
                        assert source is not None
                        compressed[_canonical(path.name.removesuffix(_SUFFIX))] = source.read()
                    elif path.name == "modules.builtin":
                        source = archive.extractfile(member)
                        assert source is not None
                        release = path.parent.name
                        built_in = frozenset(_canonical(Path(line).stem) for line in source.read().decode().split())
        except tarfile.TarError as error:
            raise GuestError(f"{deb}: cannot be unpacked: {error}") from error
        finally:
            unpacker.kill()
    if not release:
        raise GuestError(f"{deb}: expected a kernel package, there is no modules.builtin in it")
    return release, compressed, built_in


def _module(deb: Path, name: str, release: str, compressed: bytes) -> Module:
    try:
        data = lzma.decompress(compressed)
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
        words = section.data().decode().split("\0") if section else []
    except (lzma.LZMAError, ELFError, UnicodeDecodeError) as error:
        raise GuestError(f"{deb}: the module {name} cannot be read: {error}") from error
    depends = tuple(
        other for word in words if word.startswith("depends=") for other in word.removeprefix("depends=").split(",")
    )
    return Module(
        name,
        release,
        data,
        tuple(_canonical(other) for other in depends if other),
        tuple(word.removeprefix("alias=") for word in words if word.startswith("alias=")),
    )
