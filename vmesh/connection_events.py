"""What happens to the connections of a ZeroMQ socket, as another socket's messages (zmq_socket_monitor(3))."""

from __future__ import annotations

from itertools import count

import zmq

_numbers = count()


def place() -> str:
    """An address for the events of one socket. By pyzmq's own, a descriptor's number, a socket would now and then meet
    that of a former one, which is closed in a thread of ZeroMQ's a moment later: EADDRINUSE."""
    return f"inproc://events-{next(_numbers)}"


def follow(followed: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """A socket that gets these events, until `followed.disable_monitor`, or its end."""
    made: zmq.Socket[bytes] = followed.get_monitor_socket(events, place())
    return made
