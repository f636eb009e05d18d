"""Where consoles, monitors and gdb are reached: QEMU's words, any path, and what is at the path before and after."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmesh import endpoint, listening
from vmesh.endpoint import Endpoint, Listener
from vmesh.errors import ConfigError

PATHS = st.text(alphabet=st.sampled_from(",=: é[a"), min_size=1, max_size=8).map(lambda name: Path("/", name))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/a,server=on,wait=off", Endpoint(path=Path("/a"))),
        ("unix:/a,server,nowait", Endpoint(path=Path("/a"))),
        ("unix:/a,server", Endpoint(path=Path("/a"), wait=True)),
        ("unix:/a", Endpoint(path=Path("/a"), server=False)),
        ("unix:/a,,server,server,nowait", Endpoint(path=Path("/a,server"))),
        ("tcp::4444,server=on,wait=off,nodelay=on", Endpoint(host="127.0.0.1", port=4444)),
        ("tcp:[::1]:1,server", Endpoint(host="::1", port=1, wait=True)),
    ],
)
def test_endpoint_in_qemus_words(text: str, expected: Endpoint) -> None:
    assert endpoint.parse(text) == expected


@given(PATHS, st.booleans(), st.booleans())
def test_text_of_an_endpoint_is_read_back(path: Path, server: bool, wait: bool) -> None:
    made = Endpoint(path, server=server, wait=server and wait)
    assert endpoint.parse(made.text) == made


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_text_of_a_port_is_read_back(host: str) -> None:
    made = Endpoint(host=host, port=1234, wait=True)
    assert endpoint.parse(made.text) == made


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp:1.2.3.4:1", "tcp:0.0.0.0:1", "tcp:host:1", "tcp:127.0.0.1:70000", "unix:/a,server=x"]
)
def test_endpoint_that_is_none_or_is_for_others_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        endpoint.parse(text)


def test_socket_is_its_owners_replaces_a_stale_one_and_is_removed(tmp_path: Path) -> None:
    where = Endpoint(tmp_path / "a,b")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(where.address)

    listener = Listener(where)
    assert tmp_path.joinpath("a,b").stat().st_mode & 0o077 == 0
    peer = endpoint.connect(where)
    listener.accept().close()
    peer.close()
    listener.close()

    assert list(tmp_path.iterdir()) == []


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    with pytest.raises(ConfigError, match="Address already in use"):
        Listener(Endpoint(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "precious"


def test_socket_at_which_somebody_listens_is_left_to_them(tmp_path: Path) -> None:
    """It would be unreachable, and nobody would say so. They hear nothing of who asks."""
    first = Listener(Endpoint(tmp_path / "s"))
    with pytest.raises(ConfigError, match=f"cannot listen on {tmp_path / 's'}: Address already in use"):
        Listener(Endpoint(tmp_path / "s"))
    with pytest.raises(BlockingIOError):
        first.accept()
    endpoint.connect(Endpoint(tmp_path / "s")).close()
    first.close()
    assert list(tmp_path.iterdir()) == []


def test_machine_that_comes_in_takes_the_socket_of_the_one_that_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its flags are the same, where both are on one host."""
    first = Listener(Endpoint(tmp_path / "s"))
    monkeypatch.setattr(listening, "_succeeds", False)  # and so again afterwards
    listening.succeed()
    second = Listener(Endpoint(tmp_path / "s"))
    first.close()
    endpoint.connect(Endpoint(tmp_path / "s")).close()
    assert second.accept()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_socket_that_another_one_has_taken_over_is_left_to_it(tmp_path: Path) -> None:
    first = Listener(Endpoint(tmp_path / "s"))
    (tmp_path / "s").unlink()
    second = Listener(Endpoint(tmp_path / "s"))
    first.close()
    endpoint.connect(Endpoint(tmp_path / "s")).close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_connect_does_not_wait_for_one_that_accepts_nobody(tmp_path: Path) -> None:
    listener = Listener(Endpoint(tmp_path / "s"))
    with ExitStack() as crowd:

        def come() -> None:
            for _ in range(1000):
                crowd.enter_context(endpoint.connect(listener.where))

        with pytest.raises(ConfigError, match="cannot connect to"):
            come()
    listener.close()
