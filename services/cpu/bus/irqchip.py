"""The irqchip's connection to one device: takes its updates, and tells it guest time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from vmesh import errors, limits, wire
from vmesh.loop import Loop
from vmesh.time import Clock
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1.packet_pb2 import Packet

from .device import BusDevice, cause

#: A device that sends more in this time is not listened to for as long: the cpu has other things to do. What a packet
#: and a place cost, in values that a packet may have.
FLOOD_VALUES, FLOOD_SECONDS, _PACKET_VALUES, _PLACE_VALUES = 8000, 0.1, 4, 10
_AT_ONCE = 64
REDIAL_SECONDS = 0.01  # between the loss of a connection and the next: for who accepts and hangs up


class Irqchip:
    """The irqchip's connection to one device: takes its updates, tells it guest time, and finds it again after its
    death.

    Belongs to the service's thread. `revived` is called when the device was met anew, `complain` as for `Link`.
    """

    def __init__(
        self,
        peer: wire.Peer,
        device: BusDevice,
        clock: Clock,
        loop: Loop,
        revived: Callable[[], None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._peer = peer
        self._device = device
        self._clock = clock
        self._loop = loop
        self._revived = revived
        self._complain = complain
        self._window = 0.0  # when the present one began
        self._taken = 0  # packets and values in it
        self._lost = 0  # the life in which a connection was lost that is not there again
        self._met = False  # it has answered the Hello of this connection
        self._owes_time = False
        self._watch()

    def wait(self, timeout: float) -> None:
        """Takes the next update, if one comes within so many seconds."""
        self._take(timeout)

    def tell_time(self) -> None:
        """Guest time is another one than the device thinks, or has begun to pass, or stands still."""
        self._owes_time = True
        if self._met:
            told = messages.GuestTime(now_ns=self._clock.now_ns(), passes=self._clock.passes)
            with suppress(errors.PeerError):  # it does not read now; it is told when it says something again
                self._peer.send_packet(Packet(guest_time=told))
                self._owes_time = False

    def close(self) -> None:
        """The device leaves the board."""
        self._loop.cancel(f"redial {self._device.name}")
        self._unwatch()
        self._peer.abandon()

    def _greet(self) -> None:
        """There is a connection, perhaps a new one: say who we are."""
        lost = False
        while (there := wire.is_there(self._connection)) is not None:
            lost, self._met = not there, False
            if there:
                self._hello = self._peer.say_hello()
        if lost:
            self._redial()

    def _redial(self) -> None:
        """ZeroMQ does so by itself, but not once it has cut the connection, as it does with what is too long. What was
        not read of it comes again, as all does after a Hello."""
        self._lost = 0 if self._peer.remote else self._device.epoch
        self._unwatch()
        self._loop.call_in(f"redial {self._device.name}", REDIAL_SECONDS, self._watch_anew)

    def _watch_anew(self) -> None:
        self._peer.redial()
        self._watch()

    def _watch(self) -> None:
        self._met = False
        self._connection = self._peer.watch_connection()
        self._hello = self._peer.say_hello()  # the first connection may have been there before the watch
        self._loop.watch(self._connection, read=self._greet)
        self._loop.watch(self._peer.socket, read=self._take_some)

    def _unwatch(self) -> None:
        self._loop.cancel(f"flood {self._device.name}")
        self._loop.watch(self._connection)
        self._loop.watch(self._peer.socket)
        self._peer.socket.disable_monitor()
        self._connection.close(0)

    def _take_some(self) -> None:
        now = time.monotonic()
        if now - self._window > FLOOD_SECONDS:
            self._window, self._taken = now, 0
        for _ in range(_AT_ONCE):
            if not self._take(0.0):
                return
            if self._taken > FLOOD_VALUES:
                break
        if self._taken > FLOOD_VALUES:
            self._complain("floods updates", f"{self._taken} values and more within {FLOOD_SECONDS:g} s")
            self._loop.watch(self._peer.socket)
            self._loop.call_in(f"flood {self._device.name}", FLOOD_SECONDS, self._listen)

    def _listen(self) -> None:
        self._loop.watch(self._peer.socket, read=self._take_some)

    def _take(self, timeout: float) -> bool:
        try:
            packet = self._peer.receive(timeout)
        except errors.PeerError as error:
            self._complain(cause(error), str(error))
            self._taken += _PACKET_VALUES
            return True
        if packet is None:
            return False
        kind = packet.WhichOneof("body")
        self._taken += _PACKET_VALUES
        if kind == "device_update":
            update = packet.device_update
            self._taken += len(update.shadows) + len(update.lines) + len(update.messages)
            self._taken += _PLACE_VALUES * len(update.places)
            if update.epoch > self._device.epoch:  # before the Welcome of that life, which comes by the same pipe
                self._complain(limits.BROKEN, f"an update of epoch {update.epoch}; its own is {self._device.epoch}")
            else:
                self._device.apply(update)
        elif kind == "welcome":
            if self._lost == packet.welcome.epoch:  # on one host nobody else ends one in the midst of a life
                self._complain(limits.BROKEN, f"its connection was cut: expected at most {wire.MAX_DEVICE_BYTES} bytes")
            self._lost = 0
            self._device.begin(packet.welcome)
            if packet.id == self._hello:
                self._met = self._owes_time = True
                self._revived()
        elif kind == "refused" and packet.id == self._hello:
            self._complain("refused Hello", packet.refused.reason)
        if self._owes_time:
            self.tell_time()
        return True
