"""The return path at the source: what the destination says, and waiting for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from vmesh import errors
from vmesh.migration import records
from vmesh.v1 import migration_pb2 as messages
from vmesh_services.migration.connection import Connection

_LAST_WORDS = 0.5  # seconds that a reason may come behind a broken connection


class Refused(errors.VmeshError):
    """The destination gave up, and said why."""


class LinkLost(errors.VmeshError):
    """The connection broke."""


class ReturnPath:
    """Reads one connection in a thread of its own. `took` gets what nobody waits for: ReceivedPages."""

    def __init__(self, connection: Connection, took: Callable[[messages.ReceivedPages], None]) -> None:
        self._reader = records.Reader(connection)
        self._took = took
        self._changed = threading.Condition()
        self._said: set[str] = set()
        self._refusal = ""
        self._over = ""
        self._thread = threading.Thread(target=self._read, name="return path", daemon=True)
        self._thread.start()

    def wait(self, what: str, seconds: float, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Until the destination has said `what` (a field of ReturnMessage).

        Raises Refused, LinkLost, also after so many seconds or when it is `cancelled`.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while what not in self._said:
                self._check()
                if cancelled():
                    raise LinkLost("cancelled")
                if (left := deadline - time.monotonic()) <= 0:
                    raise LinkLost("the destination does not answer", expected=f"{what} within {seconds:g} s")
                self._changed.wait(min(left, 0.1))

    def said_last(self, what: str) -> bool:
        """Whether the destination has said it on a connection that was cut or broke: what came before that counts."""
        self._thread.join(_LAST_WORDS)
        return what in self._said

    def check(self) -> None:
        """Raises Refused or LinkLost if it is over."""
        with self._changed:
            self._check()

    def why(self, error: OSError) -> errors.VmeshError:
        """The better error for a connection that broke while something was sent."""
        self._thread.join(_LAST_WORDS)
        try:
            self.check()
        except errors.VmeshError as better:
            return better
        return LinkLost(f"the connection to the destination broke: {error.strerror or error}")

    def _check(self) -> None:
        if self._refusal:
            raise Refused(f"the destination refused: {self._refusal}")
        if self._over:
            raise LinkLost(f"the connection to the destination broke: {self._over}")

    def _read(self) -> None:
        over = "it was closed"
        try:
            while True:
                record = self._reader.next()
                if record.kind != messages.RECORD_RETURN:
                    raise records.unexpected(record, "a message of the return path")
                self._take(records.parse(messages.ReturnMessage, record))
        except errors.VmeshError as error:
            if self._reader.bytes:
                over = str(error)
        except OSError as error:
            over = error.strerror or str(error)
        with self._changed:
            self._over = over
            self._changed.notify_all()

    def _take(self, message: messages.ReturnMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "received":
            self._took(message.received)
        with self._changed:
            if kind == "failed":
                self._refusal = " ".join(message.failed.reason[:1000].split()) or "it gives no reason"
            elif kind is not None and (kind != "received" or message.received.last):
                self._said.add(kind)
            self._changed.notify_all()


def say(writer: records.Writer, **message: object) -> None:
    """At the destination: one message of the return path, by its field; a link that is broken hears nothing."""
    with suppress(OSError):
        writer.message(messages.RECORD_RETURN, messages.ReturnMessage(**message))  # type: ignore[arg-type]
