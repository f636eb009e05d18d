"""The monitor's connection to one service: says Hello as ROLE_MONITOR and hands every answer to whoever asked."""

from __future__ import annotations

from collections.abc import Callable

import zmq
from google.protobuf.message import Message

from vmesh import wire
from vmesh.errors import PeerError
from vmesh.machine import Machine
from vmesh.v1 import common_pb2
from vmesh.v1.packet_pb2 import Packet

Answered = Callable[[Packet], None]


class Link:
    """Questions to one service. `unasked` gets the packets with id 0: its notices."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], machine: Machine, service: str, unasked: Answered
    ) -> None:
        self._hello = wire.hello(common_pb2.ROLE_MONITOR, "monitor", machine=machine.name)
        self._peer = wire.Peer(context, wire.endpoint(machine.socket(service)), self._hello)
        self.socket = self._peer.socket
        self.malformed = 0  # packets that did not parse
        self._unasked = unasked
        self._open: dict[int, Answered] = {}

    def hello(self, answered: Answered) -> None:
        """Begin the connection, now or when the service listens; `answered` gets Welcome or Refused."""
        self.ask(self._hello, answered)

    def ask(self, body: Message, answered: Answered) -> int:
        """Send a question; `answered` gets the packet that answers it, of whatever kind. Returns its id.

        Raises PeerError if the service does not read its socket any more.
        """
        number = self._peer.send(body)
        self._open[number] = answered
        return number

    def forget(self, number: int) -> None:
        """The answer to this question is not waited for any more."""
        self._open.pop(number, None)

    def close(self) -> None:
        self._peer.abandon()

    def receive(self) -> None:
        """Hand every packet that has come to whoever waits for it; what is no packet is counted."""
        while True:
            try:
                packet = self._peer.receive()
            except PeerError:
                self.malformed += 1
                continue
            if packet is None:
                return
            if packet.id == 0:
                self._unasked(packet)
            elif answered := self._open.pop(packet.id, None):
                answered(packet)
