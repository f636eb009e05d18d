"""One QMP client: greeting, negotiation, then its commands one after the other, and events (QEMU, qmp-spec)."""

from __future__ import annotations

import json

from vmesh_services.monitor.control import Control
from vmesh_services.monitor.events import Event
from vmesh_services.monitor.hmp import over_qmp as _registers_handlers  # noqa: F401
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import CommandNotFound, QmpError
from vmesh_services.monitor.qmp.handlers import execute
from vmesh_services.monitor.qmp.handlers.control import version_info
from vmesh_services.monitor.qmp.parser import Parser
from vmesh_services.monitor.stream_server import Stream


class Session:
    """Speaks QMP on a stream."""

    def __init__(self, control: Control, stream: Stream, *, pretty: bool = False) -> None:
        self._control = control
        self._stream = stream
        self._pretty = pretty
        self._parser = Parser()
        self._negotiated = False
        self._busy = False  # with a command that is not answered
        self._pumping = False
        self._unsubscribe = control.supervisor.events.subscribe(self._event)
        self._send({"QMP": {"version": version_info(), "capabilities": []}})

    def received(self, data: bytes) -> None:
        self._parser.push(data)
        self._pump()

    def drained(self) -> None:
        self._pump()

    def ended(self) -> None:
        self._unsubscribe()

    def _pump(self) -> None:
        """Answer what has come, unless an answer is due, or the client does not take those that it has."""
        if self._pumping:
            return
        self._pumping = True
        while not (self._busy or self._stream.crowded or self._stream.closed):
            found = self._parser.take()
            if found is None:
                break
            self._message(found[0])
        self._pumping = False
        self._stream.hold(self._busy)

    def _message(self, message: object) -> None:
        if isinstance(message, QmpError):
            self._answer(None, message)
            return
        identity = {"id": message["id"]} if isinstance(message, dict) and "id" in message else None
        try:
            name, arguments = _command(message)
            if name == "qmp_capabilities" and not self._negotiated:
                self._negotiate(arguments)
                self._answer(identity, {})
                return
            if not self._negotiated:
                raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
        except QmpError as error:
            self._answer(identity, error)
            return
        self._busy = True
        self._control.carry_out(
            lambda: execute(self._control, name, arguments),
            lambda got: self._stream.attempt(lambda: self._done(identity, got)),
        )

    def _negotiate(self, arguments: Json) -> None:
        enable = arguments.get("enable", [])
        if arguments.keys() - {"enable"} or not isinstance(enable, list):
            raise QmpError(f"Parameter '{min(arguments)[:80]}' is unexpected")
        if enable:
            raise QmpError(f"Capability {str(enable[0])[:80]} not available")
        self._negotiated = True

    def _done(self, identity: Json | None, answer: object) -> None:
        self._busy = False
        self._answer(identity, answer)
        self._pump()

    def _answer(self, identity: Json | None, answer: object) -> None:
        if isinstance(answer, QmpError):
            body: Json = {"error": {"class": answer.kind, "desc": str(answer)}}
        else:
            body = {"return": answer}
        self._send({**body, **(identity or {})})

    def _event(self, event: Event) -> None:
        if event.name == "MIGRATION" and not self._control.migration.capabilities.events:
            return  # as with QEMU
        if self._negotiated:
            seconds, microseconds = divmod(event.time_us, 1_000_000)
            stamp = {"seconds": seconds, "microseconds": microseconds}
            data = {"data": event.data} if event.data else {}
            self._send({"timestamp": stamp, "event": event.name, **data})

    def _send(self, message: Json) -> None:
        self._stream.write(json.dumps(message, indent=4 if self._pretty else None).encode() + b"\r\n")


def _command(message: object) -> tuple[str, Json]:
    """Name and arguments. Raises QmpError for what is no command."""
    if not isinstance(message, dict):
        raise QmpError("QMP input must be a JSON object")
    for name in message:
        if name not in ("execute", "arguments", "id"):
            raise QmpError(f"QMP input member '{name[:80]}' is unexpected")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    name, arguments = message["execute"], message.get("arguments", {})
    if not isinstance(name, str):
        raise QmpError("QMP input member 'execute' must be a string")
    if not isinstance(arguments, dict):
        raise QmpError("QMP input member 'arguments' must be an object")
    return name, arguments
