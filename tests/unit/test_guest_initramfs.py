"""The initramfs: a cpio archive that a reader of its own takes apart again."""

from __future__ import annotations

import stat

import pytest

from vmesh.guest import initramfs


def unpack(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Name to mode, data and device numbers, read as the newc format is described."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    place = 0
    while True:
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[place + 6 + 8 * n :][:8], 16) for n in range(13)]
        name_at, name_size, data_size = place + 110, fields[11], fields[6]
        name = archive[name_at : name_at + name_size - 1].decode()
        assert archive[name_at + name_size - 1] == 0
        data_at = -(-(name_at + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[data_at : data_at + data_size], (fields[9], fields[10]))
        place = -(-(data_at + data_size) // 4) * 4


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_build_holds_busybox_whatever_its_length(size: int) -> None:
    found = unpack(initramfs.build(b"b" * size))

    assert found["bin/busybox"] == (stat.S_IFREG | 0o755, b"b" * size, (0, 0))
    assert found["init"][1].startswith(b"#!/bin/sh\n")
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))


def test_build_folders_come_before_what_is_in_them() -> None:
    names = list(unpack(initramfs.build(b"")))

    assert all(name.rpartition("/")[0] in ["", *names[: names.index(name)]] for name in names)


def test_build_same_busybox_gives_the_same_bytes() -> None:
    assert initramfs.build(b"x") == initramfs.build(b"x")


def test_build_modules_come_along() -> None:
    module = initramfs.Entry("lib/a.ko", stat.S_IFREG | 0o644, b"module")

    found = unpack(initramfs.build(b"b", [initramfs.Entry("lib", stat.S_IFDIR | 0o755), module]))

    assert found["lib/a.ko"] == (stat.S_IFREG | 0o644, b"module", (0, 0))
    assert "bin/busybox" in found


def test_recipe_changes_with_what_is_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    before = initramfs.recipe()
    monkeypatch.setattr(initramfs, "INIT", initramfs.INIT + "# more\n")
    with_more = initramfs.recipe()
    monkeypatch.setattr(initramfs, "MODULES", (*initramfs.MODULES, "more"))

    assert len({before, with_more, initramfs.recipe()}) == 3
