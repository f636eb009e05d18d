"""Kernel modules from a package: the order of their dependencies, and what modprobe is told about them."""

from __future__ import annotations

import lzma
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vmesh.guest import modules
from vmesh.guest.errors import GuestError

RELEASE = "6.12.1-riscv64"
Kernel = Callable[..., Path]


def elf(modinfo: str) -> bytes:
    """An ELF file for riscv64 with nothing but `modinfo` in a section .modinfo."""
    names = b"\0.modinfo\0.shstrtab\0"
    info = b"".join(word.encode() + b"\0" for word in modinfo.split())
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 1, 243, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 2)
    contents = 64 + 3 * 64
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, contents, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, contents + len(info), len(names), 0, 0, 1, 0)
    return header + sections + info + names


@pytest.fixture
def kernel(peer: Callable[[str], str], tmp_path: Path) -> Kernel:
    """Builds a kernel package of the modules that it is given, by path."""

    def build(files: Mapping[str, bytes], built_in: str | None = "kernel/drivers/virtio/virtio-ring.ko\n") -> Path:
        tree = tmp_path / "tree"
        folder = tree / "usr/lib/modules" / RELEASE
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        if built_in is not None:
            (folder / "modules.builtin").write_text(built_in)
        (tree / "DEBIAN").mkdir(parents=True)
        control = "Package: linux\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
        (tree / "DEBIAN" / "control").write_text(control)
        deb = tmp_path / "linux_1_all.deb"
        subprocess.run([peer("dpkg-deb"), "-b", str(tree), str(deb)], check=True, capture_output=True)
        return deb

    return build


@pytest.fixture
def network(kernel: Kernel) -> Path:
    """A package with a driver that needs another, which needs a third."""
    return kernel(
        {
            "kernel/drivers/net/virtio_net.ko.xz": lzma.compress(
                elf("alias=virtio:d00000001v* depends=net_failover name=virtio_net")
            ),
            "kernel/drivers/net/net_failover.ko.xz": lzma.compress(elf("depends=fail-over,virtio_ring")),
            "kernel/net/core/fail-over.ko.xz": lzma.compress(elf("depends= alias=a alias=b")),
        }
    )


def test_load_each_module_comes_after_what_it_needs(network: Path) -> None:
    loaded = modules.load(network, ["virtio_net"])

    assert [module.name for module in loaded] == ["fail_over", "net_failover", "virtio_net"]
    assert loaded[2].data == elf("alias=virtio:d00000001v* depends=net_failover name=virtio_net")
    assert loaded[2].depends == ("net_failover",)
    assert loaded[0].aliases == ("a", "b")
    assert {module.release for module in loaded} == {RELEASE}


def test_load_takes_names_as_modprobe_does_and_each_once(network: Path) -> None:
    loaded = modules.load(network, ["net-failover", "virtio_net", "fail_over"])

    assert [module.name for module in loaded] == ["fail_over", "net_failover", "virtio_net"]


def test_load_what_is_built_in_needs_no_module(network: Path) -> None:
    assert modules.load(network, ["virtio_ring", "virtio-ring"]) == ()


def test_load_unknown_module_is_refused(network: Path) -> None:
    with pytest.raises(GuestError, match="expected a module nosuch in it, there is none"):
        modules.load(network, ["nosuch"])


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"a.ko.xz": lzma.compress(elf("depends=b"))}, "expected a module b in it, which a needs"),
        ({"a.ko.xz": lzma.compress(elf("depends=a"))}, "modules depend on each other: a"),
        ({"a.ko.xz": b"not compressed"}, "the module a cannot be read"),
        ({"a.ko.xz": lzma.compress(b"no ELF file")}, "the module a cannot be read"),
    ],
)
def test_load_broken_module_is_refused(kernel: Kernel, files: Mapping[str, bytes], complaint: str) -> None:
    with pytest.raises(GuestError, match=complaint):
        modules.load(kernel(files), ["a"])


def test_load_package_without_a_kernel_is_refused(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="expected a kernel package"):
        modules.load(kernel({}, built_in=None), ["a"])
    (tmp_path / "noise.deb").write_bytes(b"noise")
    with pytest.raises(GuestError, match=r"noise\.deb"):
        modules.load(tmp_path / "noise.deb", ["a"])


def test_entries_tell_modprobe_what_to_load_first_and_who_answers_to_a_device(network: Path) -> None:
    loaded = modules.load(network, ["virtio_net"])
    found = {entry.name: entry.data for entry in modules.entries(loaded)}

    folder = f"lib/modules/{RELEASE}"
    assert found[f"{folder}/fail_over.ko"] == loaded[0].data
    assert found[f"{folder}/modules.dep"].decode().splitlines() == [
        "fail_over.ko:",
        "net_failover.ko: fail_over.ko",
        "virtio_net.ko: net_failover.ko fail_over.ko",
    ]
    assert found[f"{folder}/modules.alias"].decode().splitlines() == [
        "alias a fail_over",
        "alias b fail_over",
        "alias virtio:d00000001v* virtio_net",
    ]


def test_entries_folders_come_before_what_is_in_them(network: Path) -> None:
    names = [entry.name for entry in modules.entries(modules.load(network, ["virtio_net"]))]

    assert all(name.rpartition("/")[0] in ["", *names[: names.index(name)]] for name in names)
