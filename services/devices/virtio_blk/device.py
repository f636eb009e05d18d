"""The model of the block device: requests, configuration, features (virtio 1.2, 5.2), by the specification's names.

Requests are done one after the other, in the order of their queue: what a killed device had begun, its successor does
again before anything that came after (vmesh/virtio/queue.py has the argument).
"""

from __future__ import annotations

import errno
import struct
import time
from dataclasses import dataclass

from google.protobuf.message import Message

from vmesh import errors
from vmesh.guest_memory import Piece
from vmesh.service import Runtime
from vmesh.v1.common_pb2 import SEVERITY_ERROR, SEVERITY_INFO, SEVERITY_WARNING, DiskError
from vmesh.v1.devices_pb2 import VirtioBlkState
from vmesh.virtio.device import Transport, VirtioDevice
from vmesh.virtio.queue import Chain, Queue, cut, length_of
from vmesh_services.devices.virtio_blk.image import SECTOR, Buffers, Image, Later, wait

QUEUE_SIZE = 256
MAX_QUEUES = 16

F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY = 1 << 2, 1 << 5, 1 << 6, 1 << 9, 1 << 10
F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = 1 << 11, 1 << 12, 1 << 13, 1 << 14
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
ID_BYTES = 20


class Type:
    """Of requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_RANGE = struct.Struct("<QII")  # sector, num_sectors, flags
_UNMAP = 1
# capacity, size_max, seg_max, geometry (4 bytes), blk_size, topology (8 bytes), writeback, unused, num_queues, then
# sectors, ranges and alignment of discards, sectors and ranges of zeroes, write_zeroes_may_unmap, unused
_CONFIG = struct.Struct("<QII4xI8xBxHIIIIIB3x")
_WRITEBACK = 32  # its place
# Of one read or write, whose buffers may be the same one many times: all of it is copied where guest memory is not
# mapped. Linux sends at most 1.25 MiB unless its user raises that, U-Boot all of a file that lies in one piece.
_MOST_BYTES = 256 << 20
_MOST_RANGES = 16  # of one discard or write zeroes
_MOST_DISCARDED = (1 << 22) - 1  # sectors of a range
_MOST_ZEROED = 1 << 16  # they may have to be written
_NOTICE_SECONDS = 10.0  # between two notices of the same error
_SLOW_SECONDS = 10.0  # after which a request that is not answered is told
_END_SECONDS = 2.0  # for what the host owes, when the device ends (the monitor gives it 3) or hands over


@dataclass(frozen=True, slots=True)
class Options:
    """`write_cache`: writes are stable after a flush only, if the driver can flush. `flushes`: they reach the disk."""

    read_only: bool = False
    serial: str = ""
    queues: int = 1
    discard: bool = False
    write_cache: bool = True
    flushes: bool = True
    packed: bool = False


class Refused(Exception):
    """The answer to a request that is not done."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class VirtioBlk(VirtioDevice):
    """The block device, on `image`."""

    kind = "virtio-blk"
    state = VirtioBlkState
    device_id = 2

    def __init__(self, runtime: Runtime, transport: Transport, image: Image, options: Options) -> None:
        if not 1 <= options.queues <= MAX_QUEUES:
            raise errors.ConfigError("num-queues", expected=f"1 to {MAX_QUEUES}", got=str(options.queues))
        features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES
        features |= (F_RO if options.read_only else 0) | (F_MQ if options.queues > 1 else 0)
        self._image = image
        self._options = options
        self._writeback = options.write_cache
        self._waiting = -1  # the queue whose oldest request waits for the host; nothing else is begun meanwhile
        self._watched = -1
        self._slow = False
        self._told: dict[tuple[int | None, bool], float] = {}  # errors of reads and writes, and when a notice told
        self._counters = dict.fromkeys(("reads", "writes", "flushes", "bytes_read", "bytes_written", "errors"), 0)
        super().__init__(
            runtime,
            transport,
            queue_sizes=(QUEUE_SIZE,) * options.queues,
            features=features,
            packed=options.packed,
        )

    def serve(self, queue: Queue) -> bool:
        if self._waiting >= 0 and self.queues[self._waiting] is None:
            self._forget_request()
        return self._waiting in (-1, queue.index) and super().serve(queue)

    def request(self, queue: Queue, chain: Chain) -> int:
        self._begin(again=self._waiting >= 0)
        try:
            written = self._request(queue, chain)
        except Later as later:
            self._wait(queue.index, later)
            raise
        if self._waiting >= 0:
            self._stop_waiting()
            for index in range(len(self.queues)):
                self.ring(index)
        return written

    def config(self) -> bytes:
        return _CONFIG.pack(
            self._image.size // SECTOR,
            0,
            QUEUE_SIZE - 2,
            SECTOR,
            self._writeback,
            self._options.queues,
            _MOST_DISCARDED,
            _MOST_RANGES,
            1,
            _MOST_ZEROED,
            _MOST_RANGES,
            self._options.discard,
        )

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == _WRITEBACK and size == 1 and self.negotiated(F_CONFIG_WCE):
            self._writeback = bool(value & 1)

    def reset_device(self) -> None:
        self._forget_request()
        self._writeback = self._options.write_cache

    def save_device(self, state: Message) -> None:
        assert isinstance(state, VirtioBlkState)
        state.writeback = self._writeback
        state.capacity = self._image.size // SECTOR

    def check_device(self, state: Message) -> None:
        assert isinstance(state, VirtioBlkState)
        if state.capacity != self._image.size // SECTOR:
            raise errors.BadState(
                "virtio-blk capacity", expected=f"{self._image.size // SECTOR} sectors", got=str(state.capacity)
            )

    def load_device(self, state: Message) -> None:
        assert isinstance(state, VirtioBlkState)
        self._forget_request()
        self._writeback = state.writeback

    def resume(self) -> None:
        self._image.take()
        super().resume()

    def hand_over(self) -> None:
        self._flush_at_last()
        self._image.release()

    def shutdown(self) -> None:
        try:
            self._flush_at_last()
        except errors.PeerError as error:
            told = DiskError(write=True, reason=str(error))
            self.runtime.notify(SEVERITY_ERROR, f"what was written last may be lost: {error}", told)
        self._image.close()

    def counters(self) -> dict[str, int]:
        return {**super().counters(), **self._counters}

    def _request(self, queue: Queue, chain: Chain) -> int:
        header, data = cut(chain.readable, _HEADER.size)
        room = length_of(chain.writable)
        if not room or length_of(header) != _HEADER.size:
            self.needs_reset(f"queue {queue.index}: expected a header of {_HEADER.size} bytes and room for a status")
            return 0
        kind, _, sector = _HEADER.unpack(b"".join(self.memory.gather(header)))
        target, status = cut(chain.writable, room - 1)
        try:
            written = self._perform(kind, sector, data, target)
            answer = S_OK
        except Refused as refused:
            written, answer = 0, refused.status
        except OSError as error:
            if error.errno == errno.EFAULT:  # guest memory that is not there, which is told where we touch it (mapping)
                b"".join(self.memory.gather([*data, *target]))
            self._host_error(error, write=kind != Type.IN)
            written, answer = 0, S_IOERR
        self.memory.write(status[0][0], bytes((answer,)))
        return written + 1 if written == room - 1 else written

    def _begin(self, *, again: bool = False) -> None:
        """The image is about to be used: it may close what it had us wait for."""
        if self._watched >= 0:
            self.runtime.loop.watch(self._watched)
            self._watched = -1
        self._image.begin(again=again)

    def _wait(self, index: int, later: Later) -> None:
        """Serve the queue again when the host has answered."""
        loop = self.runtime.loop
        if self._waiting < 0:
            loop.call_in("slow", _SLOW_SECONDS, self._tell_slow)
        self._waiting = index

        def ready() -> None:
            if self._watched >= 0:
                loop.watch(self._watched)  # it stays so until the queue is served, which a pause puts off
                self._watched = -1
            self.ring(index)

        if later.fd < 0:
            loop.call_in("disk", later.seconds, ready)
        else:
            self._watched = later.fd
            loop.watch(later.fd, **{"write" if later.write else "read": ready})

    def _stop_waiting(self) -> None:
        self._waiting = -1
        self.runtime.loop.cancel("disk")
        self.runtime.loop.cancel("slow")
        if self._slow:
            self._slow = False
            self.runtime.notify(SEVERITY_INFO, "the server of the disk has answered")

    def _tell_slow(self) -> None:
        self._slow = True
        what = f"the server of the disk has not answered for {_SLOW_SECONDS:g} s: the guest waits for it"
        self.runtime.notify(SEVERITY_WARNING, what)

    def _forget_request(self) -> None:
        """The driver has given up what it had asked for; the host may not have."""
        if self._waiting >= 0:
            self._stop_waiting()
        self._begin()

    def _flush_at_last(self) -> None:
        """Wait for what the host owes, and have it keep what the guest has written. Raises PeerError."""
        if self._options.read_only:
            return
        deadline = time.monotonic() + _END_SECONDS
        self._begin()
        try:
            while True:
                try:
                    self._flush()
                    return
                except Later as later:
                    if not wait(later, deadline - time.monotonic()):
                        raise errors.PeerError(
                            f"the server of the disk has not answered for {_END_SECONDS:g} s"
                        ) from None
                self._begin(again=True)
        except OSError as error:
            raise errors.PeerError(f"the disk could not be flushed: {error.strerror or error}") from error

    def _perform(self, kind: int, sector: int, data: list[Piece], target: list[Piece]) -> int:
        """Gives how many bytes of `target` were written. Raises Refused, OSError."""
        counters = self._counters
        match kind:
            case Type.IN:
                offset, length = self._transfer(sector, target)

                def fill(buffers: Buffers) -> int:
                    self._image.read(offset, buffers)
                    return length

                written = self.memory.scatter(target, fill)
                counters["reads"] += 1
                counters["bytes_read"] += length
                return written
            case Type.OUT:
                self._check_writable()
                offset, length = self._transfer(sector, data)
                if length:
                    self._image.write(offset, self.memory.gather(data))
                self._settled()
                counters["writes"] += 1
                counters["bytes_written"] += length
            case Type.FLUSH:
                self._flush()
                counters["flushes"] += 1
            case Type.GET_ID:
                if length_of(target) < ID_BYTES:
                    raise Refused(S_IOERR)
                place, _ = cut(target, ID_BYTES)
                serial = self._options.serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
                return self.memory.scatter(place, lambda buffers: _put(buffers, serial))
            case Type.DISCARD | Type.WRITE_ZEROES:
                self._check_writable()
                self._ranges(kind, data)
                self._settled()
            case _:
                raise Refused(S_UNSUPP)
        return 0

    def _ranges(self, kind: int, data: list[Piece]) -> None:
        size = length_of(data)
        if not size or size % _RANGE.size or size > _MOST_RANGES * _RANGE.size:
            raise Refused(S_IOERR)
        ranges = []
        for sector, sectors, flags in _RANGE.iter_unpack(b"".join(self.memory.gather(data))):
            if flags & ~(_UNMAP if kind == Type.WRITE_ZEROES else 0):
                raise Refused(S_UNSUPP)
            if sectors > (_MOST_ZEROED if kind == Type.WRITE_ZEROES else _MOST_DISCARDED):
                raise Refused(S_IOERR)
            ranges.append((*self._range(sector, sectors * SECTOR), bool(flags & _UNMAP)))
        for offset, length, unmap in ranges:
            if not length:
                continue
            if kind == Type.WRITE_ZEROES:
                self._image.zero(offset, length, unmap=unmap and self._options.discard)
            elif self._options.discard:
                self._image.discard(offset, length)

    def _transfer(self, sector: int, pieces: list[Piece]) -> tuple[int, int]:
        """Offset and length in bytes of what is to be read or written."""
        if (length := length_of(pieces)) > _MOST_BYTES:
            raise Refused(S_IOERR)
        return self._range(sector, length)

    def _range(self, sector: int, length: int) -> tuple[int, int]:
        """Offset and length in bytes of what is asked for, if it is whole sectors inside of the disk."""
        offset = sector * SECTOR
        if length % SECTOR or offset + length > self._image.size:
            raise Refused(S_IOERR)
        return offset, length

    def _check_writable(self) -> None:
        if self._options.read_only:
            raise Refused(S_IOERR)

    def _settled(self) -> None:
        """After a write: without a cache that the driver knows of, it has to be stable (5.2.6.2)."""
        if not (self._writeback and self.negotiated(F_FLUSH)):
            self._flush()

    def _flush(self) -> None:
        if self._options.flushes and not self._options.read_only:
            self._image.flush()

    def _host_error(self, error: OSError, *, write: bool) -> None:
        self._counters["errors"] += 1
        now = time.monotonic()
        last = self._told.get((error.errno, write))
        if last is None or now - last >= _NOTICE_SECONDS:
            self._told[error.errno, write] = now
            told = DiskError(write=write, no_space=error.errno == errno.ENOSPC, reason=error.strerror or str(error))
            what = "a write" if write else "a read"
            self.runtime.notify(SEVERITY_ERROR, f"{what} failed, the guest was told: {told.reason}", told)


def _put(buffers: Buffers, data: bytes) -> int:
    start = 0
    for buffer in buffers:
        buffer[:] = data[start : start + len(buffer)]
        start += len(buffer)
    return start
