"""Who has connected over TCP and has not yet been let in: bounded, before any key is shown.

ZeroMQ accepts whoever comes, in a thread of its own, and gives up on one that says nothing only after seconds. Here its
events are followed: beyond `MOST` one of them is cut, so that a flood does not take the descriptors that the machine
needs. It is one at random: who holds a key and shows it at once has a chance however fast the others come.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections import Counter
from contextlib import ExitStack, suppress

import zmq

from vmesh import connection_events

MOST = 128
_CUT = "strangers cut"
EVENT = struct.Struct("=hi")  # what happened, and to which connection: zmq_socket_monitor(3)
_JOIN_SECONDS = 1.0  # for the thread, at the end; it does not hold up the process's
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_MONITOR_STOPPED


class Strangers(threading.Thread):
    """Follows a listening socket until that is closed; `counters` has those who had to go.

    A connection is a descriptor of ZeroMQ's, and the inode of its socket: the number alone may be another's by the time
    that its event is read.
    """

    def __init__(self, listener: zmq.Socket[bytes], port: int, counters: Counter[str]) -> None:
        super().__init__(name="strangers", daemon=True)
        self._counters = counters
        counters[_CUT] = 0  # it stays in place while others look at all of them
        self._port = port
        self._events: zmq.Socket[bytes] = listener.context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's thread would wait for room, and everybody for that
        where = connection_events.place()
        listener.monitor(where, _EVENTS)
        self._events.connect(where)
        self._lock = threading.Lock()
        self._waiting: dict[int, int] = {}  # the inode by descriptor; so are those let in
        self._known: dict[int, int] = {}
        self.start()

    def let_in(self, connection: int) -> None:
        """It has shown who it is. May be called before or after its event is read."""
        with suppress(OSError), self._lock:  # it is gone
            self._known[connection] = os.fstat(connection).st_ino
            if self._waiting.get(connection) == self._known[connection]:
                del self._waiting[connection]

    def run(self) -> None:
        with suppress(zmq.ZMQError):  # the context has ended
            while True:
                event, connection = EVENT.unpack(self._events.recv_multipart()[0])
                if event == zmq.EVENT_MONITOR_STOPPED:
                    break
                with self._lock:
                    if event == zmq.EVENT_ACCEPTED:
                        self._accepted(connection)
                    else:
                        self._waiting.pop(connection, None)
        self._events.close(0)

    def end(self) -> None:
        """After the listener was closed."""
        self.join(_JOIN_SECONDS)

    def _accepted(self, connection: int) -> None:
        try:
            inode = os.fstat(connection).st_ino
        except OSError:  # it is gone
            return
        if self._known.get(connection) == inode:
            return
        self._waiting.pop(connection, None)
        self._waiting[connection] = inode
        if len(self._waiting) > MOST:
            self._cut(*random.choice(list(self._waiting.items())))

    def _cut(self, connection: int, inode: int) -> None:
        """ZeroMQ finds it ended, and closes it."""
        del self._waiting[connection]
        with suppress(OSError), ExitStack() as stack:
            held = os.dup(connection)  # so that it cannot become another's
            stack.callback(os.close, held)
            if os.fstat(held).st_ino == inode:
                copy = stack.enter_context(socket.socket(fileno=os.dup(held)))
                if copy.getsockname()[1:2] == (self._port,):
                    copy.shutdown(socket.SHUT_RDWR)
                    self._counters[_CUT] += 1
