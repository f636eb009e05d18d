"""A machine's counters for Prometheus (docs/observability.md lists the names). Imported when somebody asks for them."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from vmesh import descriptors
from vmesh.v1 import cpu_pb2, gateway_pb2

_STATES = ("starting", "running", "paused", "ending")
_CONNECTIONS = 8  # at once
_PATIENCE = 5.0  # seconds that a client may say nothing, or not read
_NO_NAME = re.compile(r"[^a-zA-Z0-9_]")


class _Machine(Collector):
    """What `status` gives, each time it is asked."""

    def __init__(self, status: Callable[[], gateway_pb2.MachineStatus]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        machine = [status.name]
        up = GaugeMetricFamily(
            "vmesh_machine_state", "1 for the state that the machine is in", None, ["machine", "state"]
        )
        for state in _STATES:
            up.add_metric(
                [*machine, state], float(gateway_pb2.MachineState.Name(status.state) == f"MACHINE_{state.upper()}")
            )
        yield up
        yield _gauge("vmesh_uptime_seconds", "Since the monitor began", machine, status.uptime_seconds)
        yield _counter("vmesh_guest_seconds", "Guest time since power-on", machine, status.guest_seconds)
        yield from _harts(status)
        for field in cpu_pb2.BusCounters.DESCRIPTOR.fields:
            text = f"Bus: {field.name.replace('_', ' ')}, over all harts"
            yield _counter(f"vmesh_bus_{field.name}", text, machine, getattr(status.bus, field.name))
        yield from _services(status)


def exposition(status: gateway_pb2.MachineStatus) -> str:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Machine(lambda: status))
    return generate_latest(registry).decode()


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, *args: object) -> None:
        """Nobody reads it."""


class _Server(ThreadingWSGIServer):
    """The library's has a thread for everybody who connects, for as long as they like: these are bounded."""

    free: threading.Semaphore

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread for it
            self.free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who has gone, or says nothing, is not worth a word."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def serve(host: str, port: int, status: Callable[[], gateway_pb2.MachineStatus], services: int) -> WSGIServer:
    """Answer scrapes at `http://host:port/metrics`, in threads of their own, for a machine of so many services.

    Raises OSError.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Machine(status))

    class Server(_Server):
        address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

    server = make_server(host, port, make_wsgi_app(registry), Server, _Handler)
    server.free = threading.Semaphore(descriptors.for_clients(services, _CONNECTIONS))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _gauge(name: str, text: str, labels: list[str], value: float) -> Metric:
    family = GaugeMetricFamily(name, text, None, ["machine"])
    family.add_metric(labels, value)
    return family


def _counter(name: str, text: str, labels: list[str], value: float) -> Metric:
    family = CounterMetricFamily(name, text, None, ["machine"])
    family.add_metric(labels, value)
    return family


def _harts(status: gateway_pb2.MachineStatus) -> Iterator[Metric]:
    retired = CounterMetricFamily("vmesh_hart_instructions", "Instructions retired", None, ["machine", "hart"])
    doing = GaugeMetricFamily("vmesh_hart_state", "1 for what the hart does", None, ["machine", "hart", "state"])
    for hart in status.harts:
        retired.add_metric([status.name, str(hart.hart)], hart.retired)
        for name, number in cpu_pb2.HartState.items():
            if number:
                labels = [status.name, str(hart.hart), name.removeprefix("HART_").lower()]
                doing.add_metric(labels, float(hart.state == number))
    yield retired
    yield doing


def _services(status: gateway_pb2.MachineStatus) -> Iterator[Metric]:
    labels = ["machine", "service", "kind"]
    epoch = GaugeMetricFamily("vmesh_service_epoch", "The count of the service's lives", None, labels)
    running = GaugeMetricFamily("vmesh_service_up", "Whether the service runs or is paused", None, labels)
    complaints = CounterMetricFamily("vmesh_service_complaints", "What others hold against it", None, [*labels, "what"])
    counts = CounterMetricFamily("vmesh_service_events", "What the service counts itself", None, [*labels, "event"])
    for service in status.services:
        name = [status.name, service.name, service.kind]
        epoch.add_metric(name, service.epoch)
        running.add_metric(name, float(service.state in ("running", "paused")))
        for what, count in service.complaints.items():
            complaints.add_metric([*name, what], count)
        for event, count in service.counters.items():
            counts.add_metric([*name, _NO_NAME.sub("_", event)], count)
    yield from (epoch, running, complaints, counts)
    labels = ["machine", "process"]
    seconds = CounterMetricFamily("vmesh_process_cpu_seconds", "CPU time, user and system", None, labels)
    resident = GaugeMetricFamily("vmesh_process_resident_bytes", "Resident memory, shared in full", None, labels)
    proportional = GaugeMetricFamily("vmesh_process_proportional_bytes", "The same, shared in proportion", None, labels)
    threads = GaugeMetricFamily("vmesh_process_threads", "Threads", None, labels)
    processes = [(service.name, service.usage) for service in status.services]
    processes += [(other.name, other.usage) for other in status.others]
    for process, used in processes:
        name = [status.name, process]
        seconds.add_metric(name, used.cpu_seconds)
        resident.add_metric(name, used.rss_bytes)
        proportional.add_metric(name, used.pss_bytes)
        threads.add_metric(name, used.threads)
    yield from (seconds, resident, proportional, threads)
