"""The gdb server under clients that are anything but gdb: the machine goes on, and whoever comes next is served."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Rig
from tests.gdb_client import GdbClient, packet
from tests.system import programs
from tests.waiting import wait_for

#: How long garbage is sent; longer in campaigns.
SECONDS = float(os.environ.get("VMESH_GARBAGE_SECONDS", "3"))
GROWTH = 64 << 20  # bytes of memory that the monitor may take meanwhile
HARTS = 2
#: Beginnings of packets that do not end the machine (qRcmd,71 is `q`, HMP's quit), and of those that do.
_BEGINNINGS = (
    b"?", b"g", b"G", b"p", b"P", b"m", b"M", b"X", b"Z0,", b"z1,", b"Z2,", b"c", b"s", b"C", b"H", b"T", b"D", b"q",
    b"vCont;", b"vCont;s:", b"vCont;r", b"qSupported:", b"qXfer:features:read:", b"qRcmd,zz", b"qThreadExtraInfo,",
    b"Qqemu.", b"QStart", b"!", b"",
)  # fmt: skip

_ENDS = (b"k", b"vKill")

Client = Callable[[], GdbClient]


@pytest.fixture(scope="module")
def gdb_rig(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A machine that all these tests maltreat, one after the other."""
    made = Rig(Path(tempfile.mkdtemp(prefix="vmesh-gdb-")), root)
    image = tmp_path_factory.mktemp("gdb") / "guest.elf"
    image.write_bytes(programs.elf(programs.sleep(a0=7)))
    flags = ["-bios", "none", "-kernel", str(image), "-display", "none", "-smp", str(HARTS)]
    made.start_real(*flags, "-gdb", f"unix:{made.runtime / 'gdb'}")
    made.wait_running()
    yield made
    made.close()


@pytest.fixture
def client(gdb_rig: Rig) -> Client:
    """Connects to the machine."""
    place = gdb_rig.runtime / "gdb"

    def connect() -> GdbClient:
        made = GdbClient(place)
        deadline = time.monotonic() + 30
        while True:  # the one before may not be gone yet
            with contextlib.suppress(OSError):
                if made.ask(b"qAttached") == b"1":
                    return made
            assert time.monotonic() < deadline, "the gdb server does not answer"
            made.close()
            time.sleep(0.02)
            made = GdbClient(place)

    return connect


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def unharmed(rig: Rig) -> None:
    record = rig.record()
    assert record is not None
    assert [(each.epoch, each.state) for each in record.services if each.state not in ("running", "paused")] == []
    assert {each.epoch for each in record.services} == {1}


def test_garbage_harms_nobody(gdb_rig: Rig, client: Client) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    record = gdb_rig.record()
    assert record is not None
    before = resident(record.pid)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        peer = client()
        peer.socket.settimeout(0.05)
        with contextlib.suppress(OSError):
            for _ in range(dice.randrange(1, 60)):
                peer.socket.sendall(_garbage(dice))
                if dice.random() < 0.3:
                    with contextlib.suppress(TimeoutError):
                        peer.socket.recv(1 << 16)
        peer.close()
    peer = client().quiet()
    assert peer.ask(b"qfThreadInfo") == b"m1,2"
    assert len(peer.ask(b"g")) == 33 * 16
    unharmed(gdb_rig)
    assert resident(record.pid) - before < GROWTH
    peer.close()


def _garbage(dice: random.Random) -> bytes:
    """Bytes, packets that hold bytes, packets with a sound beginning, cut anywhere."""
    match dice.randrange(5):
        case 0:
            return dice.randbytes(dice.randrange(3000))
        case 1:
            return b"$" * dice.randrange(100) + b"x" * dice.randrange(100_000)
        case 2:
            return dice.choice((b"+", b"-", b"\x03", b"#", b"$")) * dice.randrange(2000)
    letters = b"0123456789abcdef,;:=-" if dice.random() < 0.8 else bytes(range(256))
    payload = dice.choice(_BEGINNINGS) + bytes(dice.choices(letters, k=dice.randrange(40)))
    made = packet(b"?" if payload.startswith(_ENDS) else payload)
    return made if dice.random() < 0.8 else made[: dice.randrange(len(made) + 1)]


def test_bad_checksums_and_long_packets_are_asked_for_again(client: Client) -> None:
    peer = client()
    peer.socket.sendall(b"+$g#00")
    assert peer.raw(1) == b"-"
    peer.socket.sendall(b"$" + b"m" * 100_000 + b"#00")
    assert peer.raw(1) == b"-"
    peer.socket.sendall(packet(b"qC"))
    answer = b"+" + packet(b"QC1")
    assert peer.raw(len(answer)) == answer
    for _ in range(3):
        peer.socket.sendall(b"-")
        assert peer.raw(len(packet(b"QC1"))) == packet(b"QC1")
    peer.socket.sendall(b"-" * 1000 + packet(b"qC"))  # it does not answer for ever
    assert peer.raw(len(answer)) == answer
    peer.close()


#: Packets, and what is said to them.
NONSENSE: dict[bytes, tuple[bytes, ...]] = {
    b"E16": (
        b"m", b"m1", b"mx,4", b"m11112222333344445,4", b"M80000000,4:12", b"M80000000,2:zz", b"X80000000,4:1",
        b"pffff", b"p", b"P1=12", b"G00", b"Z0", b"Z0,1", b"Hg9", b"T0", b"T3", b"vCont;c:9", b"vCont;x",
        b"qXfer:features:read:other.xml:0,100", b"qThreadExtraInfo,9", b"qRcmd,zz",
    ),
    b"E0e": (b"m10000000,4", b"M0,1:12", b"P1041=0200000000000000", b"Z0,80000001,2", b"Z2,80000000,0"),
    b"": (b"Z9,80000000,4", b"vCont", b"vMustReplyEmpty", b"unheard-of", b"!"),
    b"l": (b"qXfer:features:read:target.xml:fffffff,100",),
}  # fmt: skip


def test_nonsense_is_refused(client: Client) -> None:
    peer = client().quiet()
    for answer, commands in NONSENSE.items():
        for command in commands:
            peer.say(command)
            expected = packet(answer)
            assert peer.raw(len(expected)) == expected, command
    peer.close()


def test_a_client_that_vanishes_takes_its_breakpoints_along(gdb_rig: Rig, client: Client) -> None:
    peer = client().quiet()
    assert peer.ask(b"Z0,80000004,2") == b"OK"
    assert peer.ask(b"Z2,80001000,8") == b"OK"
    peer.socket.sendall(b"$vCont;c")
    peer.close()
    gdb_rig.wait_running("paused")

    peer = client().quiet()
    peer.say(b"vCont;c")
    gdb_rig.wait_running()
    time.sleep(0.2)
    peer.socket.sendall(b"\x03")
    assert peer.reply().startswith(b"T02thread:"), "no breakpoint is left that it could have met"
    peer.close()


def test_a_client_that_vanishes_from_a_running_machine_leaves_it_running(gdb_rig: Rig, client: Client) -> None:
    peer = client().quiet()
    assert peer.ask(b"Z0,80001000,2") == b"OK"
    peer.say(b"vCont;c")
    gdb_rig.wait_running()
    peer.close()
    client().close()  # this one pauses it
    gdb_rig.wait_running("paused")
    unharmed(gdb_rig)


def test_one_gdb_at_a_time(gdb_rig: Rig, client: Client) -> None:
    first = client().quiet()
    second = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    second.settimeout(30)
    second.connect(str(gdb_rig.runtime / "gdb"))
    with contextlib.suppress(ConnectionResetError):
        assert second.recv(100) == b""
    assert first.ask(b"qC") == b"QC1"
    first.close()


def test_a_client_that_reads_nothing_is_not_read_for_ever(gdb_rig: Rig, client: Client) -> None:
    record = gdb_rig.record()
    assert record is not None
    peer = client().quiet()
    before = resident(record.pid)
    peer.socket.settimeout(1.0)
    ask = packet(b"qXfer:features:read:target.xml:0,2000") * 100
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 << 20:
            sent += peer.socket.send(ask)
    assert sent < 64 << 20, "it was read though it did not read"
    assert resident(record.pid) - before < GROWTH
    peer.close()
    assert client().ask(b"qC") == b"QC1"
    wait_for(lambda: gdb_rig.service("cpu").state == "paused", "the machine to stand")


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_code_of_the_guest_reaches_gdb(rig: Rig, tmp_path: Path, code: int) -> None:
    (tmp_path / "guest.elf").write_bytes(programs.elf(programs.fail(code)))
    flags = ["-bios", "none", "-kernel", str(tmp_path / "guest.elf"), "-display", "none"]
    launcher = rig.start_real(*flags, "-S", "-gdb", f"unix:{rig.runtime / 'gdb'}")
    rig.wait_running("paused")
    peer = GdbClient(rig.runtime / "gdb").quiet()
    peer.say(b"vCont;c")
    assert peer.reply() == b"W%02x" % code
    peer.close()
    assert launcher.wait() == code
