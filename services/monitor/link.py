"""The monitor's connection to one service: says Hello as ROLE_MONITOR and hands every answer to whoever asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import zmq
from google.protobuf.message import Message

from vmesh import wire
from vmesh.addresses import Addresses
from vmesh.errors import OutsideLimits, PeerError, PeerLost
from vmesh.loop import Loop
from vmesh.v1 import common_pb2
from vmesh.v1.packet_pb2 import Packet

Answered = Callable[[Packet], None]

_AT_ONCE = 64  # packets, before the loop looks at what else there is
# Of what nobody has asked for: more in so many seconds is no news any more.
FLOOD_PACKETS, FLOOD_SECONDS = 2000, 1.0


class Link:
    """Questions to one service. `unasked` gets the packets with id 0, its notices; `broke` is told of what no message
    may say, and of a flood: nothing more of it is heard until its second is over.

    When a connection over TCP is lost, the next one says Hello and asks again what is not answered: a service that gets
    a question twice does what it did.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: Addresses,
        service: str,
        unasked: Answered,
        broke: Callable[[str], None],
    ) -> None:
        hello = wire.hello(common_pb2.ROLE_MONITOR, "monitor", machine=addresses.machine.name)
        self._flood = f"flood {service}"
        self._window = 0.0  # when the present one began
        self._heard = 0  # in it, of what nobody has asked for
        self._peer = addresses.dial(context, service, hello, heed_loss=True)
        self.remote = self._peer.remote  # over TCP
        self.malformed = 0  # packets that did not parse
        self.reconnects = 0
        self._unasked = unasked
        self._broke = broke
        self._open: dict[int, tuple[Message, Answered]] = {}
        self._loop: Loop | None = None
        self._unwatch_loss: Callable[[], None] = lambda: None

    def watch(self, loop: Loop) -> None:
        """Have answers received in `loop`, until `close`."""
        self._loop = loop
        loop.watch(self._peer.socket, read=self.receive)
        if self._peer.losses is not None:
            loop.watch(self._peer.losses, read=self.receive)

    def hello(self, answered: Answered) -> None:
        """Begin the connection, now or when the service listens; `answered` gets Welcome or Refused."""
        self.ask(self._peer.said, answered)

    def ask(self, body: Message, answered: Answered) -> int:
        """Send a question; `answered` gets the packet that answers it, of whatever kind. Returns its id.

        Raises PeerError if the service does not read its socket any more.
        """
        number = self._peer.send(body)
        self._open[number] = body, answered
        return number

    def tell(self, body: Message) -> None:
        """Send what wants no answer. Raises PeerError if the service does not read its socket any more."""
        self._peer.send_packet(wire.make(body))

    def watch_loss(self, loop: Loop, lost: Callable[[], None]) -> None:
        """Call `lost` in `loop` when the connection, once it was there, is gone; until `close`.

        On one host that is the service's end. Over TCP it is not, and the link connects again by itself.
        """
        if self._peer.losses is not None:
            return
        watched = self._peer.watch_connection()

        def look() -> None:
            if wire.is_there(watched) is False:
                lost()

        def unwatch() -> None:
            loop.watch(watched)
            self._peer.socket.disable_monitor()

        loop.watch(watched, read=look)
        self._unwatch_loss = unwatch

    def forget(self, number: int) -> None:
        """The answer to this question is not waited for any more."""
        self._open.pop(number, None)

    def close(self) -> None:
        self._unwatch()
        self._unwatch_loss()
        self._unwatch_loss = lambda: None
        self._peer.abandon()

    def receive(self) -> None:
        """Hand packets that have come to whoever waits for them; what is no packet is counted."""
        if (now := time.monotonic()) - self._window > FLOOD_SECONDS:
            self._window, self._heard = now, 0
        for _ in range(_AT_ONCE):
            if self._heard > FLOOD_PACKETS:
                self._rest()
                return
            try:
                packet = self._peer.receive()
            except PeerLost:
                self._reconnect()
                return
            except OutsideLimits as error:
                self._heard += 1
                self._broke(str(error))
                continue
            except PeerError:
                self._heard += 1
                self.malformed += 1
                continue
            if packet is None:
                return
            if asked := self._open.pop(packet.id, None):
                asked[1](packet)
            else:
                self._heard += 1
                if packet.id == 0:
                    self._unasked(packet)

    def _rest(self) -> None:
        loop = self._loop
        if loop is not None:
            loop.watch(self._peer.socket)
            if self._peer.losses is not None:
                loop.watch(self._peer.losses)
            loop.call_in(self._flood, FLOOD_SECONDS, partial(self.watch, loop))
        self._broke(f"more than {FLOOD_PACKETS} packets within {FLOOD_SECONDS:g} s that nobody has asked for")

    def _reconnect(self) -> None:
        loop = self._loop
        self._unwatch()
        self._peer.redial()
        self.reconnects += 1
        if loop is not None:
            self.watch(loop)
        if not any(body is self._peer.said for body, _ in self._open.values()):
            self._peer.say_hello()
        for number, (body, _) in self._open.items():
            self._peer.send_packet(wire.make(body, number))

    def _unwatch(self) -> None:
        if self._loop is not None:
            self._loop.cancel(self._flood)
            self._loop.watch(self._peer.socket)
            if self._peer.losses is not None:
                self._loop.watch(self._peer.losses)
        self._loop = None
