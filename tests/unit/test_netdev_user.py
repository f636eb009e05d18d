"""The host's network by passt: ports that somebody has, in part or whole, are refused by name."""

from __future__ import annotations

import socket

import pytest

from vmesh.netdev import options, user


def asked(text: str) -> options.User:
    made = options.parse(f"user,hostfwd={text}")
    assert isinstance(made, options.User)
    return made


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("forwarded", ["", "127.0.0.1"])
def test_port_that_is_taken_in_part_is_refused(
    protocol: str, kind: socket.SocketKind, address: str, forwarded: str
) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        reason = user.taken(asked(f"{protocol}:{forwarded}:{port}-:7"))
        assert reason.startswith(f"hostfwd={protocol}:{forwarded}:{port}: cannot have ")
        assert "in use" in reason
    assert user.taken(asked(f"{protocol}:{forwarded}:{port}-:7")) == ""


def test_another_address_of_the_same_port_is_free() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        assert user.taken(asked(f"tcp:127.0.0.1:{other.getsockname()[1]}-:7")) == ""
