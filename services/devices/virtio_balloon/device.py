"""The model of the balloon (virtio 1.2, 5.5).

The monitor says how many pages the guest is to do without. The driver gives so many to the device (it *inflates* the
balloon), and the host gets their memory back; or it takes some back (it *deflates* it). A page in the balloon reads as
0 or as before (5.5.6: its content is undefined), and whoever touches it has it: so deflating needs nothing to be done.

No statistics and no reporting of free pages: their features are not offered.
"""

from __future__ import annotations

import struct

from google.protobuf.message import Message

from vmesh import errors
from vmesh.guest_memory import Piece
from vmesh.service import Runtime
from vmesh.v1.common_pb2 import SEVERITY_INFO, BalloonChange
from vmesh.v1.devices_pb2 import VirtioBalloonState
from vmesh.virtio.balloon import COUNTER, PAGE, PROPERTY
from vmesh.virtio.device import Transport, VirtioDevice
from vmesh.virtio.queue import Chain, Queue, cut

INFLATE, DEFLATE = 0, 1
QUEUE_SIZE = 128
MOST = 16 << 10  # bytes of page numbers in one request; the device need not take what is behind them
MOST_PAGES = (1 << 32) - 1
TELL_SECONDS = 1.0  # from one BalloonChange to the next, of the host's time: the guest writes `actual` as it likes

_CONFIG = struct.Struct("<II")  # 5.5.4: num_pages, actual
_NUMBER = struct.Struct("<I")


class VirtioBalloon(VirtioDevice):
    """The balloon."""

    kind = "virtio-balloon"
    state = VirtioBalloonState
    device_id = 5

    def __init__(self, runtime: Runtime, transport: Transport, *, packed: bool = False) -> None:
        self._wanted = self._actual = 0  # pages
        self._told = 0  # `actual` as the monitor knows it
        self._silent = False  # it was told a moment ago
        self._given = 0  # bytes, in this life of the device
        super().__init__(runtime, transport, queue_sizes=(QUEUE_SIZE, QUEUE_SIZE), packed=packed)

    def request(self, queue: Queue, chain: Chain) -> int:
        if queue.index == INFLATE:
            self._given += self.memory.discard(self._ranges(chain))
        return 0

    def set_property(self, name: str, value: int) -> None:
        if name != PROPERTY or value > MOST_PAGES:
            raise errors.BadRequest("property", expected=f"{PROPERTY}, 0 to {MOST_PAGES}", got=f"{name}, {value}")
        self._wanted = value
        self.config_changed()

    def config(self) -> bytes:
        return _CONFIG.pack(self._wanted, self._actual)

    def write_config(self, offset: int, size: int, value: int) -> None:
        content = bytearray(self.config())
        content[offset : offset + size] = value.to_bytes(size, "little")
        _, self._actual = _CONFIG.unpack(content)  # num_pages is the device's to write
        self._tell()

    def reset_device(self) -> None:
        # The guest has all its pages again; how many it is to do without is nothing that it could forget.
        self._actual = 0
        self._tell()

    def save_device(self, state: Message) -> None:
        assert isinstance(state, VirtioBalloonState)
        state.wanted, state.actual = self._wanted, self._actual

    def load_device(self, state: Message) -> None:
        assert isinstance(state, VirtioBalloonState)
        self._wanted, self._actual = state.wanted, state.actual
        self._told = self._actual

    def recover(self) -> None:
        super().recover()
        self._told = -1  # the life before may have waited to tell of it
        self._tell()

    def counters(self) -> dict[str, int]:
        sizes = {"balloon_wanted": self._wanted, COUNTER: self._actual}
        return {**super().counters(), **sizes, "bytes_given_back": self._given}

    def _ranges(self, chain: Chain) -> list[Piece]:
        """The pages whose numbers a request has, in ranges; numbers of what is no RAM are passed over."""
        numbers = b"".join(self.memory.gather(cut(chain.readable, MOST)[0]))
        found: list[Piece] = []
        low, high = 0, -1
        for (number,) in sorted(set(_NUMBER.iter_unpack(numbers[: len(numbers) // 4 * 4]))):
            address = number * PAGE
            if not low <= address <= high - PAGE:
                low, high = self.memory.around(address, PAGE, write=True)
                if high < 0:
                    continue
            if found and low <= found[-1][0] and sum(found[-1]) == address:
                found[-1] = (found[-1][0], found[-1][1] + PAGE)
            else:
                found.append((address, PAGE))
        return found

    def _tell(self) -> None:
        """Tell the monitor of another `actual`, now or when it may be told again."""
        if self._silent or self._actual == self._told:
            return
        self._told, self._silent = self._actual, True
        text = f"the guest does without {self._actual} pages"
        self.runtime.notify(SEVERITY_INFO, text, BalloonChange(pages=self._actual))
        self.runtime.loop.call_in("tell", TELL_SECONDS, self._tell_again)

    def _tell_again(self) -> None:
        self._silent = False
        self._tell()
