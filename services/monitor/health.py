"""gRPC's health service (grpc.health.v1), for checks that stay: `vmesh health --hold`, an orchestrator's probe.

The library's own (grpcio-health-checking 1.85) is not used. Where it serves those that watch without a thread each, its
`set` waits, with its lock in hand, until the message is on its way, which the thread says that may wait for that lock,
as a watcher has just left: the supervisor's loop then stood still for ever. And it keeps each name that was ever
watched, known or not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vmesh_services.monitor.streams import Places, refuse

WATCHERS = 64  # at once; each has a thread of the gateway's
_SERVING = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
    None: health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
}


class Health(health_pb2_grpc.HealthServicer):
    """What `tell` was told last. `names` are well as long as there is somebody to ask."""

    def __init__(self, *names: str) -> None:
        self._places = Places(WATCHERS, f"{WATCHERS} watch already")
        self._changed = threading.Condition()
        self._well = dict.fromkeys(names, True)
        self._told: set[str] = set()

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        well = self._well.get(request.service)
        if well is None:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"there is no service '{request.service[:80]}'")
        return health_pb2.HealthCheckResponse(status=_SERVING[well])

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """For each watcher the newest status, once it has taken the one before."""
        gone = threading.Event()

        def leave() -> None:
            with self._changed:
                gone.set()
                self._changed.notify_all()

        with self._places.one(context):
            if not context.add_callback(leave):
                leave()  # it has gone already
            said: int | None = None
            while True:
                with self._changed:
                    while not gone.is_set() and self._status(request.service) == said:
                        self._changed.wait()
                    said = self._status(request.service)
                if gone.is_set():
                    return
                yield health_pb2.HealthCheckResponse(status=said)

    def _status(self, name: str) -> int:
        return _SERVING[self._well.get(name)]

    def tell(self, services: Mapping[str, bool]) -> None:
        """Whether each service is well; those that are not named any more are not. Never waits for a watcher."""
        with self._changed:
            self._told |= services.keys()
            self._well |= dict.fromkeys(self._told, False) | dict(services)
            self._changed.notify_all()
