"""Disks that a server has: the protocol against a server of our own, and qcow2 by qemu-nbd."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmesh import errors, waiting
from vmesh_services.devices.virtio_blk import guard, nbd
from vmesh_services.devices.virtio_blk.blocks import Blocks
from vmesh_services.devices.virtio_blk.image import Image, Later, wait
from vmesh_services.devices.virtio_blk.nbd import Address, NbdImage
from vmesh_services.devices.virtio_blk.qemu_nbd import ServedImage

SIZE = 1 << 20
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6


class Server:
    """One export, `disk`, in memory, to one client after the other. `log` has the requests but reads and writes, `seen`
    their types. What is asked is answered while `open` is set; with `block`, requests of whole blocks only."""

    def __init__(
        self, path: Path, flags: int = 1 | 4 | 32 | 64, size: int = SIZE, block: int = 0, at_once: bool = False
    ) -> None:
        self.data = bytearray(random.Random(3).randbytes(size))
        self.size = size
        self.block = block
        self.log: list[tuple[int, int, int, int]] = []
        self.seen: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.fail = 0
        self.hang_up = False
        self.order: list[str] = []  # of the writes of a server that answers several clients at once
        self._flags = flags
        self._at_once = at_once
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
            if self._at_once:
                threading.Thread(target=self._attend, args=(client,), daemon=True).start()
            else:
                self._attend(client)

    def _attend(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream, contextlib.suppress(struct.error, OSError):
            self._serve(client, stream.read)

    def _serve(self, client: socket.socket, read: Callable[[int], bytes]) -> None:
        client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        assert read(4) == struct.pack(">I", 3)
        magic, option, length = struct.unpack(">8sII", read(16))
        assert (magic, option) == (b"IHAVEOPT", 7)
        wanted = read(length)
        assert wanted[-4:] == struct.pack(">HH", 1, 3)  # NBD_INFO_BLOCK_SIZE is asked for
        if not self._at_once:
            self.open.wait()
        name = wanted[4 : 4 + struct.unpack_from(">I", wanted)[0]]
        if name != b"disk":
            client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, (1 << 31) + 6, 7) + b"no such")
            return
        info = struct.pack(">HQH", 0, self.size, self._flags)
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 3, len(info)) + info)
        if self.block:
            sizes = struct.pack(">HIII", 3, self.block, self.block, 1 << 20)
            client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 3, len(sizes)) + sizes)
        client.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0))
        while True:
            magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", read(28))
            assert magic == 0x25609513
            data = read(length) if kind == WRITE else b""
            self.seen.append(kind)
            self.order += ["asked"] if kind == WRITE else []
            self.open.wait()
            if self.hang_up:
                return
            reply = b""
            fail = self.fail or (errno.EINVAL if self.block and (offset % self.block or length % self.block) else 0)
            if offset + length > self.size:
                fail = errno.ENOSPC
            if not fail:
                if kind == READ:
                    reply = bytes(self.data[offset : offset + length])
                elif kind == WRITE:
                    self.data[offset : offset + length] = data
                    self.order.append("done")
                elif kind == ZERO:
                    self.data[offset : offset + length] = bytes(length)
            if kind not in (READ, WRITE):
                self.log.append((kind, flags, offset, length))
            client.sendall(struct.pack(">IIQ", 0x67446698, fail, cookie) + reply)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host every server may take its time."""
    monkeypatch.setattr(nbd, "_PATIENCE", 20.0)


@pytest.fixture
def impatient(_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "_PATIENCE", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    made = Server(path)
    yield made
    made.close()


def image_of(path: Path, *, export: str = "disk", read_only: bool = False, kept: Path | None = None) -> NbdImage:
    return NbdImage(Address(str(path), "", 0, export), read_only=read_only, kept=kept)


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


def come_back(image: NbdImage, again: Callable[[], None], seconds: float = 20.0) -> None:
    """Make a request that was Later again, until it is done."""
    deadline = time.monotonic() + seconds
    while True:
        image.begin(again=True)
        try:
            again()
        except Later as later:
            if not wait(later, deadline - time.monotonic()):
                raise
        else:
            return


@pytest.mark.usefixtures("impatient")
def test_a_server_may_take_its_time(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is not answered soon is left and come back to; whatever it needs of the server is asked once."""
    monkeypatch.setattr(nbd, "MAX_TRANSFER", 4096)
    image = image_of(path)
    data = random.Random(4).randbytes(3 * 4096)
    found = bytearray(3 * 4096)

    def change() -> None:
        image.write(512, [memoryview(data)])
        image.flush()

    for request, kinds in ((change, [WRITE] * 3 + [FLUSH]), (lambda: image.read(512, [memoryview(found)]), [READ] * 3)):
        server.open.clear()
        server.seen.clear()
        for tries in range(3):
            image.begin(again=tries > 0)
            with pytest.raises(Later):
                request()
        server.open.set()
        come_back(image, request)
        assert server.seen == kinds
    assert found == data == server.data[512 : 512 + len(data)]


@pytest.mark.usefixtures("impatient")
def test_no_write_comes_after_a_later_one(server: Server, path: Path) -> None:
    """What nobody waits for any more is waited for before anything else is sent: on its own connection."""
    image = image_of(path)
    server.open.clear()
    large = b"a" * (4 << 20)  # more than lies in a socket: it is still being sent
    image.begin(again=False)
    with pytest.raises(Later):
        image.write(0, [memoryview(bytearray(large))[:SIZE]])
    image.begin(again=False)
    with pytest.raises(Later):
        image.write(0, [memoryview(b"b" * 512)])
    assert server.seen in ([], [WRITE])
    server.open.set()
    come_back(image, lambda: image.write(0, [memoryview(b"b" * 512)]))
    assert server.seen == [WRITE, WRITE]
    assert server.data[:1024] == b"b" * 512 + b"a" * 512


def wait_for_guard(path: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            os.close(guard.claim(path))
            return
        time.sleep(0.01)
    raise AssertionError("the guard still has the lock")


@pytest.mark.usefixtures("impatient")
def test_the_next_life_of_a_killed_device_waits_for_what_the_server_owes(tmp_path: Path) -> None:
    """Of a server that serves several connections at once, and so might do the former's write after the next one's."""
    path, kept = tmp_path / "nbd.sock", tmp_path / "export"
    server = Server(path, at_once=True)
    image_of(path, kept=kept).close()
    wait_for_guard(tmp_path / "export.guard")  # the server has closed that connection: none of it is in the fork
    server.open.clear()
    life = os.fork()
    if not life:
        try:
            killed = image_of(path, kept=kept)
            come_back(killed, lambda: killed.write(0, [memoryview(b"old" + bytes(509))]))
        finally:
            os._exit(0)
    deadline = time.monotonic() + 20
    while WRITE not in server.seen and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(life, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(life, 0)[1])
    image = image_of(path, kept=kept)
    for seconds in (0.5, 20):
        with contextlib.suppress(Later):
            come_back(image, lambda: image.write(0, [memoryview(b"new" + bytes(509))]), seconds)
        server.open.set()
    assert server.order == ["asked", "done"] * 2
    assert server.data[:3] == b"new"
    image.close()
    server.close()


@pytest.mark.parametrize("files", [0, 1100])
def test_the_guard_ends_with_the_machine(tmp_path: Path, files: int) -> None:
    """Not before, however many files the device has open."""
    lock, ours, theirs = guard.claim(tmp_path / "guard"), *socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as others:
        others.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, soft + files), hard))
        for _ in range(files):
            others.enter_context(open(os.devnull))
        held = guard.begin(ours, lock, tmp_path / "guard")
    ours.close()
    assert not waiting.readable(theirs.fileno(), seconds=0.2)
    with pytest.raises(BlockingIOError):
        guard.claim(tmp_path / "guard")
    (tmp_path / "guard").rename(tmp_path / "other")
    os.close(held)
    assert theirs.recv(1) == b""  # nothing more comes, and then the guard is gone
    wait_for_guard(tmp_path / "other")


@pytest.mark.usefixtures("impatient")
def test_a_read_that_nobody_waits_for_goes_nowhere(server: Server, path: Path) -> None:
    image, given_up = image_of(path), bytearray(4096)
    server.open.clear()
    image.begin(again=False)
    with pytest.raises(Later):
        image.read(0, [memoryview(given_up)])
    image.begin(again=False)
    server.open.set()
    found = bytearray(512)
    come_back(image, lambda: image.read(4096, [memoryview(found)]))
    assert found == server.data[4096:4608]
    assert not any(given_up)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_when_it_is_connected_to_again(server: Server, path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "export"
    image = image_of(path, kept=kept)
    server.hang_up = True
    with pytest.raises(OSError, match="closed the connection"):
        come_back(image, image.flush)
    server.hang_up = False
    server.open.clear()
    image.begin(again=False)
    with pytest.raises(Later):
        image.flush()
    later_life = image_of(path, kept=kept)  # does not need the server to begin
    assert later_life.size == SIZE
    server.open.set()
    come_back(image, image.flush)
    image.close()
    come_back(later_life, later_life.flush)


def test_a_server_that_does_not_answer_is_no_disk(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "CONNECT_SECONDS", 0.05)
    server.open.clear()
    with pytest.raises(errors.ConfigError, match="has not answered"):
        image_of(path)


@pytest.mark.parametrize("block", [1, 512, 4096, 65536])
def test_blocks_of_the_server_against_a_model(path: Path, block: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = Server(path, size=8 * 65536, block=block)
    model = bytearray(server.data)
    served = image_of(path)
    assert served.block == block
    image: Image = Blocks(served, block) if block > 512 else served
    for _ in range(60):
        start = chance.randrange(len(model) // 512) * 512
        size = chance.randrange(1, min(300, (len(model) - start) // 512 + 1)) * 512
        image.begin(again=False)
        match chance.randrange(4):
            case 0:
                data = chance.randbytes(size)
                image.write(start, [memoryview(data)[:100], memoryview(data)[100:]])
                model[start : start + size] = data
            case 1:
                image.zero(start, size, unmap=True)
                model[start : start + size] = bytes(size)
            case 2:
                image.discard(start, size)
            case 3:
                found = bytearray(size)
                image.read(start, [memoryview(found)[:7], memoryview(found)[7:]])
                assert found == model[start : start + size]
    assert server.data == model
    server.close()


@pytest.mark.parametrize(("size", "block", "sees"), [(SIZE + 100, 1, SIZE + 512), (SIZE + 600, 512, SIZE + 512)])
def test_a_disk_that_ends_inside_of_a_block(path: Path, size: int, block: int, sees: int) -> None:
    """Of a sector, the rest is zeroes, as with QEMU; of the server's blocks, it cannot be had (proto.md)."""
    server = Server(path, size=size, block=block)
    image = image_of(path)
    assert image.size == sees
    at, rest = sees - 512, min(512, size - sees + 512)
    assert read(image, at, 512) == bytes(server.data[at : at + rest]).ljust(512, b"\0")
    image.write(at, [memoryview(b"x" * rest + bytes(512 - rest))])
    image.zero(at - 512, 1024, unmap=False)
    assert server.data[at - 512 : at + rest] == bytes(512 + rest)
    if rest < 512:
        with pytest.raises(OSError, match="ends inside"):
            image.write(at, [memoryview(b"x" * 512)])
    server.close()


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
        ("nbd:[::1]:99:exportname=x", Address("", "::1", 99, "x")),
        ("nbd://[::1]:99/x", Address("", "::1", 99, "x")),
        ("nbd+tcp://host", Address("", "host", 10809, "")),
        ("nbd://host/x%20y", Address("", "host", 10809, "x y")),
        ("nbd://host:99", Address("", "host", 99, "")),
        ("nbd+unix:///x?socket=/a/b", Address("/a/b", "", 0, "x")),
    ],
)
def test_names_of_servers(text: str, address: Address | None) -> None:
    assert nbd.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "nbd:host",
        "nbd:host:port",
        "nbd:::1:99",
        "nbd:[::1]",
        "nbd:host:0",
        "nbd:unix:",
        "nbd+unix:///x",
        "nbd://host:port",
        "nbd://[::1",
    ],
)
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
