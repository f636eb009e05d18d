"""The connections that come to a destination: what each of them is, and which belong together.

Nobody promises in which order they come, or that nobody else's are among them. So each is read in a thread of its own,
as far as it says what it is, and kept until that one is wanted. Before that it is a stranger's: there are so many of
them at most, for so long, and the listener waits for none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vmesh import errors
from vmesh.log import Log
from vmesh.migration.records import VERSION, Reader, StreamError, Writer, parse, unexpected
from vmesh.migration.uri import Place
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.connection import Connection, Listener
from vmesh_services.migration.returned import LinkLost, say

HEAD_SECONDS = 10.0  # for a connection to say what it is, its handshake included
MOST_STRANGERS = 32  # at a time that have not said what they are: beyond that, the oldest gives way
KEPT_SECONDS = 60.0  # for somebody to ask for it
MOST_KEPT = 8  # that nobody has asked for yet: beyond that, the oldest is closed
SESSION_BYTES = 16
_NO_DESCRIPTOR_SECONDS = 0.1  # until the next try, when no connection can be accepted


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """A connection whose header was read, and of a main one the configuration."""

    kind: messages.ChannelKind.ValueType
    session: bytes
    link: int
    connection: Connection
    reader: Reader
    writer: Writer


class Channels:
    """`check` raises BadState for the configuration of a machine that cannot go on here: its source is told, and the
    next one may come. With a `session` only connections of that one are taken."""

    def __init__(
        self, log: Log, check: Callable[[messages.Configuration], None], session: bytes = b"", over: str = ""
    ) -> None:
        self._log = log
        self._check = check
        self._session = session
        self._over = over  # why nothing comes any more
        self._changed = threading.Condition()
        self._strangers: dict[Connection, None] = {}  # in the order in which they came
        self._kept: list[Channel] = []
        self._listener: Listener | None = None

    @property
    def session(self) -> bytes:
        """Which connections are taken: those of the first main one; empty before it."""
        return self._session

    def listens_at(self, place: Place) -> bool:
        """Whether what comes there is taken already."""
        return self._listener is not None and self._listener.is_at(place)

    def listen(self, listener: Listener) -> None:
        """Take what comes to `listener` from now on, instead of to the one before."""
        former, self._listener = self._listener, listener
        if former is not None:
            former.close()
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def take(
        self, kind: messages.ChannelKind.ValueType, link: int | None = None, seconds: float | None = None
    ) -> Channel:
        """The connection of this kind, and of this link if one is named, as soon as it is there; the newest one, since
        whoever comes again has given up the former. Raises LinkLost, also after so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while True:
                if self._over:
                    raise LinkLost(self._over)
                found = [each for each in self._kept if each.kind == kind and link in (None, each.link)]
                if found:
                    break
                if link is not None and any(each.kind == messages.CHANNEL_RECOVER for each in self._kept):
                    raise LinkLost("its source has come again")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise LinkLost(f"no connection {messages.ChannelKind.Name(kind)} within {seconds:g} s")
                self._changed.wait(left)
            *former, taken = found
            for each in former:
                self._drop(each, "its source has come again")
            self._kept.remove(taken)
            if not self._session:
                self._session = taken.session
                for each in [each for each in self._kept if each.session != taken.session]:
                    self._drop(each, "a connection of another session")
            return taken

    def close(self, why: str) -> None:
        """Listen no more; who waits here, now or later, hears `why`."""
        with self._changed:
            self._over = self._over or why
            if self._listener is not None:
                self._listener.close()
            for connection in [*self._strangers, *(each.connection for each in self._kept)]:
                connection.cut()
            self._kept.clear()
            self._changed.notify_all()

    def _accept(self, listener: Listener) -> None:
        """In a thread of its own: every connection, as it comes."""
        while not listener.closed:
            try:
                connection = listener.accept()
            except ConnectionError:  # it gave up meanwhile
                continue
            except OSError:
                time.sleep(_NO_DESCRIPTOR_SECONDS)
                continue
            with self._changed:
                if len(self._strangers) >= MOST_STRANGERS:
                    oldest = next(iter(self._strangers))
                    del self._strangers[oldest]
                    oldest.cut()
                self._strangers[connection] = None
            threading.Thread(target=self._meet, args=(connection,), name="head", daemon=True).start()

    def _meet(self, connection: Connection) -> None:
        """In a thread of its own, for a bounded time: what a connection is."""
        watchdog = threading.Timer(HEAD_SECONDS, connection.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.handshake()
            self._take_head(connection, Reader(connection), Writer(connection))
        except (errors.VmeshError, OSError) as error:
            self._log.warning("no migration", why=error)
            connection.close()
        finally:
            watchdog.cancel()
            with self._changed:
                self._strangers.pop(connection, None)

    def _take_head(self, connection: Connection, reader: Reader, writer: Writer) -> None:
        reader.magic()
        record = reader.next()
        if record.kind != messages.RECORD_HEADER:
            raise unexpected(record, "a header first")
        header = parse(messages.StreamHeader, record)
        if header.version != VERSION:
            raise StreamError("version of the stream", expected=str(VERSION), got=str(header.version))
        if len(header.session) != SESSION_BYTES:
            raise StreamError("session", expected=f"{SESSION_BYTES} bytes", got=str(len(header.session)))
        try:
            if header.channel == messages.CHANNEL_MAIN:
                record = reader.next()
                if record.kind != messages.RECORD_CONFIGURATION:
                    raise unexpected(record, "the configuration behind the header")
                self._check(parse(messages.Configuration, record))
            self._keep(Channel(header.channel, header.session, header.link, connection, reader, writer))
        except errors.VmeshError as error:
            if header.channel != messages.CHANNEL_PAGES:  # which has no return path
                say(writer, failed=messages.Failed(reason=str(error)))
            raise

    def _keep(self, channel: Channel) -> None:
        with self._changed:
            if self._over:
                raise LinkLost(self._over)
            if self._session and channel.kind == messages.CHANNEL_MAIN:
                raise LinkLost("another machine comes in here already")
            if self._session not in (b"", channel.session):
                raise LinkLost("a connection of another session")
            if len(self._kept) >= MOST_KEPT:
                self._drop(self._kept[0], "nobody has asked for it, and others have come")
            self._kept.append(channel)
            self._changed.notify_all()
        expiry = threading.Timer(KEPT_SECONDS, self._expire, (channel,))
        expiry.daemon = True
        expiry.start()

    def _expire(self, channel: Channel) -> None:
        with self._changed:
            if channel in self._kept:
                self._drop(channel, f"nobody has asked for it for {KEPT_SECONDS:g} s")

    def _drop(self, channel: Channel, why: str) -> None:
        self._log.warning("no migration", why=why)
        self._kept.remove(channel)
        with suppress(OSError):
            channel.connection.close()
