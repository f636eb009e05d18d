"""Compiled regions on disk: many writers, killed writers, damage, a limit, folders that cannot be written."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from tests.waiting import LIMIT
from vmesh_services.cpu.controllers.virt import NATIVE
from vmesh_services.cpu.core import image, region_store
from vmesh_services.cpu.core.region_store import RegionStore, RegionWriter
from vmesh_services.cpu.core.regions import Translation
from vmesh_services.cpu.isa.riscv.definition import ISA

FIRST, SECOND, THIRD = b"1" * 24, b"2" * 24, b"3" * 24


def translation(number: int, size: int = 300) -> Translation:
    code = random.Random(number).randbytes(size)
    return Translation(b"\0\0\2\0\4\0", b"\0\0", code)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "some.regions"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that is reached soon."""
    monkeypatch.setattr(region_store, "LIMIT", 20_000)
    return 20_000


class Calendar:
    day = 20_000


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    made = Calendar()
    monkeypatch.setattr(region_store, "_today", lambda: made.day)
    return made


def keep(path: Path, *kept: tuple[bytes, Translation]) -> None:
    """What a translator does."""
    writer = RegionWriter(path)
    for digest, each in kept:
        writer.append(digest, each)
    writer.close()


def digests(path: Path) -> list[bytes]:
    """Of the records, in the order of the file."""
    store = RegionStore(path)
    assert store._records is not None
    places = sorted(place for places in store._records.places.values() for place in places)
    return [place.digest for place in places]


def contents(path: Path) -> dict[bytes, list[Translation]]:
    """All that is in a file; nothing of it is damaged."""
    store = RegionStore(path)
    found = {digest: store.find(digest) for digest in digests(path)}
    assert store.damaged == 0
    return found


def temporaries(path: Path) -> list[Path]:
    return [each for each in path.parent.iterdir() if each != path]


def test_what_was_kept_is_found(path: Path) -> None:
    assert len(RegionStore(path)) == 0
    assert RegionStore(path).find(FIRST) == []
    assert RegionStore(path).fingerprints() == set()
    other = Translation(b"\0\0\2\0", b"\2\0", b"code")
    keep(path, (FIRST, translation(1)), (SECOND, translation(2)))
    keep(path, (FIRST, other))
    store = RegionStore(path)
    assert len(store) == 3
    assert store.find(FIRST) == [translation(1), other]
    assert store.find(SECOND) == [translation(2)]
    assert store.find(THIRD) == []
    assert store.fingerprints() == {FIRST[:8], SECOND[:8]}
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_is_kept_without_a_path() -> None:
    assert RegionStore(None).find(FIRST) == []


# Writer `number` appends its records 0, 1, ....
WRITER = """
import sys
from pathlib import Path
from vmesh_services.cpu.core import region_store
from vmesh_services.cpu.core.regions import Translation
number, rounds, region_store.LIMIT = map(int, sys.argv[2:])
writer = region_store.RegionWriter(Path(sys.argv[1]))
for n in range(rounds):
    digest = number.to_bytes(12, "little") + n.to_bytes(12, "little")
    writer.append(digest, Translation(b"\\0\\0", b"\\0\\0", bytes([n & 255]) * (1 + n * 7919 % 5000)))
    if n == 0:
        print("began", flush=True)
"""


def start(path: Path, number: int, rounds: int, limit: int = region_store.LIMIT) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), str(number), str(rounds), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def finish(writers: list[subprocess.Popen[bytes]]) -> None:
    for each in writers:
        each.communicate(timeout=60)
        assert each.returncode == 0


def written(path: Path) -> dict[int, list[int]]:
    """Which records of which writer are there, in the file's order, all of them as they were written."""
    found: dict[int, list[int]] = defaultdict(list)
    everything = contents(path)
    for digest in digests(path):
        number, n = int.from_bytes(digest[:12], "little"), int.from_bytes(digest[12:], "little")
        assert everything[digest] == [Translation(b"\0\0", b"\0\0", bytes([n & 255]) * (1 + n * 7919 % 5000))]
        found[number].append(n)
    return found


def test_writers_at_once(path: Path) -> None:
    """Without the lock they would write over each other."""
    finish([start(path, number, 200) for number in range(1, 5)])
    assert written(path) == {number: list(range(200)) for number in range(1, 5)}


def test_a_machine_reads_while_others_write(path: Path) -> None:
    """What was there when it started is found, whatever is appended."""
    keep(path, (FIRST, translation(1)))
    store = RegionStore(path)
    each = start(path, 7, 100)
    deadline = time.monotonic() + LIMIT
    while each.poll() is None:
        assert time.monotonic() < deadline, "the writer does not end"
        assert store.find(FIRST) == [translation(1)]
    finish([each])
    assert len(store) == 1
    assert len(RegionStore(path)) == 101


@pytest.mark.parametrize("limit", [region_store.LIMIT, 60_000])
def test_killed_writers(path: Path, limit: int) -> None:
    """Killed at any moment: what is whole is kept, the rest is cut off by the next writer."""
    r = random.Random(5)
    for number in range(1, 9):
        each = start(path, number, 1 << 30, limit)
        assert each.stdout is not None
        each.stdout.readline()
        time.sleep(r.random() / 50)
        each.send_signal(signal.SIGKILL)
        each.wait()
        each.stdout.close()
        found = written(path)[number]
        assert found
        assert found == list(range(found[0], found[-1] + 1))
        assert found[0] == 0 or limit == 60_000
        assert path.stat().st_size <= limit
        assert len(temporaries(path)) <= 1
    keep(path, (SECOND, translation(2)))
    assert RegionStore(path).find(SECOND) == [translation(2)]
    assert not temporaries(path)


@pytest.mark.parametrize("kept", range(0, 368, 7))
def test_a_record_that_is_not_whole(path: Path, kept: int) -> None:
    """As a killed writer leaves it: the records before it are there, and later ones behind what is left of it."""
    keep(path, (FIRST, translation(1)))
    whole = path.stat().st_size
    assert whole == 368
    keep(path, (SECOND, translation(2)))
    os.truncate(path, whole + kept)
    assert contents(path) == {FIRST: [translation(1)]}
    keep(path, (THIRD, translation(3)))
    assert contents(path) == {FIRST: [translation(1)], THIRD: [translation(3)]}


def test_damage_is_noticed(path: Path) -> None:
    """Any byte of any record flipped: that record is never given out as something else; the others are right. The day
    of the last use is no part of it."""
    everything = {bytes([n]) * 24: translation(n, 40) for n in range(1, 4)}
    keep(path, *everything.items())
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        store = RegionStore(path)
        found = {digest: store.find(digest) for digest in everything}
        missing = [digest for digest, each in found.items() if not each]
        assert bool(missing) != (8 <= position % (len(good) // 3) < 12)
        assert all(each == [everything[digest]] for digest, each in found.items() if each)


def test_other_lengths_of_the_same_bytes_are_damage(path: Path) -> None:
    """The checksum covers the header: code is not taken for offsets."""
    keep(path, (FIRST, translation(1)))
    data = bytearray(path.read_bytes())
    data[36:44] = (4).to_bytes(2, "little") + (4).to_bytes(2, "little") + (300).to_bytes(4, "little")
    path.write_bytes(data)
    store = RegionStore(path)
    assert store.find(FIRST) == []
    assert store.damaged == 1


def test_garbage_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(random.Random(1).randbytes(100_000))
    assert len(RegionStore(path)) == 0
    keep(path, (FIRST, translation(1)))
    assert contents(path) == {FIRST: [translation(1)]}
    assert path.stat().st_size < 1000


def test_a_file_that_others_cut(path: Path) -> None:
    """One that knows the records before the damage and one that begins: they agree on what is in the file."""
    first = RegionWriter(path)
    for n in range(5):
        first.append(bytes([n]) * 24, translation(n))
    data = bytearray(path.read_bytes())
    data[2 * 368] ^= 1
    path.write_bytes(data)
    keep(path, (FIRST, translation(5, 1000)))
    first.append(SECOND, translation(6))
    first.close()
    whole = {bytes([n]) * 24: [translation(n)] for n in range(2)}
    assert contents(path) == whole | {FIRST: [translation(5, 1000)], SECOND: [translation(6)]}


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
def test_a_disk_that_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """As if there were no such record: a hart goes on without it."""
    keep(path, (FIRST, translation(1)), (SECOND, translation(2)))
    store = RegionStore(path)

    def fail(file: int, size: int, position: int) -> bytes:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert store.find(FIRST) == []
        assert len(RegionStore(path)) == 0
        keep(path, (THIRD, translation(3)))
    assert store.damaged == 1
    assert store.find(SECOND) == [translation(2)]


def test_what_the_file_has_is_not_kept_twice(path: Path, calendar: Calendar) -> None:
    """The same entries of the same page; which is a use of the record."""
    first, second = RegionWriter(path), RegionWriter(path)
    first.append(FIRST, translation(1))
    size = path.stat().st_size
    calendar.day += 1
    for writer in (second, first, RegionWriter(path)):
        writer.append(FIRST, translation(2))
    assert path.stat().st_size == size
    assert contents(path) == {FIRST: [translation(1)]}
    assert path.read_bytes()[8:12] == calendar.day.to_bytes(4, "little")
    second.append(SECOND, translation(1))
    other = Translation(b"\0\0\2\0\4\0", b"\2\0", b"code")
    second.append(FIRST, other)
    assert contents(path) == {FIRST: [translation(1), other], SECOND: [translation(1)]}


def test_a_damaged_record_is_kept_again(path: Path) -> None:
    writer = RegionWriter(path)
    writer.append(FIRST, translation(1))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    writer.append(FIRST, translation(1))
    writer.append(FIRST, translation(1))
    store = RegionStore(path)
    assert len(store) == 2
    assert store.find(FIRST) == [translation(1)]
    assert store.damaged == 1


def test_writers_of_the_same(path: Path) -> None:
    """Machines that boot the same guest at once."""
    finish([start(path, 1, 200) for _ in range(4)])
    assert written(path) == {1: list(range(200))}


def test_what_was_scanned_is_not_scanned_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append reads what others appended since, no more."""
    reads = 0
    read = os.pread

    def count(file: int, size: int, position: int) -> bytes:
        nonlocal reads
        reads += 1
        return read(file, size, position)

    writer, other = RegionWriter(path), RegionWriter(path)
    for n in range(100):
        writer.append(bytes([n]) * 24, translation(n))
    other.append(bytes([100]) * 24, translation(100))
    monkeypatch.setattr(os, "pread", count)
    # its own last one, the other's, the end
    writer.append(bytes([101]) * 24, translation(101))
    assert reads <= 3
    assert len(RegionStore(path)) == 102


def test_the_limit(path: Path, small: int) -> None:
    """What is in the file is always the newest, whole; the oldest go all at once, when there is no more room."""
    r = random.Random(8)
    sizes = [0]
    appended: list[tuple[bytes, Translation]] = []
    writers = [RegionWriter(path) for _ in range(3)]
    for n in range(300):
        appended.append((n.to_bytes(24, "little"), translation(n, r.randrange(1, 2000))))
        r.choice(writers).append(*appended[-1])
        found = contents(path)
        assert found == {digest: [each] for digest, each in appended[-len(found) :]}
        sizes.append(path.stat().st_size)
        assert sizes[-1] <= small
        assert not temporaries(path)
    fell = [(before, after) for before, after in itertools.pairwise(sizes) if after < before]
    assert len(fell) > 10
    assert all(before > small - 2100 and small // 2 - 2100 < after <= small // 2 for before, after in fell)


def test_what_was_used_survives(path: Path, small: int, calendar: Calendar) -> None:
    """On a later day: found by a machine, or compiled again."""
    old = [(bytes([n]) * 24, translation(n, 700)) for n in range(20)]
    keep(path, *old)
    calendar.day += 1
    assert RegionStore(path).find(old[3][0]) == [old[3][1]]
    keep(path, old[5])
    new = [(bytes([n]) * 24, translation(n, 700)) for n in range(20, 27)]
    keep(path, *new)
    # half of the limit has room for 13, of which 9 were used on the later day
    assert digests(path) == [digest for digest, _ in [old[3], old[5], *old[16:], *new]]
    calendar.day += 1
    newer = [(bytes([n]) * 24, translation(n, 700)) for n in range(30, 40)]
    keep(path, *newer)
    calendar.day += 1
    assert RegionStore(path).find(old[5][0]) == [old[5][1]]
    newest = [(bytes([n]) * 24, translation(n, 700)) for n in range(40, 44)]
    keep(path, *newest)
    assert digests(path) == [digest for digest, _ in [old[5], *newer[2:], *newest]]


def test_what_was_used_while_a_writer_runs_survives(path: Path, small: int, calendar: Calendar) -> None:
    """The writer knows the record from before its use."""
    writer = RegionWriter(path)
    for n in range(20):
        writer.append(bytes([n]) * 24, translation(n, 700))
    calendar.day += 1
    assert RegionStore(path).find(bytes([3]) * 24) == [translation(3, 700)]
    for n in range(20, 27):
        writer.append(bytes([n]) * 24, translation(n, 700))
    assert digests(path) == [bytes([n]) * 24 for n in (3, *range(15, 27))]


def test_a_file_that_can_only_be_read(path: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records are found; nobody can say that they were used."""
    keep(path, (FIRST, translation(1)))
    before = path.read_bytes()
    calendar.day += 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert RegionStore(path).find(FIRST) == [translation(1)]
    assert path.read_bytes() == before


def test_more_than_half_of_the_limit_is_not_kept(path: Path, small: int) -> None:
    keep(path, (FIRST, translation(1)), (SECOND, translation(2, small // 2)), (THIRD, translation(3)))
    assert digests(path) == [FIRST, THIRD]


def test_damaged_records_do_not_survive(path: Path, small: int) -> None:
    """Others do. A file has no damage after it was replaced."""
    everything = [(bytes([n]) * 24, translation(n, 700)) for n in range(25)]
    keep(path, *everything)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    keep(path, (FIRST, translation(0, 1000)))
    found = contents(path)
    assert everything[-1][0] not in found
    assert everything[-2][0] in found
    assert FIRST in found


def test_writers_at_the_limit(path: Path, small: int) -> None:
    """Whoever replaces the file, nothing that is appended gets lost: of each writer its latest are there, or none."""
    finish([start(path, number, 400, small) for number in range(1, 5)])
    found = written(path)
    assert found
    for ns in found.values():
        assert ns == list(range(ns[0], 400))
    assert path.stat().st_size <= small
    assert not temporaries(path)


def test_readers_at_the_limit(path: Path, small: int) -> None:
    """Whatever file they opened is whole, and stays."""
    writers = [start(path, number, 400, small) for number in range(1, 3)]
    early = None
    rounds = 0
    deadline = time.monotonic() + LIMIT
    while any(each.poll() is None for each in writers):
        assert time.monotonic() < deadline, "the writers do not end"
        store = RegionStore(path)
        found = {digest: store.find(digest) for digest in (store._records.places if store._records else ())}
        assert all(map(len, found.values()))
        assert store.damaged == 0
        if early is None and found:
            early = store, found
        rounds += 1
    finish(writers)
    assert rounds
    if early is not None:
        store, found = early
        assert {digest: store.find(digest) for digest in found} == found


def test_a_reader_of_the_replaced_file(path: Path, small: int) -> None:
    everything = [(bytes([n]) * 24, translation(n, 700)) for n in range(25)]
    keep(path, *everything)
    store = RegionStore(path)
    keep(path, (FIRST, translation(1, 1000)))
    assert everything[0][0] not in contents(path)
    assert all(store.find(digest) == [each] for digest, each in everything)


def test_a_writer_that_waited_for_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had opened that when another took its place: what it appends is in the new one."""
    keep(path, (FIRST, translation(1)))
    waits = threading.Event()
    lock = fcntl.flock

    def watch(file: object, how: int) -> None:
        waits.set()
        lock(file, how)  # type: ignore[arg-type]

    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", watch)
        thread = threading.Thread(target=keep, args=(path, (THIRD, translation(3))))
        thread.start()
        assert waits.wait(60)
        keep(path.with_name("other"), (SECOND, translation(2)))
        path.with_name("other").replace(path)
    thread.join(60)
    assert not thread.is_alive()
    assert contents(path) == {SECOND: [translation(2)], THIRD: [translation(3)]}


def test_a_folder_that_is_removed(path: Path) -> None:
    """By a user who wants the room: a writer begins another file."""
    writer = RegionWriter(path)
    writer.append(FIRST, translation(1))
    shutil.rmtree(path.parent)
    writer.append(SECOND, translation(2))
    writer.append(THIRD, translation(3))
    writer.close()
    assert contents(path) == {SECOND: [translation(2)], THIRD: [translation(3)]}


# Appends until the file is replaced, and is killed at that moment.
KILLED = """
import os, pathlib, signal, sys
from vmesh_services.cpu.core import region_store
from vmesh_services.cpu.core.regions import Translation
path, moment, region_store.LIMIT = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
read, replace = region_store._Records.read, pathlib.Path.replace
reads = 0
def read_some(*which):
    global reads
    reads += 1
    return die() if reads == 20 else read(*which)
if moment == "as it begins":
    region_store.RegionWriter._replace = die
if moment == "half-way":
    region_store._Records.read = read_some
if moment == "before the new file has the name":
    pathlib.Path.replace = die
if moment == "as soon as it has":
    pathlib.Path.replace = lambda *names: die(replace(*names))
writer = region_store.RegionWriter(path)
for n in range(1 << 20):
    writer.append(n.to_bytes(24, "little"), Translation(b"\\0\\0", b"\\0\\0", bytes([n & 255]) * 1000))
"""
LEFT = {"as it begins": 0, "half-way": 1, "before the new file has the name": 1, "as soon as it has": 0}


@pytest.mark.parametrize("moment", LEFT)
def test_killed_while_it_replaces_the_file(path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file or the new one is there, whole; the next writer removes what else is left."""
    limit = 100_000
    monkeypatch.setattr(region_store, "LIMIT", limit)
    size = 44 + 16 + 2 + 2 + 1000
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), moment, str(limit)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(temporaries(path)) == LEFT[moment]
    full = limit // size
    kept = [full - limit // 2 // size + 1, full + 1] if moment == "as soon as it has" else [0, full]
    assert digests(path) == [n.to_bytes(24, "little") for n in range(*kept)]
    keep(path, (FIRST, translation(1, 1000)))
    assert not temporaries(path)
    newest = [*digests(path)[-10:-1], FIRST]
    assert newest == [*(n.to_bytes(24, "little") for n in range(kept[1] - 9, kept[1])), FIRST]
    assert path.stat().st_size <= limit
    assert contents(path)


def test_files_of_other_keys(path: Path) -> None:
    """Not used for a month they are removed when a file is begun; nothing else is."""
    path.parent.mkdir()
    month = image.UNUSED_DAYS * 86400
    ages = {
        "old.regions": month + 60,
        "old.core": month + 60,
        "old.new.regions": month + 60,
        "tmpabc.core": month + 60,
        "used.regions": month - 600,
        "used.core": month - 600,
        "some.core": month + 60,
        "notes": month + 60,
    }

    def age() -> None:
        for name, seconds in ages.items():
            (path.parent / name).touch()
            os.utime(path.parent / name, (time.time() - seconds,) * 2)

    (path.parent / "folder.core").mkdir()
    os.utime(path.parent / "folder.core", (0, 0))
    age()
    keep(path, (FIRST, translation(1)))
    assert {each.name for each in temporaries(path)} == {
        "used.regions",
        "used.core",
        "some.core",
        "notes",
        "folder.core",
    }
    age()
    keep(path, (SECOND, translation(2)))
    assert {each.name for each in temporaries(path)} == {*ages, "folder.core"}


def test_what_is_used_is_not_old(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a store, loading a core."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent))
    keep(path, (FIRST, translation(1)))
    kept = image.cache_folder() / f"{image.key()}.core"
    kept.parent.mkdir(parents=True)
    core = image.CoreImage(b"code", {"symbol": 0}, [""], ["symbol"])
    kept.write_bytes(image._pack(core))
    for each in (path, kept):
        os.utime(each, (0, 0))
    RegionStore(path)
    assert image.load_core(ISA, NATIVE) == core
    for each in (path, kept):
        assert each.stat().st_mtime > time.time() - 3600


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is kept and nothing is said: a file where the folder should be, a folder where the file should be."""
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "some.regions", tmp_path, Path("/proc/nowhere/some.regions")):
        keep(path, (FIRST, translation(1)), (SECOND, translation(2)))
        assert len(RegionStore(path)) == 0


def test_a_full_disk(path: Path) -> None:
    """Half a record on the disk: as if killed. That writer does not try again."""
    keep(path, (FIRST, translation(1)))
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from pathlib import Path; from vmesh_services.cpu.core.region_store import RegionWriter;"
        "from vmesh_services.cpu.core.regions import Translation;"
        "writer = RegionWriter(Path(sys.argv[1]));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY));"
        "writer.append(b'2' * 24, Translation(b'\\0\\0', b'\\0\\0', bytes(5000)));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY));"
        "writer.append(b'3' * 24, Translation(b'\\0\\0', b'\\0\\0', bytes(50)))"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.stat().st_size == 1000
    assert contents(path) == {FIRST: [translation(1)]}
    keep(path, (SECOND, translation(2)))
    assert contents(path) == {FIRST: [translation(1)], SECOND: [translation(2)]}


def test_a_disk_without_room_for_another_file(path: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one stays, and nothing beside it."""
    everything = [(bytes([n]) * 24, translation(n, 700)) for n in range(25)]
    keep(path, *everything)

    def full(*which: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(region_store._Records, "read", full)
        keep(path, (FIRST, translation(1, 1000)), (SECOND, translation(2, 10)))
    assert not temporaries(path)
    assert contents(path) == {digest: [each] for digest, each in everything}


def test_threads_of_one_process(path: Path) -> None:
    """The lock belongs to the open file, not to the process."""

    def write(number: int) -> None:
        keep(path, *((bytes([number, n]) * 12, translation(n, 100)) for n in range(50)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(RegionStore(path)) == 200


def test_other_features_are_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their places are bits that compiled code looks at, and they are said outside of the folders of its sources."""
    before = image.key()
    monkeypatch.setattr(image, "load_isa", lambda name: replace(ISA, features=tuple(reversed(ISA.features))))
    assert image.key() != before
