"""Compiled regions on disk: many writers, killed writers, damage, a limit, folders that cannot be written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.cpu import region_store
from services.cpu.region_store import RegionStore, append
from services.cpu.regions import Translation

FIRST, SECOND = b"1" * 24, b"2" * 24


def translation(number: int, size: int = 300) -> Translation:
    code = random.Random(number).randbytes(size)
    return Translation(b"\0\0\2\0\4\0", b"\0\0", code)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "some.regions"


def contents(path: Path) -> dict[bytes, list[Translation]]:
    store = RegionStore(path)
    return {digest: store.find(digest) for digest in store._records}


def test_what_was_kept_is_found(path: Path) -> None:
    assert len(RegionStore(path)) == 0
    assert RegionStore(path).find(FIRST) == []
    append([(FIRST, translation(1)), (SECOND, translation(2))], path)
    append([(FIRST, translation(3))], path)
    store = RegionStore(path)
    assert len(store) == 3
    assert store.find(FIRST) == [translation(1), translation(3)]
    assert store.find(SECOND) == [translation(2)]
    assert store.find(b"3" * 24) == []
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_is_kept_without_a_path() -> None:
    assert RegionStore(None).find(FIRST) == []


WRITER = """
import sys, random
from pathlib import Path
from services.cpu.region_store import append
from services.cpu.regions import Translation
number, rounds = int(sys.argv[2]), int(sys.argv[3])
for n in range(rounds):
    digest = bytes([number]) * 24
    append([(digest, Translation(b"\\0\\0", b"\\0\\0", bytes([n & 255]) * (1 + n * 7919 % 5000)))], Path(sys.argv[1]))
    if n == 0:
        print("began", flush=True)
"""


def writer(path: Path, number: int, rounds: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(number), str(rounds)], stdout=subprocess.PIPE
    )  # fmt: skip


def test_writers_at_once(path: Path) -> None:
    """Without the lock they would write over each other."""
    writers = [writer(path, number, 200) for number in range(1, 5)]
    for each in writers:
        assert each.wait(60) == 0
        each.communicate()
    store = RegionStore(path)
    assert len(store) == 4 * 200
    for number in range(1, 5):
        found = store.find(bytes([number]) * 24)
        assert [each.code for each in found] == [bytes([n & 255]) * (1 + n * 7919 % 5000) for n in range(200)]
    assert store.damaged == 0


def test_a_machine_reads_while_others_write(path: Path) -> None:
    """What was there when it started is found, whatever is appended."""
    append([(FIRST, translation(1))], path)
    store = RegionStore(path)
    each = writer(path, 7, 100)
    while each.poll() is None:
        assert store.find(FIRST) == [translation(1)]
    each.communicate()
    assert len(store) == 1
    assert len(RegionStore(path)) == 101


def test_killed_writers(path: Path) -> None:
    """Killed at any moment: what is whole is kept, the rest is cut off by the next writer."""
    r = random.Random(5)
    for number in range(1, 9):
        each = writer(path, number, 1 << 30)
        assert each.stdout is not None
        each.stdout.readline()
        time.sleep(r.random() / 50)
        each.send_signal(signal.SIGKILL)
        each.wait()
        each.stdout.close()
        store = RegionStore(path)
        found = store.find(bytes([number]) * 24)
        assert [e.code for e in found] == [bytes([n & 255]) * (1 + n * 7919 % 5000) for n in range(len(found))]
        assert found
        assert store.damaged == 0
    append([(SECOND, translation(2))], path)
    assert RegionStore(path).find(SECOND) == [translation(2)]


@pytest.mark.parametrize("kept", range(0, 351, 7))
def test_a_record_that_is_not_whole(path: Path, kept: int) -> None:
    """As a killed writer leaves it: the records before it are there, and later ones behind what is left of it."""
    append([(FIRST, translation(1))], path)
    whole = path.stat().st_size
    append([(SECOND, translation(2))], path)
    os.truncate(path, min(whole + kept, path.stat().st_size - 1))
    assert contents(path) == {FIRST: [translation(1)]}
    append([(b"3" * 24, translation(3))], path)
    assert contents(path) == {FIRST: [translation(1)], b"3" * 24: [translation(3)]}


def test_damage_is_noticed(path: Path) -> None:
    """Any byte of any record flipped: that record is never given out as something else; the others are right."""
    everything = {bytes([n]) * 24: translation(n, 40) for n in range(1, 4)}
    append(list(everything.items()), path)
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        store = RegionStore(path)
        found = {digest: store.find(digest) for digest in everything}
        missing = [digest for digest, each in found.items() if not each]
        assert missing
        assert all(each == [everything[digest]] for digest, each in found.items() if each)


def test_other_lengths_of_the_same_bytes_are_damage(path: Path) -> None:
    """The checksum covers the header: code is not taken for offsets."""
    append([(FIRST, translation(1))], path)
    data = bytearray(path.read_bytes())
    data[32:40] = (4).to_bytes(2, "little") + (4).to_bytes(2, "little") + (300).to_bytes(4, "little")
    path.write_bytes(data)
    store = RegionStore(path)
    assert store.find(FIRST) == []
    assert store.damaged == 1


def test_garbage_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(random.Random(1).randbytes(100_000))
    assert len(RegionStore(path)) == 0
    append([(FIRST, translation(1))], path)
    assert contents(path) == {FIRST: [translation(1)]}
    assert path.stat().st_size < 1000


def test_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit the file begins anew; a machine that still reads the old one finds less, and goes on."""
    monkeypatch.setattr(region_store, "LIMIT", 10_000)
    append([(FIRST, translation(1, 9_000))], path)
    append([(SECOND, translation(2, 2_000))], path)
    store = RegionStore(path)
    assert store.find(FIRST)
    assert store.find(SECOND)
    append([(b"3" * 24, translation(3, 100))], path)
    assert path.stat().st_size < 1_000
    assert store.find(SECOND) == []
    assert store.find(FIRST) == []
    assert store.damaged == 2
    assert contents(path) == {b"3" * 24: [translation(3, 100)]}
    # the same place, another record of the same page
    append([(FIRST, translation(4, 9_000))], path)
    assert all(each in (translation(1, 9_000), translation(4, 9_000)) for each in store.find(FIRST))


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is kept and nothing is said: a file where the folder should be, a folder where the file should be."""
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "some.regions", tmp_path, Path("/proc/nowhere/some.regions")):
        append([(FIRST, translation(1))], path)
        assert len(RegionStore(path)) == 0


def test_a_full_disk(path: Path) -> None:
    """Half a record on the disk: as if killed."""
    append([(FIRST, translation(1))], path)
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from pathlib import Path; from services.cpu.region_store import append;"
        "from services.cpu.regions import Translation;"
        "append([(b'2' * 24, Translation(b'\\0\\0', b'\\0\\0', bytes(5000)))], Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.stat().st_size == 1000
    assert contents(path) == {FIRST: [translation(1)]}
    append([(SECOND, translation(2))], path)
    assert contents(path) == {FIRST: [translation(1)], SECOND: [translation(2)]}


def test_threads_of_one_process(path: Path) -> None:
    """The lock belongs to the open file, not to the process."""

    def write(number: int) -> None:
        for n in range(50):
            append([(bytes([number]) * 24, translation(n, 100))], path)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(RegionStore(path)) == 200
