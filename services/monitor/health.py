"""gRPC's health service (grpc.health.v1), for checks that stay: `vmesh health --hold`, an orchestrator's probe.

The library's own way to serve those that watch without a thread each is not used: its `set` waits, with its lock in
hand, until the message is on its way, which the thread says that may wait for that lock, as a watcher has just left
(grpcio-health-checking 1.85). The supervisor's loop then stood still for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import grpc
from grpc_health.v1 import health, health_pb2

from services.monitor.streams import refuse

WATCHERS = 64  # at once; each has a thread of the gateway's
_SERVING = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Health(health.HealthServicer):
    """What `tell` was told last. `names` are well as long as there is somebody to ask."""

    def __init__(self, *names: str) -> None:
        super().__init__(experimental_non_blocking=False)
        self._free = threading.Semaphore(WATCHERS)
        self._known: dict[str, bool] = {}
        for name in names:
            self.set(name, health_pb2.HealthCheckResponse.SERVING)

    def Watch(  # type: ignore[override]  # the other way is the one that is not used
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """For each watcher the newest status, once it has taken the one before."""
        if not self._free.acquire(blocking=False):
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"{WATCHERS} watch already; end one")
        if not context.add_callback(self._free.release):
            self._free.release()  # it has gone already
        return super().Watch(request, context)

    def tell(self, services: Mapping[str, bool]) -> None:
        """Whether each service is well; those that are not named any more are not. Never waits for a watcher."""
        for name in services.keys() | self._known.keys():
            if self._known.get(name) != (well := services.get(name, False)):
                self._known[name] = well
                self.set(name, _SERVING[well])
