"""The connections of a migration, in every order in which they can come, and with strangers among them."""

from __future__ import annotations

import itertools
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.keys import make_keys
from tests.models.hostile_streams import Side
from tests.waiting import LIMIT, wait_for
from vmesh import errors
from vmesh.log import Log
from vmesh.migration import uri
from vmesh.migration.records import VERSION, Reader, Writer, parse
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration import channels as channels_module
from vmesh_services.migration.channels import MOST_STRANGERS, Channel, Channels
from vmesh_services.migration.connection import Connection, Listener, connect
from vmesh_services.migration.incoming import Incoming, _Link
from vmesh_services.migration.postcopy import Push, StreamLink
from vmesh_services.migration.returned import LinkLost, ReturnPath
from vmesh_services.migration.status import Status

MAIN, PAGES, RECOVER = messages.CHANNEL_MAIN, messages.CHANNEL_PAGES, messages.CHANNEL_RECOVER
OURS, OTHERS = b"o" * 16, b"x" * 16
Came = tuple[messages.ChannelKind.ValueType, bytes, int]


class Counted(Channels):
    """Counts those that were met: kept, or refused."""

    met = 0

    @property
    def strangers(self) -> int:
        return len(self._strangers)

    def _meet(self, connection: Connection) -> None:
        super()._meet(connection)
        self.met += 1


class Destination:
    """Listens, and takes machines of the board `virt`."""

    def __init__(self, folder: Path, place: str = "", session: bytes = b"") -> None:
        self.channels = Counted(Log("test", folder / "log"), _only_virt, session)
        listener = Listener(uri.parse(place or f"unix:{folder / 'there'}"))
        self.place = listener.place
        self.channels.listen(listener)
        self._open: list[Connection] = []

    def come(self, came: Came, board: str = "virt") -> Connection:
        """A connection that says what it is."""
        connection = connect(self.place)
        self._open.append(connection)
        kind, session, link = came
        writer = Writer(connection)
        writer.magic()
        header = messages.StreamHeader(version=VERSION, channel=kind, session=session, link=link)
        writer.message(messages.RECORD_HEADER, header)
        if kind == MAIN:
            writer.message(messages.RECORD_CONFIGURATION, messages.Configuration(board=board))
        return connection

    def come_in_order(self, order: Sequence[Came]) -> None:
        """Each after the one before was met."""
        for each in order:
            before = self.channels.met
            self.come(each)
            self.wait_met(before + 1)

    def wait_met(self, count: int) -> None:
        wait_for(lambda: self.channels.met >= count, f"{count} connections to be met")

    def stranger(self) -> socket.socket:
        """One that says nothing."""
        assert isinstance(self.place, uri.Tcp | uri.Unix)
        if isinstance(self.place, uri.Tcp):
            return socket.create_connection((self.place.host, self.place.port), LIMIT)
        made = socket.socket(socket.AF_UNIX)
        made.connect(str(self.place.path))
        made.settimeout(LIMIT)
        return made

    def close(self) -> None:
        self.channels.close("the end")
        for each in self._open:
            each.close()


def _only_virt(configuration: messages.Configuration) -> None:
    if configuration.board != "virt":
        raise errors.BadState("board", expected="virt", got=configuration.board)


def test_a_listener_leaves_its_path_to_the_next_one(tmp_path: Path) -> None:
    place = uri.Unix(tmp_path / "s")
    former = Listener(place)
    assert former.is_at(place)
    with pytest.raises(errors.ConfigError, match="Address already in use"):
        Listener(place)
    place.path.unlink()
    assert not former.is_at(place)
    later = Listener(place)
    former.close()
    connect(place).close()
    later.close()
    assert list(tmp_path.iterdir()) == []


Make = Callable[..., Destination]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Destination] = []

    def destination(place: str = "", session: bytes = b"") -> Destination:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Destination(folder, place, session))
        return made[-1]

    yield destination
    for each in made:
        each.close()


def told(channel: Channel) -> Came:
    return channel.kind, channel.session, channel.link


def later(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_two_connections_of_a_machine_come_in_any_order_among_others(make: Make) -> None:
    main, pages = (MAIN, OURS, 7), (PAGES, OURS, 7)
    for order in itertools.permutations([main, pages, (PAGES, OTHERS, 7), (PAGES, OURS, 6)]):
        destination = make()
        destination.come_in_order(order)
        assert told(destination.channels.take(MAIN, seconds=LIMIT)) == main, order
        assert destination.channels.session == OURS
        assert told(destination.channels.take(PAGES, 7, LIMIT)) == pages, order


def test_they_come_in_any_order_to_who_waits_for_them(make: Make) -> None:
    main, pages = (MAIN, OURS, 7), (PAGES, OURS, 7)
    for order in itertools.permutations([main, pages, (PAGES, OTHERS, 7)]):
        destination = make()
        found: list[Came] = []

        def take(destination: Destination = destination, found: list[Came] = found) -> None:
            found.append(told(destination.channels.take(MAIN, seconds=LIMIT)))
            found.append(told(destination.channels.take(PAGES, 7, LIMIT)))

        taking = later(take)
        destination.come_in_order(order)
        taking.join(LIMIT)
        assert found == [main, pages], order


def test_a_source_that_comes_again_does_so_in_any_order_and_what_it_gave_up_is_passed_over(make: Make) -> None:
    recover, pages = (RECOVER, OURS, 9), (PAGES, OURS, 9)
    for order in itertools.permutations([recover, pages, (PAGES, OURS, 7), (PAGES, OURS, 8)]):
        destination = make(session=OURS)
        destination.come_in_order([(RECOVER, OURS, 8), *order])
        taken = destination.channels.take(RECOVER, seconds=LIMIT)
        assert told(taken) == recover, order
        assert told(destination.channels.take(PAGES, taken.link, LIMIT)) == pages, order


def test_who_waits_for_pages_of_a_source_that_comes_again_waits_no_longer(make: Make) -> None:
    destination = make(session=OURS)
    destination.come((RECOVER, OURS, 8))
    assert destination.channels.take(RECOVER, seconds=LIMIT).link == 8
    lost: list[LinkLost] = []

    def take() -> None:
        try:
            destination.channels.take(PAGES, 8)
        except LinkLost as error:
            lost.append(error)

    taking = later(take)
    destination.come((RECOVER, OURS, 9))
    taking.join(LIMIT)
    assert "come again" in str(lost[0])
    assert destination.channels.take(RECOVER, seconds=LIMIT).link == 9


def test_machine_that_does_not_fit_is_told_so_and_the_next_one_comes_in(make: Make) -> None:
    destination = make()
    wrong = destination.come((MAIN, OTHERS, 1), board="other")
    answer = parse(messages.ReturnMessage, Reader(wrong).next())
    assert "expected virt, got other" in answer.failed.reason
    destination.come((MAIN, OURS, 2))
    assert told(destination.channels.take(MAIN, seconds=LIMIT)) == (MAIN, OURS, 2)
    late = destination.come((MAIN, OTHERS, 3))
    assert "another machine comes in" in parse(messages.ReturnMessage, Reader(late).next()).failed.reason


def test_strangers_are_bounded_in_count_and_time_and_nobody_waits_for_them(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ["", "tcp:127.0.0.1:0"]
    keys = ""
    if openssl := shutil.which("openssl"):
        keys = f",tls-creds={make_keys(tmp_path / 'keys', openssl)}"
        places.append(f"tcp:127.0.0.1:0{keys}")
    for place in places:
        destination = make(place)
        silent = [destination.stranger() for _ in range(3 * MOST_STRANGERS)]
        assert silent[0].recv(1) == b"", "the first gave way"
        destination.come((MAIN, OURS, 1))
        destination.channels.take(MAIN, seconds=LIMIT)
        assert destination.channels.strangers <= MOST_STRANGERS
        for each in silent:
            each.close()
        destination.wait_met(len(silent) + 1)
    monkeypatch.setattr(channels_module, "HEAD_SECONDS", 0.01)
    with make().stranger() as silent_one:
        assert silent_one.recv(1) == b"", "it had its time"


def test_so_many_are_kept_at_most_and_all_are_let_go_at_the_end(make: Make) -> None:
    destination = make()
    kept = [destination.come((PAGES, bytes([number]) * 16, 1)) for number in range(4)]
    destination.wait_met(4)
    destination.channels.close("cancelled")
    for each in kept:
        with pytest.raises(EOFError):
            each.read_into(memoryview(bytearray(1)))
    with pytest.raises(LinkLost, match="cancelled"):
        destination.channels.take(MAIN)
    crowded = make()
    crowded.come_in_order([(PAGES, bytes([number]) * 16, 1) for number in range(3 * channels_module.MOST_KEPT)])
    crowded.come_in_order([(MAIN, OURS, 1)])
    assert told(crowded.channels.take(MAIN, seconds=LIMIT)) == (MAIN, OURS, 1)


def _pair() -> tuple[Connection, Connection]:
    here, there = socket.socketpair()
    return Connection(here), Connection(there)


def test_who_hears_late_of_a_broken_link_does_not_cut_the_one_that_has_come_since(tmp_path: Path) -> None:
    side = Side(tmp_path / "side")
    side.ram.segments[0].present[:5] = 0  # pages are still to come

    def channel(connection: Connection, kind: messages.ChannelKind.ValueType) -> Channel:
        return Channel(kind, OURS, 1, connection, Reader(connection), Writer(connection))

    job = Incoming(side.context(), f"unix:{tmp_path / 'there'}")
    (main, _), (pages, other), (new, new_end) = _pair(), _pair(), _pair()
    old = _Link(channel(main, MAIN), channel(pages, PAGES))
    job._link = _Link(channel(new, RECOVER))
    other.close()
    job._take_requested(old, channel(pages, PAGES))
    assert "requested pages broke" in old.broken
    assert not job._link.broken
    new_end.write([b"x"])  # it is open
    new.read_into(memoryview(bytearray(1)))
    job.close()


def test_a_source_is_awaited_again_at_the_same_path(tmp_path: Path) -> None:
    """Success was said, and nobody could connect: the listener before had taken the new one's socket along."""
    place = uri.Unix(tmp_path / "there")
    job = Incoming(Side(tmp_path / "side").context(), str(place))
    job.status.state = messages.MIGRATION_POSTCOPY_PAUSED
    job.recover(str(place))
    connect(place).close()
    place.path.unlink()  # by whom ever: now there has to be a new one
    job.recover(str(place))
    connect(place).close()
    assert job.status.uri == str(place)
    job.close()
    assert not place.path.exists()


@pytest.mark.parametrize("left", [0, 5])
def test_connection_for_requested_pages_may_end_before_the_word_that_all_have_come(tmp_path: Path, left: int) -> None:
    """The destination says `closing` on one connection and closes both: either may be heard of first."""
    side = Side(tmp_path / "side")
    push = Push(side.context(), Status(), OURS)
    push.set_left([range(left), []])  # type: ignore[list-item]
    (main, main_end), (pages, pages_end) = _pair(), _pair()
    link = StreamLink(1, main, Writer(main), ReturnPath(main, lambda received: None), pages)
    pages_end.close()
    push._serve(link, pages, Writer(pages))
    assert bool(link.broken) == bool(left)
    if not left:
        Writer(main_end).message(messages.RECORD_RETURN, messages.ReturnMessage(closing=messages.Closing()))
        link.returned.wait("closing", LIMIT)
