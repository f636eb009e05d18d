"""The guest's side of 9P2000.L, written from diod's protocol.md alone, and a device to speak it with."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.unit.device_harness import FakeRuntime
from tests.unit.virtio_driver import BUFFERS, SplitDriver, areas, guest_memory
from vmesh.slot import MARKS
from vmesh.v1.devices_pb2 import VirtioQueueState
from vmesh.virtio.device import DRIVER_OK, F_VERSION_1, FEATURES_OK
from vmesh.virtio.mmio import Mmio
from vmesh_services.devices.virtio_9p.device import Virtio9p
from vmesh_services.devices.virtio_9p.folder import Folder

ROOT = 0
MSIZE = 8192
RDONLY, WRONLY, RDWR, CREATE, EXCL, TRUNC = 0, 1, 2, 0o100, 0o200, 0o1000
REMOVEDIR = 0x200
VERSION, ATTACH, WALK, CLUNK, REMOVE, FLUSH = 100, 104, 110, 120, 122, 108
LOPEN, LCREATE, READ, WRITE, READDIR, READLINK = 12, 14, 116, 118, 40, 22
GETATTR, SETATTR, STATFS, FSYNC, LOCK, GETLOCK = 24, 26, 8, 50, 52, 54
SYMLINK, LINK, MKDIR, MKNOD, RENAME, RENAMEAT, UNLINKAT = 16, 70, 72, 18, 20, 74, 76
XATTRWALK, XATTRCREATE, AUTH = 30, 32, 102


class Refused(Exception):
    """Rlerror; `args[0]` is the errno."""


def string(text: bytes) -> bytes:
    return struct.pack("<H", len(text)) + text


def request(number: int, *fields: bytes | tuple[str, int], tag: int = 7) -> bytes:
    """A message: fields are strings, or integers with the letter that struct has for their size."""
    body = b"".join(string(each) if isinstance(each, bytes) else struct.pack("<" + each[0], each[1]) for each in fields)
    return struct.pack("<IBH", 7 + len(body), number, tag) + body


def answer(reply: bytes, number: int) -> bytes:
    """What is behind the header. Raises Refused."""
    size, got, tag = struct.unpack_from("<IBH", reply)
    assert size == len(reply)
    assert tag == 7
    if got == 7:
        raise Refused(*struct.unpack("<I", reply[7:]))
    assert got == number + 1
    return reply[7:]


def word(value: int) -> tuple[str, int]:
    return "I", value


def long(value: int) -> tuple[str, int]:
    return "Q", value


class Client:
    """Speaks through `exchange`: a message for a message."""

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        self.exchange = exchange

    def ask(self, number: int, *fields: bytes | tuple[str, int]) -> bytes:
        return answer(self.exchange(request(number, *fields)), number)

    def mount(self, user: int = 0, msize: int = MSIZE) -> None:
        self.ask(VERSION, word(msize), b"9P2000.L")
        self.ask(ATTACH, word(ROOT), word(0xFFFFFFFF), b"root", b"", word(user))

    def walk(self, new: int, *names: bytes, fid: int = ROOT) -> int:
        """How many names were found."""
        reply = self.ask(WALK, word(fid), word(new), ("H", len(names)), *names)
        return int(struct.unpack_from("<H", reply)[0])

    def open(self, new: int, *names: bytes, flags: int = RDONLY) -> None:
        assert self.walk(new, *names) == len(names)
        self.ask(LOPEN, word(new), word(flags))

    def create(self, new: int, *names: bytes, flags: int = RDWR | EXCL, mode: int = 0o644) -> None:
        assert self.walk(new, *names[:-1]) == len(names) - 1
        self.ask(LCREATE, word(new), names[-1], word(flags), word(mode), word(0))

    def read(self, fid: int, offset: int = 0, count: int = 4096) -> bytes:
        reply = self.ask(READ, word(fid), long(offset), word(count))
        assert struct.unpack_from("<I", reply)[0] == len(reply) - 4
        return reply[4:]

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        message = request(WRITE, word(fid), long(offset), word(len(data)))
        message = struct.pack("<I", len(message) + len(data)) + message[4:] + data
        return int(struct.unpack("<I", answer(self.exchange(message), WRITE))[0])

    def readdir(self, fid: int, offset: int = 0, count: int = 4096) -> list[tuple[bytes, int, int]]:
        """Names, offsets and types."""
        reply = self.ask(READDIR, word(fid), long(offset), word(count))
        assert struct.unpack_from("<I", reply)[0] == len(reply) - 4 <= count
        found, at = [], 4
        while at < len(reply):
            behind, kind, size = struct.unpack_from("<QBH", reply, at + 13)
            found.append((reply[at + 24 : at + 24 + size], behind, kind))
            at += 24 + size
        return found

    def attributes(self, fid: int) -> dict[str, int]:
        reply = self.ask(GETATTR, word(fid), long(0x7FF))
        names = ("valid", "type", "version", "path", "mode", "user", "group", "links", "device", "size")
        return dict(zip(names, struct.unpack_from("<QBIQIIIQQQ", reply), strict=True))

    def set_attributes(self, fid: int, valid: int, *, mode: int = 0, user: int = 0, group: int = 0, size: int = 0,
                       times: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:  # fmt: skip
        words = [word(each) for each in (fid, valid, mode, user, group)]
        self.ask(SETATTR, *words, long(size), *(long(each) for each in times))


class Share(Client):
    """A device on `folder`, and its successors; `directory`, the marks and guest memory survive a kill."""

    device: Virtio9p

    def __init__(self, directory: Path, folder: Path, *, mapped: bool = False, read_only: bool = False) -> None:
        super().__init__(self._exchange)
        self.directory, self.folder = directory, folder
        self._options: dict[str, Any] = {"read_only": read_only, "most_open": 20}
        self._mapped = mapped
        self._memory = guest_memory(directory)
        self._driver = SplitDriver(self._memory, areas(16))
        self._marks = memoryview(bytearray(8 * MARKS)).cast("Q")
        self._epoch = 0
        self.start()

    def start(self) -> None:
        """The first life, or the one that takes over."""
        self._epoch += 1
        runtime: Any = FakeRuntime()
        runtime.machine, runtime.name, runtime.epoch = SimpleNamespace(path=self.directory), "share0", self._epoch
        slot = self.device.slot_state() if self._epoch > 1 else None
        self.device = Virtio9p(
            runtime, Mmio(0x1000_8000, 8), Folder(self.folder, mapped=self._mapped), "host", **self._options
        )
        self.device.marks = self._marks
        self.device.reset()
        if slot is not None:
            self.device.check(slot, 1)
            self.device.load(slot)
        self.device.memory = self._memory
        self.device.attached()
        if slot is not None:
            self.device.recover()
            return
        state: Any = self.device.slot_state()
        state.virtio.status, state.virtio.driver_features = DRIVER_OK | FEATURES_OK, F_VERSION_1
        places = self._driver.areas
        state.virtio.queues[0].CopyFrom(
            VirtioQueueState(
                size=16, ready=True, descriptors=places.descriptors, driver=places.driver, device=places.device
            )
        )
        self.device.load(state)

    def send(self, message: bytes, room: int = MSIZE) -> None:
        """Put a request into the queue."""
        self._memory.write(BUFFERS, message)
        assert self._driver.add([(BUFFERS, len(message))], [(BUFFERS + 0x20000, room)]) is not None

    def serve(self) -> bytes:
        """Let the device do what is in the queue: one request."""
        self.device.ring(0)
        self.device.settle()
        return self.reply()

    def reply(self) -> bytes:
        ((_, written),) = self._driver.reap()
        return self._memory.read(BUFFERS + 0x20000, written)

    @property
    def answered(self) -> bool:
        return self._driver.used != self._memory.read_u16(self._driver.back + 2)

    def _exchange(self, message: bytes) -> bytes:
        self.send(message)
        return self.serve()
