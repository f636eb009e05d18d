"""Where streams may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmesh.errors import ConfigError
from vmesh.migration import snapshots, uri
from vmesh.migration.uri import Tcp, Unix


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("tcp:localhost:4444", Tcp("localhost", 4444)),
        ("tcp:127.0.0.1:0", Tcp("127.0.0.1", 0)),
        ("tcp:[::1]:65535", Tcp("::1", 65535)),
        ("tcp:127.0.0.2:1,ipv4=on", Tcp("127.0.0.2", 1)),
        ("tcp:example.org:4444,tls-creds=/keys", Tcp("example.org", 4444, Path("/keys"))),
        ("unix:/run/a.sock", Unix(Path("/run/a.sock"))),
        (
            '{"channel-type": "main", "addr": {"transport": "socket", "type": "inet", "host": "::1", "port": "7"}}',
            Tcp("::1", 7),
        ),
        ('{"addr": {"transport": "socket", "type": "unix", "path": "/x"}}', Unix(Path("/x"))),
    ],
)
def test_places(text: str, place: uri.Place) -> None:
    assert uri.parse(text) == place
    if not isinstance(place, Tcp) or place.keys is None:
        assert uri.parse(str(place)) == place


@pytest.mark.parametrize(
    "text", ["tcp:0:4444", "tcp::4444", "tcp:10.0.0.1:4444", "tcp:example.org:1", "tcp:[fe80::1]:1"]
)
def test_plain_tcp_beyond_this_host_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="tls-creds"):
        uri.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "tcp:", "tcp:localhost", "tcp:localhost:x", "tcp:localhost:65536", "rdma:a:1", "unix:", "exec:cat", "{"],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="migration address"):
        uri.parse(text)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="client-key"):
        uri.tls(tmp_path, server=False)


def test_snapshots_have_tags_or_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMESH_SNAPSHOTS", str(tmp_path))
    assert snapshots.path_of("one") == tmp_path / "one.vmsnap"
    assert snapshots.path_of("./one").is_absolute()
    for name in ("", "a b", "..", ".x", "a\n"):
        with pytest.raises(ConfigError):
            snapshots.path_of(name)


def test_what_is_no_snapshot_is_listed_with_its_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMESH_SNAPSHOTS", str(tmp_path))
    (tmp_path / "bad.vmsnap").write_bytes(b"nothing of the kind")
    (found,) = snapshots.found()
    assert found.tag == "bad"
    assert found.configuration is None
    assert "no migration stream" in found.problem
