"""The model of the console device (virtio 1.2, 5.3) with one port: queue 0 is for what is typed, queue 1 for output.

**Nothing is lost and nothing comes twice when the device is killed**, if its chardev is a kept one. Requests are done
in two steps, with the slot written in between: `settle` takes the guest's output into the chardev's journal, and
chooses the buffer for what was typed; `commit`, when that is in the slot, gives the requests back. A successor compares
where the queues were in the slot with where they are: output that the journal has and that the guest was not told of is
given back without being taken again, and typed bytes that the guest was given are not given again.
"""

from __future__ import annotations

import struct

from google.protobuf.message import Message

from vmesh import chardev, errors
from vmesh.service import Runtime
from vmesh.v1.devices_pb2 import VirtioConsoleState
from vmesh.virtio.device import Transport, VirtioDevice
from vmesh.virtio.queue import Chain, Queue, cut, length_of

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE = 128
INPUT = 4096  # bytes that wait for the guest's buffers, before no more is taken from the chardev
MOST = 256 << 10  # bytes of output in one request
F_EMERG_WRITE = 1 << 2
_CONFIG = struct.Struct("<HHII")  # 5.3.4: cols, rows, max_nr_ports, emerg_wr
_EMERG_WRITE = 8  # offset of emerg_wr


class VirtioConsole(VirtioDevice):
    """The console; `specification` says what it is connected to (vmesh/chardev.py)."""

    kind = "virtio-console"
    state = VirtioConsoleState
    device_id = 3
    slot_bytes = chardev.JOURNAL_BYTES + INPUT + 1024

    def __init__(self, runtime: Runtime, transport: Transport, specification: str, *, packed: bool = False) -> None:
        super().__init__(
            runtime, transport, queue_sizes=(QUEUE_SIZE, QUEUE_SIZE), features=F_EMERG_WRITE, packed=packed
        )
        self.console = chardev.make(specification, runtime.loop, runtime.log, self._room, self._typed)
        self._input = b""
        self._buffer: Chain | None = None  # for the first `_given` bytes of it
        self._given = 0
        self._sent: list[Chain] = []  # requests whose bytes the chardev has
        self._held = False  # the chardev is full
        self._skip = False  # requests up to `_transmitted` are the journal's already
        self._transmitted = 0
        self._requests = 0

    def take_journal(self, journal: bytes) -> None:
        self.console.recover(journal)

    def start(self) -> None:
        self.console.start()
        self.console.wait(self.runtime.lifeline)

    def journal(self) -> bytes:
        return self.console.journal()

    def recover(self) -> None:
        before = self._state.queues[RECEIVE].position
        super().recover()
        receive, transmit = self.queues[RECEIVE], self.queues[TRANSMIT]
        if receive is not None and receive.position != before:
            self._input = self._input[self._given :]
        self._given = 0
        self._skip = transmit is not None and transmit.position != self._transmitted

    def settle(self) -> None:
        if self._held and not self.console.full:
            self._held = False
            self.ring(TRANSMIT)
        super().settle()

    def serve(self, queue: Queue) -> bool:
        if queue.index == RECEIVE:
            self._choose(queue)
        else:
            self._transmit(queue)
        return False

    def commit(self) -> None:
        self.console.commit()
        receive, transmit = self.queues[RECEIVE], self.queues[TRANSMIT]
        if not self._sent and self._buffer is None:
            return
        if transmit is not None:
            transmit.push_all([(chain, 0) for chain in self._sent])
        if receive is not None and self._buffer is not None:
            data = self._input[: self._given]
            self.memory.scatter(cut(self._buffer.writable, len(data))[0], lambda buffers: _fill(buffers, data))
            receive.push(self._buffer, len(data))
            self._input = self._input[self._given :]
            if self._input:
                self.ring(RECEIVE)
            self.console.input_changed()
        self._forget()
        self.runtime.loop.call_in("console", 0.0, _nothing)  # the end of that turn interrupts the guest

    def config(self) -> bytes:
        return _CONFIG.pack(0, 0, 1, 0)

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == _EMERG_WRITE:
            self.console.write(bytes((value & 0xFF,)))

    def driver_ready(self) -> None:
        self.ring(RECEIVE)

    def reset_device(self) -> None:
        self._input, self._skip, self._held = b"", False, False
        self._forget()
        self.console.input_changed()

    def save_device(self, state: Message) -> None:
        assert isinstance(state, VirtioConsoleState)
        transmit = self.queues[TRANSMIT]
        if transmit is not None:
            self._transmitted = self._transmitted if self._skip else transmit.ahead
        state.transmitted = self._transmitted
        state.input = self._input
        state.given = self._given

    def save(self) -> Message:
        state = super().save()
        assert isinstance(state, VirtioConsoleState)
        state.output.data = self.console.pending()
        state.output.SetInParent()
        return state

    def slot_state(self) -> Message:
        return super().save()  # the journal has what is under way

    def check_device(self, state: Message) -> None:
        assert isinstance(state, VirtioConsoleState)
        if len(state.input) > INPUT or state.given > len(state.input) or state.transmitted > 0xFFFF:
            raise errors.BadState(
                "virtio-console",
                expected=f"at most {INPUT} bytes of input, of which some are given",
                got=f"{len(state.input)} and {state.given}",
            )
        chardev.check_pending("virtio-console", state.output.data)

    def load_device(self, state: Message) -> None:
        assert isinstance(state, VirtioConsoleState)
        if state.HasField("output"):  # not in a slot
            self.console.restore(state.output.data)
        self._forget()
        self._input, self._given, self._transmitted = state.input, state.given, state.transmitted
        self._skip = False

    def pause(self) -> None:
        super().pause()
        self.console.input_changed()

    def resume(self) -> None:
        super().resume()
        self.console.release()
        self.console.input_changed()

    def hand_over(self) -> None:
        super().hand_over()
        self.console.hand_over()

    def shutdown(self) -> None:
        self.console.finish()

    def counters(self) -> dict[str, int]:
        return {
            "requests": self._requests,
            "console_bytes_lost": self.console.lost,
            "console_bytes_waiting": self.console.waiting,
        }

    def _choose(self, queue: Queue) -> None:
        """A buffer of the guest for what was typed."""
        if not self._input or self._buffer is not None or (chain := queue.pop()) is None:
            return
        self._requests += 1
        self._buffer, self._given = chain, min(len(self._input), length_of(chain.writable))

    def _transmit(self, queue: Queue) -> None:
        """The guest's output into the chardev, as much as that takes."""
        while True:
            if self._skip and queue.ahead == self._transmitted:
                self._skip = False
            if self.console.full and not self._skip:
                self._held = True
                return
            if (chain := queue.pop()) is None:
                return
            self._requests += 1
            if self._skip:
                queue.push(chain, 0)
                continue
            if length_of(chain.readable) > MOST:
                self.needs_reset(f"expected at most {MOST} bytes of output at once, got {length_of(chain.readable)}")
                return
            self._sent.append(chain)
            self.console.write(b"".join(self.memory.gather(chain.readable)))

    def _forget(self) -> None:
        self._sent.clear()
        self._buffer, self._given = None, 0

    def _room(self) -> int:
        return 0 if self.paused else INPUT - len(self._input)

    def _typed(self, data: bytes) -> None:
        self._input += data
        self.ring(RECEIVE)


def _fill(buffers: list[memoryview], data: bytes) -> int:
    at = 0
    for buffer in buffers:
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)
    return at


def _nothing() -> None:
    pass
