"""The gdb server: where gdb connects, one at a time. Started by -gdb and -s, or while the machine runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmesh import endpoint
from vmesh.endpoint import Endpoint
from vmesh.v1 import common_pb2
from vmesh_services.monitor import operations
from vmesh_services.monitor.operations import Operation
from vmesh_services.monitor.stream_server import Stream, StreamServer
from vmesh_services.monitor.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from vmesh_services.monitor.gdb.session import Console, Session

DEFAULT = "tcp::1234"


class _Nobody:
    """The session of a client that comes while another is there."""

    def __init__(self, stream: Stream) -> None:
        stream.close()

    def received(self, data: bytes) -> None:
        pass

    def drained(self) -> None:
        pass

    def ended(self) -> None:
        pass


class GdbServer:
    """Not listening until `listen`. `console` carries out gdb's `monitor` commands."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.console: Console | None = None
        self._server: StreamServer | None = None
        self._session: Session | None = None
        supervisor.notices.hart_stopped = self._hart_stopped

    def listen(self, device: str = DEFAULT) -> str:
        """Listen where QEMU's -gdb would: `tcp::PORT`, `unix:PATH`; `none` ends it. What there was before ends.

        Gives a line that says so. Raises ConfigError.
        """
        if device == "none":
            self.close()
            return "Disabled gdbserver"
        where = replace(endpoint.parse(device), server=True, wait=False)
        self.close()
        self._server = StreamServer(self.supervisor.loop, where, self._connected)
        shown = Endpoint(where.path, where.host, self._server.port)
        return f"Waiting for gdb connection on device '{shown}'"

    def close(self) -> None:
        """Listen no more; a gdb that is there is let go of."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connected(self, stream: Stream) -> Session | _Nobody:
        if self._server is not None and len(self._server.streams) > 1:
            return _Nobody(stream)
        from vmesh_services.monitor.gdb.session import Session  # with the first client: the start need not wait for it

        self._session = Session(self, stream)
        return self._session

    def _hart_stopped(self, stop: common_pb2.HartStop) -> None:
        """All harts stand. The rest of the machine is paused too, or, if gdb has gone meanwhile, goes on."""
        wanted = self._session is not None and self._session.hart_stopped(stop)
        self.supervisor.submit(self._settle(goes_on=not wanted), exclusive=True)

    def _settle(self, *, goes_on: bool) -> Operation:
        yield from operations.pause(self.supervisor.roster)
        if goes_on:
            yield from self.supervisor.run_state.resume()
