"""What comes from the loop for a client, and what a console writes for those attached: bounded, and losses are said."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.trace import LIMIT, Recorder
from vmesh.v1.gateway_pb2 import ConsoleOutput
from vmesh.v1.trace_pb2 import TRACE_SYNC
from vmesh_services.monitor.attach import INPUT_BYTES, Attachments
from vmesh_services.monitor.feed import Feed


def test_a_feed_keeps_the_newest_and_counts_the_rest() -> None:
    feed: Feed[int] = Feed(3)
    for number in range(10):
        feed.put(number)
    feed.close()
    assert list(feed) == [(7, 7), (0, 8), (0, 9)]


def test_a_feed_wakes_who_waits() -> None:
    feed: Feed[str] = Feed(3)
    found: list[tuple[int, str]] = []
    reader = threading.Thread(target=lambda: found.extend(feed))
    reader.start()
    feed.put("one")
    feed.close()
    reader.join(10)
    assert found == [(0, "one")]


def test_a_recorder_is_bounded() -> None:
    recorder = Recorder("cpu")
    recorder.switch(True)
    for number in range(LIMIT + 5):
        recorder.add(TRACE_SYNC, number)
    records = recorder.take()
    assert (len(records.records), records.dropped) == (LIMIT, 5)
    assert (len(recorder.take().records), recorder.take().dropped) == (0, 0)


class Console:
    """Attachments in a loop that is stepped by hand, with so much room for input."""

    def __init__(self, folder: Path, room: int = 4096) -> None:
        self.room = room
        self.typed = b""
        self.loop = Loop()
        self.attachments = Attachments(folder / "c", self.loop, lambda: self.room, self._type)
        self._path = folder / "c"

    def _type(self, data: bytes) -> None:
        self.typed += data
        self.room -= len(data)

    def attach(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(10)
        client.connect(str(self._path))
        self.step()
        return client

    def step(self) -> None:
        """One turn, or none if nothing is ready."""
        self.loop.call_in("turn", 0, lambda: None)
        self.loop._step()


def received(client: socket.socket) -> ConsoleOutput:
    return ConsoleOutput.FromString(client.recv(1 << 20))


def test_all_that_are_attached_see_all_and_type(tmp_path: Path) -> None:
    console = Console(tmp_path)
    console.attachments.output(b"before ")
    one, two = console.attach(), console.attach()
    console.attachments.output(b"after")
    for client in (one, two):
        assert received(client).data + received(client).data == b"before after"
    one.send(b"ab")
    two.send(b"cd")
    for _ in range(4):
        console.step()
    assert sorted(console.typed) == sorted(b"abcd")
    one.close()
    two.close()


def test_who_does_not_read_misses_output_and_is_told(tmp_path: Path) -> None:
    console = Console(tmp_path)
    slow = console.attach()
    total = 4 << 20
    for _ in range(total // 4096):
        console.attachments.output(bytes(4096))
    seen = dropped = 0
    while seen + dropped < total:
        output = received(slow)
        seen, dropped = seen + len(output.data), dropped + output.dropped
        console.step()
    assert seen + dropped == total
    assert dropped > total // 2
    slow.close()


def test_typing_waits_for_room(tmp_path: Path) -> None:
    console = Console(tmp_path, room=INPUT_BYTES)
    client = console.attach()
    for _ in range(3):
        client.send(bytes(INPUT_BYTES))
    for _ in range(5):
        console.step()
    assert len(console.typed) == INPUT_BYTES
    console.room = INPUT_BYTES
    console.attachments.input_changed()
    for _ in range(5):
        console.step()
    assert len(console.typed) == 2 * INPUT_BYTES
    client.close()


def test_a_log_line_has_the_id_of_the_access(tmp_path: Path) -> None:
    log = Log("blk0", tmp_path / "log")
    log.trace = lambda: "blk0/0/17"
    log.info("refused", reason="why")
    assert (tmp_path / "log").read_text().endswith(" info blk0 refused reason=why trace=blk0/0/17\n")
