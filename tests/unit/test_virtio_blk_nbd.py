"""Disks that a server has: the protocol against a server of our own, and qcow2 by qemu-nbd."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.devices.virtio_blk import nbd
from services.devices.virtio_blk.nbd import Address, NbdImage
from services.devices.virtio_blk.qemu_nbd import ServedImage
from vmesh import errors

SIZE = 1 << 20
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6


class Server:
    """One export, `disk`, in memory, to one client after the other. `log` has the requests but reads and writes."""

    def __init__(self, path: Path, flags: int = 1 | 4 | 32 | 64) -> None:
        self.data = bytearray(random.Random(3).randbytes(SIZE))
        self.size = SIZE
        self.log: list[tuple[int, int, int, int]] = []
        self.fail = 0
        self.hang_up = False
        self._flags = flags
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, client.makefile("rb") as stream, contextlib.suppress(struct.error, OSError):
                self._serve(client, stream.read)

    def _serve(self, client: socket.socket, read: Callable[[int], bytes]) -> None:
        client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        assert read(4) == struct.pack(">I", 3)
        magic, option, length = struct.unpack(">8sII", read(16))
        assert (magic, option) == (b"IHAVEOPT", 7)
        wanted = read(length)
        name = wanted[4 : 4 + struct.unpack_from(">I", wanted)[0]]
        if name != b"disk":
            client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, (1 << 31) + 6, 7) + b"no such")
            return
        info = struct.pack(">HQH", 0, self.size, self._flags)
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 3, len(info)) + info)
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0))
        while True:
            magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", read(28))
            assert magic == 0x25609513
            data = read(length) if kind == WRITE else b""
            if self.hang_up:
                return
            reply = b""
            if not self.fail:
                if kind == READ:
                    reply = bytes(self.data[offset : offset + length])
                elif kind == WRITE:
                    self.data[offset : offset + length] = data
                elif kind == ZERO:
                    self.data[offset : offset + length] = bytes(length)
            if kind not in (READ, WRITE):
                self.log.append((kind, flags, offset, length))
            client.sendall(struct.pack(">IIQ", 0x67446698, self.fail, cookie) + reply)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    made = Server(path)
    yield made
    made.close()


def image_of(path: Path, *, export: str = "disk", read_only: bool = False) -> NbdImage:
    return NbdImage(Address(str(path), "", 0, export), read_only=read_only)


def read(image: NbdImage, offset: int, *sizes: int) -> bytes:
    buffers = [bytearray(size) for size in sizes]
    image.read(offset, [memoryview(buffer) for buffer in buffers])
    return b"".join(buffers)


def test_requests(server: Server, path: Path) -> None:
    before = bytes(server.data)
    image = image_of(path)
    assert image.size == SIZE
    assert read(image, 512, 3, 5000, 9) == before[512 : 512 + 5012]
    image.write(1024, [memoryview(b"ab" * 256), memoryview(b"c" * 512)])
    assert bytes(server.data) == before[:1024] + b"ab" * 256 + b"c" * 512 + before[2048:]
    image.flush()
    image.discard(4096, 8192)
    image.zero(0, 512, unmap=False)
    image.zero(512, 512, unmap=True)
    assert server.log == [(FLUSH, 0, 0, 0), (TRIM, 0, 4096, 8192), (ZERO, 2, 0, 512), (ZERO, 0, 512, 512)]


def test_a_transfer_is_cut_to_what_servers_take(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "MAX_TRANSFER", 1000)
    assert read(image_of(path), 0, 700, 700, 1111) == bytes(server.data[:2511])


def test_many_buffers(server: Server, path: Path) -> None:
    assert read(image_of(path), 0, *[16] * 3000) == bytes(server.data[:48000])


def test_what_the_server_cannot_do_is_done_without(path: Path) -> None:
    server = Server(path, flags=1)
    image = image_of(path)
    image.flush()
    image.discard(0, 512)
    image.zero(512, 1024, unmap=True)
    assert server.log == []
    assert server.data[512:1536] == bytes(1024)
    server.close()


def test_errors_of_the_server(server: Server, path: Path) -> None:
    image = image_of(path)
    server.fail = errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as failed:
        image.write(0, [memoryview(bytes(512))])
    assert failed.value.errno == errno.ENOSPC
    server.fail = 0
    image.write(0, [memoryview(bytes(512))])


def test_a_server_that_goes_and_comes_back(server: Server, path: Path) -> None:
    image = image_of(path)
    server.hang_up = True
    for _ in range(2):
        with pytest.raises(OSError, match="closed the connection"):
            image.flush()
    server.hang_up = False
    image.flush()
    server.size = SIZE // 2
    server.hang_up = True
    with pytest.raises(OSError):  # noqa: PT011
        image.flush()
    server.hang_up = False
    with pytest.raises(OSError, match="another disk"):
        image.flush()


def test_what_cannot_be_used(server: Server, path: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="refuses the export 'other': no such"):
        image_of(path, export="other")
    with pytest.raises(errors.ConfigError, match="nbd server"):
        image_of(tmp_path / "nowhere")
    other = tmp_path / "read-only.sock"
    locked = Server(other, flags=3)
    with pytest.raises(errors.ConfigError, match="readonly=on is needed"):
        image_of(other)
    assert image_of(other, read_only=True).size == SIZE
    locked.close()


def test_a_server_that_speaks_something_else(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            client, _ = listening.accept()
            with client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(errors.ConfigError, match="expected an NBD server"):
            image_of(path)
        thread.join(20)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("disk.img", None),
        ("nbd:unix:/a/b.sock", Address("/a/b.sock", "", 0, "")),
        ("nbd:unix:/a:exportname=x", Address("/a", "", 0, "x")),
        ("nbd:host:99", Address("", "host", 99, "")),
        ("nbd://host/x%20y", Address("", "host", 10809, "x y")),
        ("nbd://host:99", Address("", "host", 99, "")),
        ("nbd+unix:///x?socket=/a/b", Address("/a/b", "", 0, "x")),
    ],
)
def test_names_of_servers(text: str, address: Address | None) -> None:
    assert nbd.parse(text) == address


@pytest.mark.parametrize("text", ["nbd:host", "nbd:host:port", "nbd:unix:", "nbd+unix:///x", "nbd://host:port"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(errors.ConfigError):
        nbd.parse(text)


@pytest.mark.peer
def test_a_qcow2_image(tmp_path: Path, peer: Callable[[str], str]) -> None:
    tool, disk, socket_path = peer("qemu-img"), tmp_path / "disk.qcow2", tmp_path / "served"
    peer("qemu-nbd")
    subprocess.run([tool, "create", "-f", "qcow2", str(disk), "3M"], check=True, capture_output=True)
    image = ServedImage(disk, "qcow2", socket_path, read_only=False, discard=False)
    assert image.size == 3 << 20
    image.write(SIZE, [memoryview(b"z" * 4096)])
    image.flush()
    image.close()
    again = ServedImage(disk, "qcow2", socket_path, read_only=True, discard=False)
    assert read(again, SIZE - 512, 1024) == bytes(512) + b"z" * 512
    again.close()


def test_without_qemu_nbd_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(errors.ConfigError, match="qemu-utils"):
        ServedImage(tmp_path / "x", "qcow2", tmp_path / "s", read_only=True, discard=False)
