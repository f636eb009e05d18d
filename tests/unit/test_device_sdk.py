"""What a device drives, and what memory and the log make of odd input, without processes."""

from __future__ import annotations

import argparse
import errno
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import UInt64Value

from tests.unit.device_harness import Bench, FakeRuntime
from vmesh import errors, machine, segment, service
from vmesh.board.virt import MAX_HARTS
from vmesh.chardev import JOURNAL_BYTES
from vmesh.device import BusError, DeviceService, Wires
from vmesh.device.wires import MOST_MESSAGES
from vmesh.guest_memory import LocalGuestMemory
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.slot import Slot
from vmesh.v1.bus_pb2 import Access, AccessBatch, DeviceUpdate
from vmesh.v1.common_pb2 import ROLE_HART
from vmesh.v1.devices_pb2 import Ns16550aState, VirtioConsoleState
from vmesh.v1.memory_pb2 import Grant, Segment
from vmesh.v1.packet_pb2 import Packet
from vmesh.v1.slot_pb2 import LinkRecord, SlotRecord
from vmesh.virtio.mmio import Mmio
from vmesh.wire import Client
from vmesh_services.devices.ns16550a.device import FIFO, Ns16550a
from vmesh_services.devices.virtio_console.device import INPUT, VirtioConsole
from vmesh_services.memory import service as memory_service
from vmesh_services.memory.layout import (
    Image,
    Range,
    image_argument,
    place_images,
    range_argument,
    reservation_argument,
)


def changes(wires: Wires, *, everything: bool = False) -> tuple[dict[int, bool], dict[int, int | None]]:
    update = DeviceUpdate()
    wires.fill(update, everything=everything)
    shadows = {each.offset: None if each.withdrawn else each.value for each in update.shadows}
    return {each.line: each.level for each in update.lines}, shadows


def test_only_changes_are_sent() -> None:
    wires = Wires()
    wires.set_line(0, False)
    wires.set_shadow(0, 5, 1, 0x60)
    assert wires.changed
    assert changes(wires) == ({0: False}, {5: 0x60})
    assert not wires.changed
    wires.set_line(0, False)
    wires.set_shadow(0, 5, 1, 0x60)
    assert not wires.changed
    wires.set_line(0, True)
    wires.withdraw_shadow(0, 5, 1)
    assert changes(wires) == ({0: True}, {5: None})
    assert changes(wires, everything=True) == ({0: True}, {5: None})


def test_what_was_not_sent_comes_again_with_its_newest_value() -> None:
    wires = Wires()
    wires.set_line(0, True)
    wires.set_shadow(1, 8, 4, 1)
    update = DeviceUpdate()
    wires.fill(update)
    wires.set_shadow(1, 8, 4, 2)
    wires.put_back(update)
    assert changes(wires) == ({0: True}, {8: 2})


def test_places_are_said_like_lines_and_messages_once() -> None:
    wires = Wires()
    wires.place(1, 0x4000)
    wires.place(2, None)
    wires.send_message(0x2000, 7)
    first = DeviceUpdate()
    wires.fill(first)
    assert [(each.region, each.base, each.absent) for each in first.places] == [(1, 0x4000, False), (2, 0, True)]
    assert [(each.address, each.data) for each in first.messages] == [(0x2000, 7)]
    assert not wires.changed
    wires.place(1, 0x4000)
    assert not wires.changed

    wires.send_message(0x2004, 8)
    wires.raise_latch(0, 0, 4, 1)
    assert wires.take_raises() == [], "it could overtake the message"
    wires.place(1, 0x8000)
    wires.put_back(first)
    again = DeviceUpdate()
    wires.fill(again)
    assert [(each.region, each.base) for each in again.places] == [(1, 0x8000), (2, 0)]
    assert [each.data for each in again.messages] == [7, 8]
    everything = DeviceUpdate()
    wires.fill(everything, everything=True)
    assert len(everything.places) == 2
    assert [each.data for each in everything.messages] == [7, 8], "who connects anew may not have heard them"
    assert not wires.changed


def test_the_page_s_device_moves_and_sends_messages(root: Path) -> None:
    """What docs/devices.md shows of protocol 1.1."""
    text = (root / "docs" / "devices.md").read_text()
    (code,) = [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Moves" in each]
    page: dict[str, Any] = {"__name__": "page"}
    exec(code, page)
    bench = Bench(page["Moves"](FakeRuntime(), 0x400_0000), 8)
    moves = bench.device
    assert [(each.region, each.absent) for each in bench.wires().places] == [(1, True)]
    bench.write(0, 0x400_4000)
    assert [(each.region, each.base, each.absent) for each in bench.wires().places] == [(1, 0x400_4000, False)]
    assert (bench.read(0), bench.shadow(0)) == (0x400_4000, 0x1234)
    for place in (0x400_0000, 0x400_4002, 0x400_F004, 0x401_0000):
        with pytest.raises(BusError):
            bench.write(0, place)
        with pytest.raises(errors.BadState):
            moves.check(UInt64Value(value=place), 1)
    bench.write(8, 0x200_0000)
    assert [(each.address, each.data) for each in bench.wires().messages] == [(0x200_0000, 1)]
    assert moves.save() == UInt64Value(value=0x400_4000)


def test_messages_are_bounded_and_the_same_twice_is_one() -> None:
    wires = Wires()
    for data in range(MOST_MESSAGES + 2):
        wires.send_message(0x2000, data)
    first, second, third = DeviceUpdate(), DeviceUpdate(), DeviceUpdate()
    wires.fill(first)
    assert [each.data for each in first.messages] == list(range(MOST_MESSAGES))
    assert wires.changed
    wires.fill(second)
    assert [each.data for each in second.messages] == [MOST_MESSAGES, MOST_MESSAGES + 1]
    assert not wires.changed
    wires.fill(third, everything=True)
    newest = [*range(2, MOST_MESSAGES), MOST_MESSAGES, MOST_MESSAGES + 1]
    assert [each.data for each in third.messages] == newest
    wires.forget_messages()
    last = DeviceUpdate()
    wires.fill(last, everything=True)
    assert not last.messages


def test_what_is_said_last_counts_last() -> None:
    wires, update = Wires(), DeviceUpdate()
    for data in (1, 0, 1):
        wires.send_message(0x2000, data)
    wires.fill(update)
    assert [each.data for each in update.messages] == [0, 1]
    wires.send_message(0x2000, 0)
    again = DeviceUpdate()
    wires.fill(again, everything=True)
    assert [each.data for each in again.messages] == [1, 0]


def test_the_slot_is_written_before_the_answer_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the moment of the answer, a device has the access in its slot, with the answer it gives again."""
    arguments = ["--machine", str(tmp_path), "--name", "uart0"]
    runtime = service.Runtime(service.parser("ns16550a", None).parse_args(arguments))
    made = DeviceService(runtime, Ns16550a(runtime, 0x1000_0000, 10, "null"))
    hart = Client(b"identity", ROLE_HART, "cpu", 3)
    made.welcome(hart)
    seen = []

    def send_packet(identity: bytes, packet: Packet) -> bool:
        written = Slot(tmp_path / "uart0.slot", fresh=False).read()
        assert written is not None
        record = SlotRecord.FromString(written)
        seen.append((packet.batch_done.value, record.links[0], Ns16550aState.FromString(record.state).scr))
        return True

    monkeypatch.setattr(runtime.server, "send_packet", send_packet)
    for sequence, access in enumerate((Access(offset=7, size=1, write=True, value=9), Access(offset=7, size=1)), 1):
        batch = AccessBatch(epoch=1, sequence=sequence, accesses=[access])
        made.handle(hart, Packet(id=1, access_batch=batch))
    assert seen == [(0, LinkRecord(hart=3, done=1), 9), (9, LinkRecord(hart=3, done=2, value=9), 9)]
    runtime.close()


def test_a_hart_is_never_told_of_more_than_the_slot_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the device holds accesses back, connects anew or answers once more, while the host has no room for the
    slot: what a hart was told is done it does not send again to the next life."""
    arguments = ["--machine", str(tmp_path), "--name", "uart0"]
    runtime = service.Runtime(service.parser("ns16550a", None).parse_args(arguments))
    made = DeviceService(runtime, Ns16550a(runtime, 0x1000_0000, 10, "null"))
    hart = Client(b"identity", ROLE_HART, "cpu", 3)
    told = [made.welcome(hart).done]

    def send_packet(identity: bytes, packet: Packet) -> bool:
        told.append(packet.batch_done.done)
        return True

    def no_room(slot: Slot, data: bytes) -> None:
        raise errors.HostLimit("slot", expected="room")

    def write(sequence: int) -> None:
        accesses = [Access(size=1, write=True, value=ord("x"))]
        made.handle(hart, Packet(id=sequence, access_batch=AccessBatch(epoch=1, sequence=sequence, accesses=accesses)))

    monkeypatch.setattr(runtime.server, "send_packet", send_packet)
    with monkeypatch.context() as full:
        full.setattr(Slot, "write", no_room)
        write(1)
        full.setattr(Ns16550a, "blocked", True)
        write(2)
        assert told == [0, 0]
        told.append(made.welcome(hart).done)
        with pytest.raises(errors.HostLimit):
            write(1)
        with pytest.raises(errors.HostLimit):
            made._settle()
        assert told == [0, 0, 0]
    write(1)
    write(2)
    made._settle()
    assert told == [0, 0, 0, 1, 2, 2]
    runtime.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda runtime: Ns16550a(runtime, 0x1000_0000, 10, "null"),
        lambda runtime: VirtioConsole(runtime, Mmio(0x1000_1000, 1), "null"),
    ],
    ids=["ns16550a", "virtio-console"],
)
def test_the_slot_has_room_for_all_that_nobody_reads(
    make: Callable[[service.Runtime], Ns16550a | VirtioConsole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system may be full by then: that is no reason for a console to end."""
    runtime = service.Runtime(service.parser("port", None).parse_args(["--machine", str(tmp_path), "--name", "port"]))
    device = make(runtime)
    made = DeviceService(runtime, device)
    for number in range(MAX_HARTS):
        made.welcome(Client(b"%d" % number, ROLE_HART, "cpu", number))
        link = made._links[number]
        link.done, link.value, link.bus_error = (1 << 63) - 1, (1 << 64) - 1, True
    state = device.slot_state()
    if isinstance(state, Ns16550aState):
        state.receive = bytes(FIFO)
    elif isinstance(state, VirtioConsoleState):
        state.input = bytes(INPUT)
    monkeypatch.setattr(device, "slot_state", lambda: state)
    monkeypatch.setattr(device.console, "journal", lambda: bytes(JOURNAL_BYTES))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    made._write_slot()
    assert len(made._written) > JOURNAL_BYTES
    runtime.close()


def test_image_arguments() -> None:
    assert image_argument("0x80000000=/a b@c") == Image(0x8000_0000, Path("/a b@c"))
    assert image_argument("4096=x@0x10:32") == Image(4096, Path("x"), 16, 32)
    for text in ("", "0x1000", "=x", "0x1000=", "zero=x", "0x1000=x@1:z"):
        with pytest.raises(argparse.ArgumentTypeError):
            image_argument(text)


def test_range_arguments() -> None:
    assert range_argument("0x1000:64K") == Range("", 0x1000, 65536)
    assert reservation_argument("plic=0xc000000:6M") == Range("plic", 0xC00_0000, 6 << 20)
    for text in ("", "0x1000", "0x1000:0", "0x1000:-1", "x:1"):
        with pytest.raises(argparse.ArgumentTypeError):
            range_argument(text)
    for text in ("0x1000:1", "=0x1000:1"):
        with pytest.raises(argparse.ArgumentTypeError):
            reservation_argument(text)


def test_sizes() -> None:
    assert [service.size(text) for text in ("1", "4k", "512M", "2G", "0x10")] == [1, 4096, 512 << 20, 2 << 30, 16]
    for text in ("", "M", "0", "-1", "1.5G", "1Z"):
        with pytest.raises(argparse.ArgumentTypeError):
            service.size(text)


def test_images_may_touch_but_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(16))
    memory = [Range("RAM", 0x1000, 0x1000)]
    first, second = Image(0x1000, tmp_path / "a"), Image(0x1010, tmp_path / "a")
    assert [image.size for image in place_images([first, second], memory)] == [16, 16]
    with pytest.raises(errors.ImageError, match="overlaps"):
        place_images([second, Image(0x100F, tmp_path / "a", 0, 2)], memory)
    assert place_images([Image(0x5000, tmp_path / "a", 3, 0)], memory) == []


def test_segments_are_sparse_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "seg"
    segment.create(path, 1 << 20)
    assert (path.stat().st_size, path.stat().st_blocks, path.stat().st_mode & 0o777) == (1 << 20, 0, 0o600)
    with pytest.raises(errors.ConfigError, match="File exists"):
        segment.create(path, 4096)
    with pytest.raises(errors.HostLimit, match="too little memory"):
        segment.create(tmp_path / "huge", 1 << 60)
    assert segment.flags_stride(4096) == 4096
    assert segment.flags_stride(4097 * 4096) == 8192


def test_segments_that_are_not_what_they_say(tmp_path: Path) -> None:
    segment.create(tmp_path / "ram", 8192)
    segment.create(tmp_path / "flags", 4096)
    segment.create(tmp_path / "odd", 4097)
    os.mkfifo(tmp_path / "fifo")  # whoever waits for its other end waits for ever
    ram = Segment(name="ram", path=str(tmp_path / "ram"), base=0, size=8192, writable=True)
    grant = Grant(base=0, size=8192, writable=True)
    LocalGuestMemory([ram], [grant]).write(0, b"x")
    for change in (
        {"size": 4096},
        {"path": str(tmp_path / "none")},
        {"path": str(tmp_path / "fifo")},
        {"path": "/dev/zero"},
        {"path": "\0"},
        {"path": str(tmp_path / "odd"), "size": 4097},
        {"base": 1},
        {"base": (1 << 64) - 4096},
        {"flags_path": str(tmp_path / "flags"), "flags_stride": 4096},
        {"flags_path": str(tmp_path / "flags"), "flags_stride": 1024},
        {"flags_path": str(tmp_path / "flags")},
    ):
        wrong = Segment()
        wrong.CopyFrom(ram)
        wrong.MergeFrom(Segment(**change))
        with pytest.raises(errors.ConfigError):
            LocalGuestMemory([wrong], [grant])


def test_a_read_only_grant(tmp_path: Path) -> None:
    segment.create(tmp_path / "ram", 8192)
    ram = Segment(name="ram", path=str(tmp_path / "ram"), base=0, size=8192, writable=True)
    memory = LocalGuestMemory([ram], [Grant(base=4096, size=16)])
    assert memory.read(4096, 16) == bytes(16)
    for address, size in ((4096, 17), (4095, 1)):
        with pytest.raises(errors.OutsideGrant):
            memory.read(address, size)
    with pytest.raises(errors.OutsideGrant, match="read only"):
        memory.write(4096, b"x")


def test_memory_removes_the_directory_when_the_others_have_let_go_of_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "machine"
    path.mkdir()
    (path / machine.LOCK).write_bytes(machine.MARK)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl; f = open('{path}/lock', 'r+'); fcntl.flock(f, 2); print(flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    os.open(path / "lock", os.O_RDWR)  # memory's own copy does not count
    monkeypatch.setattr(memory_service, "_OTHERS_SECONDS", 1e6)
    memory = memory_service.Memory.__new__(memory_service.Memory)
    memory._met = machine.meet(path)
    thread = threading.Thread(target=memory.orphaned, daemon=True)  # it holds up nobody's end if it never returns
    try:
        thread.start()
        time.sleep(0.1)  # long enough to see it if memory did not wait
        assert path.exists()
    finally:
        holder.communicate(b"\n", timeout=20)
    thread.join(20)
    assert not path.exists()


def test_memory_leaves_the_directory_of_a_later_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_service, "_OTHERS_SECONDS", 0.0)
    path = tmp_path / "machine"
    path.mkdir()
    former = machine.adopt(path)
    memory = memory_service.Memory.__new__(memory_service.Memory)
    memory._met = machine.meet(path)
    former.remove()
    os.close(former.lock_fd)
    path.mkdir()
    later = machine.adopt(path)
    memory.orphaned()
    assert later.is_there()
    assert later.alive()
    os.close(later.lock_fd)


def test_log_lines_stay_lines(tmp_path: Path) -> None:
    log = Log("uart0", tmp_path / "log")
    log.info("event", plain="a/b:1", text='say "hi"\nand more\x1b[2J', long="x" * 5000)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert ' info uart0 event plain=a/b:1 text="say \\"hi\\"\\nand more\\u001b[2J" long=xxx' in line
    assert len(line) < 600


def test_loop_calls_back_what_is_ready_in_order() -> None:
    loop, seen = Loop(), []
    reader, writer = os.pipe()

    def readable() -> None:
        seen.append(os.read(reader, 10))
        loop.watch(reader)
        loop.call_in("stop", 0, loop.stop)

    def write() -> None:
        os.write(writer, b"x")

    loop.watch(reader, read=readable)
    loop.call_in("write", 0, write)
    loop.call_in("never", 3600, lambda: seen.append(b"never"))
    loop.call_in("patience", 20, loop.stop)
    loop.call_in("replaced", 3600, lambda: None)
    loop.call_in("replaced", 0, lambda: seen.append(b"replaced"))
    loop.settle = lambda: seen.append(b"settled") if seen[-1:] == [b"x"] else None
    loop.run()
    assert seen == [b"replaced", b"x", b"settled"]
    os.close(reader)
    os.close(writer)
