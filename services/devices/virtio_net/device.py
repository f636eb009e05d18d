"""The model of the network card (virtio 1.2, 5.1).

The two directions do not wait for each other. What comes in is put into the guest's buffers at once; while it has none,
the netdev is not read, and who sends to it drops. What goes out is sent at once; while the netdev is full it stays in
the guest's queue, for STALL_SECONDS at most: after that it is dropped until the netdev takes frames again.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

from google.protobuf.message import Message

from vmesh import errors
from vmesh.netdev.port import HEADER_BYTES, MAX_FRAME, MIN_FRAME, Frame, Netdev, Port
from vmesh.service import Runtime
from vmesh.v1.devices_pb2 import VirtioNetState
from vmesh.virtio.device import F_VERSION_1, Transport, VirtioDevice
from vmesh.virtio.queue import Chain, Queue, cut, length_of

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE = 256
BATCH = 64  # frames given to the netdev at a time
BATCH_BYTES = 256 << 10
PUSHED = 32  # buffers given back to the guest at a time, or more if a frame needs them
STALL_SECONDS = 1.0

# 5.1.3
F_CSUM, F_GUEST_CSUM, F_MTU, F_MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
F_MRG_RXBUF, F_STATUS = 1 << 15, 1 << 16
OFFLOADS = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6
LINK_UP = 1  # of the configuration's status
MIN_MTU, MAX_MTU = 68, 65535  # 5.1.4.1; what a frame can carry

HEADER = struct.Struct("<BBHHHHH")  # 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6 = 0, 1, 4
_GSO_FEATURES = {GSO_TCPV4: F_HOST_TSO4, GSO_TCPV6: F_HOST_TSO6}
_CONFIG = struct.Struct("<6sHHH")  # 5.1.4: mac, status, max_virtqueue_pairs, mtu
_TURN_NS = 2_000_000
_MAX_GSO_HEADERS = 512  # of a frame that is to be cut up: generous for Ethernet, IP and TCP with their options


class VirtioNet(VirtioDevice):
    """The card; `plug` gives the netdev for it, not started. `mtu` is told to the guest unless 0."""

    kind = "virtio-net"
    state = VirtioNetState
    device_id = 1

    def __init__(
        self,
        runtime: Runtime,
        transport: Transport,
        plug: Callable[[Port], Netdev],
        *,
        mac: bytes,
        mtu: int = 0,
        packed: bool = False,
    ) -> None:
        self._mac, self._mtu = mac, mtu
        if mtu and not MIN_MTU <= mtu <= MAX_MTU:
            raise errors.ConfigError("host_mtu", expected=f"{MIN_MTU} to {MAX_MTU}", got=str(mtu))
        self.netdev: Netdev = plug(self)
        features = F_MAC | F_STATUS | (F_MTU if mtu else 0) | (OFFLOADS if self.netdev.offload else 0)
        if not packed:
            features |= F_MRG_RXBUF  # see Queue.push_all
        self._link_up = self._told_up = False  # as it is; as the guest can read it
        self._held = False  # the netdev is full
        self._stalled = False  # and has been for long
        self._counts = dict.fromkeys(_COUNTERS, 0)
        super().__init__(runtime, transport, queue_sizes=(QUEUE_SIZE, QUEUE_SIZE), features=features, packed=packed)

    def start(self) -> None:
        self.netdev.start()

    def config(self) -> bytes:
        return _CONFIG.pack(self._mac, LINK_UP if self._told_up else 0, 1, self._mtu)

    def driver_ready(self) -> None:
        # 5.1.3.1: no large frames without GUEST_CSUM. The host refuses them, so a driver that asks for them gets none.
        received = _RECEIVED if self.negotiated(F_GUEST_CSUM) else ()
        self._set_offload(sum(bit for bit in received if self.negotiated(bit)))

    def reset_device(self) -> None:
        self._told_up = self._link_up
        self._set_offload(0)
        self.netdev.resume()  # what has come is for nobody

    def save_device(self, state: Message) -> None:
        assert isinstance(state, VirtioNetState)
        state.link_up = self._told_up

    def load_device(self, state: Message) -> None:
        assert isinstance(state, VirtioNetState)
        self._told_up = state.link_up
        self.runtime.loop.call_in("link", 0.0, self._tell_link)  # to a driver of that state

    def resume(self) -> None:
        super().resume()
        self.netdev.resume()

    def shutdown(self) -> None:
        self.netdev.close()

    def counters(self) -> dict[str, int]:
        return dict(self._counts)

    def serve(self, queue: Queue) -> bool:
        if queue.index == RECEIVE:
            self.netdev.resume()
            return False
        until = time.perf_counter_ns() + _TURN_NS
        while not self._held and self._transmit(queue):
            if time.perf_counter_ns() >= until:
                return True
        return False

    # The netdev's port.

    def receive(self, frames: Sequence[memoryview]) -> int:
        if self.paused:
            return 0
        queue = self.queues[RECEIVE]
        taken = 0
        if queue is not None:
            done: list[tuple[Chain, int]] = []
            while taken < len(frames) and self.live and self._put(queue, frames[taken], done):
                taken += 1
                if len(done) >= PUSHED:
                    queue.push_all(done)
                    done.clear()
            queue.push_all(done)
        if self.live and queue is not None:
            return taken
        self._counts["received_lost"] += len(frames) - taken  # a card that is not set up does not listen
        return len(frames)

    def writable(self) -> None:
        self.runtime.loop.cancel("stall")
        self._held = self._stalled = False
        self.ring(TRANSMIT)

    def link(self, up: bool) -> None:
        self._link_up = up
        self._tell_link()
        self.writable()  # or lost, but out of the queue

    # The rest is this class's own.

    def _set_offload(self, features: int) -> None:
        if self.netdev.offload:
            self.netdev.set_offload(features)

    def _tell_link(self) -> None:
        if self._told_up != self._link_up:
            self._told_up = self._link_up
            self.config_changed()

    def _transmit(self, queue: Queue) -> bool:
        """Send a batch; gives whether there may be more, and room for it."""
        chains: list[Chain] = []
        frames: list[Frame] = []
        total = 0
        while len(chains) < BATCH and total < BATCH_BYTES and (chain := queue.pop()) is not None:
            frame = self._frame(chain)
            chains.append(chain)
            frames.append(frame)
            total += sum(len(piece) for piece in frame)
        if not chains:
            return False
        good = [frame for frame in frames if frame]
        lost = len(frames) - len(good)
        if self._link_up and not self._stalled:
            sent = self.netdev.send(good)
        else:
            sent, lost = len(good), len(frames)
        done, left = 0, sent
        for frame in frames:
            if frame and not left:
                break
            left -= bool(frame)
            done += 1
        for chain in reversed(chains[done:]):
            queue.put_back(chain)
        queue.push_all([(chain, 0) for chain in chains[:done]])
        counts = self._counts
        counts["sent_lost"] += lost
        if lost < done:
            counts["frames_sent"] += done - lost
            counts["bytes_sent"] += sum(len(piece) for frame in frames[:done] for piece in frame)
            if self.netdev.offload:
                counts["gso_sent"] += sum(bool(frame) and frame[0][_GSO_TYPE] != GSO_NONE for frame in frames[:done])
        if sent < len(good):
            self._held = True
            self.runtime.loop.call_in("stall", STALL_SECONDS, self._stall)
            return False
        return True

    def _stall(self) -> None:
        self._held, self._stalled = False, True
        self.ring(TRANSMIT)

    def _frame(self, chain: Chain) -> Frame:
        """What goes to the netdev; empty if the driver's request is none to follow."""
        length = length_of(chain.readable) - self._header_bytes
        if chain.writable or not MIN_FRAME <= length <= MAX_FRAME:
            return ()
        head, body = cut(chain.readable, self._header_bytes)
        header = b"".join(self.memory.gather(head)).ljust(HEADER_BYTES, b"\0")
        if header != _PLAIN and not self._acceptable(header, length):
            return ()
        frame = self.memory.gather(body)
        # The copy of the header was looked at: the guest can change its own.
        return [memoryview(header), *frame] if self.netdev.offload else frame

    @property
    def _header_bytes(self) -> int:
        """5.1.6.1: a legacy driver's header has num_buffers only with MRG_RXBUF."""
        return HEADER_BYTES if self.negotiated(F_VERSION_1 | F_MRG_RXBUF) else _COUNT

    def _acceptable(self, header: bytes, length: int) -> bool:
        """Whether the offloads that a header asks for were negotiated, and point into the frame (5.1.6.2)."""
        flags, gso_type, _, gso_size, csum_start, csum_offset, _ = HEADER.unpack(header)
        if flags & NEEDS_CSUM and not (self.negotiated(F_CSUM) and csum_start + csum_offset + 2 <= length):
            return False
        if gso_type == GSO_NONE:
            return True
        feature = _GSO_FEATURES.get(gso_type, 0)
        return bool(self.negotiated(feature) and flags & NEEDS_CSUM and gso_size and csum_start <= _MAX_GSO_HEADERS)

    def _put(self, queue: Queue, frame: memoryview, done: list[tuple[Chain, int]]) -> bool:
        """Into the guest's buffers, which are then in `done`; gives False if it has none now."""
        offload = self.netdev.offload
        length = len(frame) - (HEADER_BYTES if offload else 0)
        size = length + self._header_bytes
        chains: list[Chain] = []
        room = 0
        while room < size:
            too_large = bool(chains) and not self.negotiated(F_MRG_RXBUF)
            chain = None if too_large else queue.pop()
            if chain is None:
                for each in reversed(chains):
                    queue.put_back(each)
                self._counts["received_lost"] += too_large
                return too_large
            chains.append(chain)
            room += length_of(chain.writable)
        header = (bytes(frame[:_COUNT]) if offload else _PLAIN[:_COUNT]) + struct.pack("<H", len(chains))
        content = [memoryview(header)[: self._header_bytes], frame[HEADER_BYTES:] if offload else frame]
        for chain in chains:
            place, _ = cut(chain.writable, size)  # what is behind it may be all of guest memory
            written = self.memory.scatter(place, lambda buffers: _move(content, buffers))
            done.append((chain, written))
            size -= written
        self._counts["frames_received"] += 1
        self._counts["bytes_received"] += length
        self._counts["gso_received"] += offload and frame[_GSO_TYPE] != GSO_NONE
        return True


_COUNTERS = (
    "frames_sent", "frames_received", "bytes_sent", "bytes_received", "sent_lost", "received_lost",
    "gso_sent", "gso_received",  # of the frames: those that are still to be cut into segments
)  # fmt: skip
_PLAIN = bytes(HEADER_BYTES)
_GSO_TYPE = 1  # where it is in the header
_COUNT = HEADER_BYTES - 2  # where num_buffers is
_RECEIVED = (F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6)


def _move(content: list[memoryview], buffers: list[memoryview]) -> int:
    """From the front of `content` into `buffers`; gives how much."""
    total = 0
    for buffer in buffers:
        at = 0
        while content and at < len(buffer):
            piece = content[0]
            count = min(len(piece), len(buffer) - at)
            buffer[at : at + count] = piece[:count]
            at += count
            if count == len(piece):
                content.pop(0)
            else:
                content[0] = piece[count:]
        total += at
    return total
