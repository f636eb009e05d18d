"""What bench net reads from a guest, and the host's side of its program."""

from __future__ import annotations

import socket

import pytest

from bench import net
from bench.harness import BenchError


def test_what_a_boot_printed() -> None:
    output = b"net begin\r\nnet t 1048576 500000000\r\nnet g 2097152 500000000\r\nnet r 10 2000000\r\nnet end\r\n"
    found = net.read(output)
    assert found == {"t": (1 << 20, 0.5), "g": (2 << 20, 0.5), "r": (10, 0.002)}
    rows = list(net._rows(net.PATHS[0], [found], [found]))
    assert [row.ours.median for row in rows] == [2.0, 4.0, 200.0]


def test_a_job_that_is_missing() -> None:
    with pytest.raises(BenchError, match="expected t, g and r"):
        net.read(b"net t 1 1\nnet g 1 1\n")


def test_the_hosts_side() -> None:
    with net._server() as port:
        for what, count, sent, answer in (
            (b"t", 300_000, bytes(300_000), 1),
            (b"g", 300_000, b"", 300_000),
            (b"r", 1, b"x", 1),
        ):
            with socket.create_connection(("127.0.0.1", port), 20) as guest, guest.makefile("rb") as file:
                guest.sendall(net._REQUEST.pack(what, count) + sent)
                assert len(file.read()) == answer
