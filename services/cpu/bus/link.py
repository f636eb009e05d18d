"""One hart's connection to one device: what it has sent, what is done, and how it goes on with the next life."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import zmq

from vmesh import errors, limits, wire
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1 import common_pb2 as common
from vmesh.v1.packet_pb2 import Packet

from .device import BusDevice, cause

LARGEST_WINDOW = 1 << 16
#: How long a hart waits before it looks whether the machine is ending, and says Hello again, in seconds.
PATIENCE = 0.1
_OTHER_LIFE_SECONDS = 0.005


@dataclass(slots=True)
class Counters:
    """What one hart did on the bus beyond what native code counts."""

    batches: int = 0
    round_trips: int = 0
    faults: int = 0
    rejoins: int = 0
    timeouts: int = 0


class Ending(Exception):
    """The machine ends while a hart waits for a device."""


class NoAnswer(Exception):
    """The device has given no sign of life for so long that the hart goes on without its answer."""


@dataclass(slots=True)
class _Entry:
    """An access that is not acknowledged; `waits` tells that the device takes it only as the last of a batch."""

    access: messages.Access
    waits: bool


class Link:
    """One hart's connection to one device. Belongs to the hart's thread.

    Accesses are kept until the device acknowledges them. When the device has another epoch, or does not know this
    connection any more, the link says Hello again, learns from Welcome what was done, and sends the rest. `dial` makes
    a connection; a device that says nothing for `limit` seconds while something waits for it raises NoAnswer, and
    PeerTimeout if it is on another host: that says more of the network than of the device, and the guest is not to see
    it. While the machine `halts` nobody's patience ends. `complain` is told of what a device should not do. While the
    hart is `wanted_still`, a device that holds accesses back, because its output is full, is told to take them.
    """

    def __init__(
        self,
        dial: Callable[[], wire.Peer],
        device: BusDevice,
        counters: Counters,
        ending: threading.Event,
        limit: float,
        complain: Callable[[str, str], None],
        halts: Callable[[], bool] = lambda: False,
        wanted_still: Callable[[], bool] = lambda: False,
    ) -> None:
        self._dial = dial
        self.device = self._device = device
        self._counters = counters
        self._ending = ending
        self._limit = limit
        self._complain = complain
        self._halts = halts
        self._wanted_still = wanted_still
        self._held = False  # the device has said that it holds back what it was sent
        self._epoch = 0
        self._done = 0  # sequence number of the last access acknowledged
        self._window = 1
        self._kept: deque[_Entry] = deque()  # from sequence number _done + 1 on
        self._sent = 0  # so many of them were sent on this connection
        self._awaited = False  # the last one kept is waited for, so its answer is needed
        self._time_ns = 0
        self._packet_id = 0
        self._heard = time.monotonic()  # the last sign of life, or when waiting began
        self._silent = False  # given up: until the next sign of life nobody waits
        self._retry = 0.0
        self._joined = False
        self._peer = dial()
        self._hello = self._peer.say_hello()

    @property
    def next_sequence(self) -> int:
        """The number of the next access."""
        return self._done + 1 + len(self._kept)

    def connect(self) -> None:
        """Waits until the device has answered the Hello. Raises NoAnswer, Ending."""
        self._wait(lambda: self._joined)

    def post(self, accesses: Sequence[messages.Access], time_ns: int) -> None:
        """Sends writes that need no answer, at guest time ``time_ns``; waits only while the device gives no credits.

        Raises NoAnswer; what has no room then is lost.
        """
        self._time_ns = time_ns
        while self._step(wait=False):
            pass
        if self._silent and len(self._kept) + len(accesses) > self._window:
            raise NoAnswer
        self._keep(accesses)
        self._send()
        self._wait(lambda: self._sent == len(self._kept))

    def access(self, posted: Sequence[messages.Access], access: messages.Access, time_ns: int) -> messages.BatchDone:
        """Makes an access that waits, after the posted ones before it; gives the device's answer. Raises NoAnswer."""
        if self._silent:
            self.post(posted, time_ns)
            posted = ()
            if self._silent:
                raise NoAnswer
        self._time_ns = time_ns
        self._counters.round_trips += 1
        self._keep(posted)
        self._kept.append(_Entry(access, waits=True))
        self._awaited = True
        self._send()
        try:
            answer = None
            since = time.monotonic()
            while self._kept:
                answer = self._step(wait=True, since=since) or answer
            assert answer is not None
            return answer
        finally:
            self._awaited = False

    def look(self) -> None:
        """Says Hello to a device that has come back meanwhile: what was lost with its former life is sent again."""
        if self._peer.remote:  # or lost its connection, or has answered the Hello on the next one
            while self._step(wait=False):
                pass
        if self._epoch != self._device.epoch:
            self._wait(lambda: self._joined and self._epoch == self._device.epoch)

    def settle(self) -> None:
        """Waits until the device has handled everything. Raises NoAnswer."""
        self._wait(lambda: not self._kept)

    def close(self) -> None:
        self._peer.close()

    def _keep(self, accesses: Sequence[messages.Access]) -> None:
        self._kept.extend(_Entry(access, waits=False) for access in accesses)

    def _wait(self, met: Callable[[], bool]) -> None:
        since = time.monotonic()
        while not met():
            if self._silent and not self._heard_again():
                raise NoAnswer
            self._step(wait=True, since=since)

    def _heard_again(self) -> bool:
        """Whether a silent device has given a sign of life meanwhile."""
        while self._step(wait=False):
            pass
        return not self._silent

    def _send(self) -> None:
        """Sends what the device gives credits for, in batches of which only the last access waits."""
        while self._joined and self._epoch == self._device.epoch and self._sent < len(self._kept):
            room = self._window - self._sent
            if room <= 0:
                return
            accesses = []
            for entry in islice(self._kept, self._sent, self._sent + room):
                accesses.append(entry.access)
                if entry.waits:
                    break
            first = self._done + 1 + self._sent
            batch = messages.AccessBatch(epoch=self._epoch, sequence=first, time_ns=self._time_ns, accesses=accesses)
            self._packet_id += 1
            try:
                self._peer.send_packet(Packet(id=self._packet_id, access_batch=batch))
            except errors.PeerError:  # it does not read its socket: begin anew when it does
                self._leave()
                return
            self._sent += len(accesses)
            self._counters.batches += 1

    def _step(self, wait: bool, since: float = 0.0) -> messages.BatchDone | None:
        """Takes what comes next, if anything; gives a BatchDone that has come, applied."""
        if self._joined and self._epoch != self._device.epoch:
            self._leave()
            self._retry = 0.0
        if not self._joined and self._hello == 0 and time.monotonic() >= self._retry:
            self._rejoin()
        try:
            # between two connections nothing comes: say Hello again as soon as that is due
            between = not self._joined and not self._hello
            patience = min(PATIENCE, max(0.0, self._retry - time.monotonic())) if between else PATIENCE
            packet = self._peer.receive(patience if wait else 0.0)
        except errors.PeerLost:
            self._leave()
            return None
        except errors.PeerError as error:
            self._complain(cause(error), str(error))
            return None
        if packet is None:
            if self._ending.is_set():
                raise Ending
            self._press()
            if wait:
                self._nothing_came(since)
            return None
        kind = packet.WhichOneof("body")
        if kind == "welcome" and packet.id == self._hello:
            self._welcomed(packet.welcome)
        elif kind == "batch_done" and self._joined:
            return self._acknowledged(packet.batch_done)
        elif kind in ("error", "refused"):
            self._refused(packet)
        return None

    def _nothing_came(self, since: float) -> None:
        now = time.monotonic()
        if self._halts():
            self._heard = now
        if now - max(self._heard, since) > self._limit:
            self._silent = True
            self._counters.timeouts += 1
            self._complain("no answer", f"no sign of life for {self._limit:g} s while a hart waits")
            if self._peer.remote:
                raise errors.PeerTimeout(
                    f"no sign of life from {self.device.name} at {self._peer.address} for {self._limit:g} s"
                )
            raise NoAnswer
        if not self._joined and self._hello and not self._peer.remote:
            self._hello = self._peer.say_hello()  # it may have died with the last one unread

    def _acknowledged(self, done: messages.BatchDone) -> messages.BatchDone | None:
        count = done.done - self._done
        if done.epoch != self._epoch or not 0 <= count <= self._sent:
            expected = f"epoch {self._epoch}, {self._done} to {self._done + self._sent}"
            self._complain("nonsense", f"acknowledged epoch {done.epoch}, {done.done}; expected {expected}")
            return None
        self._heard, self._silent = time.monotonic(), False
        for _ in range(count):
            self._kept.popleft()
        self._done = done.done
        self._sent -= count
        self._window = max(1, min(done.credits, LARGEST_WINDOW))
        self._held = done.held
        self._press()
        if done.HasField("update") and done.update.epoch != done.epoch:
            self._complain(limits.BROKEN, f"an update of epoch {done.update.epoch} in an answer of {done.epoch}")
        elif done.HasField("update"):
            self._device.apply(done.update)
        self._send()
        return done

    def _press(self) -> None:
        """Has a device that holds back what it was sent take it, if the hart is to stand still."""
        if self._held and self._joined and self._wanted_still():
            self._held = False
            try:
                self._peer.send_packet(Packet(take_accesses=messages.TakeAccesses()))
            except errors.PeerError:
                self._leave()

    def _refused(self, packet: Packet) -> None:
        """The device does not know this connection, or not what came on it: begin anew, not too often."""
        if packet.WhichOneof("body") == "error":
            error = errors.from_message(packet.error)
            if not isinstance(error, errors.StaleEpoch):
                self._complain("refused an access", str(error))
        elif packet.id == self._hello:
            self._complain("refused Hello", packet.refused.reason)
        self._leave()

    def _leave(self) -> None:
        self._joined = False
        self._hello = 0

    def _rejoin(self) -> None:
        self._retry = time.monotonic() + PATIENCE
        try:
            peer = self._dial()
        except zmq.ZMQError:  # no descriptors: tried again
            return
        self._peer.abandon()
        self._peer = peer
        self._hello = self._peer.say_hello()
        self._counters.rejoins += 1

    def _welcomed(self, welcome: common.Welcome) -> None:
        if welcome.epoch != self._device.epoch:  # a life that has ended, or the irqchip has yet to meet the next one
            self._leave()
            self._retry = time.monotonic() + _OTHER_LIFE_SECONDS
            return
        if welcome.epoch != self._epoch:
            self._epoch = welcome.epoch
            self._heard, self._silent = time.monotonic(), False
            self._retry = 0.0
        self._window = max(1, min(welcome.window, LARGEST_WINDOW))
        count = welcome.done - self._done
        if 0 <= count <= len(self._kept):
            # The last one, if it is waited for, is sent again all the same: the device remembers its answer.
            count = min(count, len(self._kept) - 1) if self._awaited and self._kept else count
            for _ in range(count):
                self._kept.popleft()
            self._done += count
        else:  # a successor that does not go on where this one ended: it begins with what is not answered
            self._done = welcome.done
        self._sent = 0
        self._held = False
        self._hello = 0
        self._joined = True
        self._send()
