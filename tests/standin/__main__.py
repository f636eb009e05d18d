"""A service process that only knows the lifecycle, for tests of the monitor.

It stands on pyzmq and the generated code, nothing of vmesh. A ns16550a has a console that greets and echoes. Lines in
the file `<machine>/<name>.do` make it misbehave or act as a guest would: exit N, hang, say TEXT (on stderr), write TEXT
(10,000 times, to the console), poweroff N, reset, fault TEXT, lost TEXT, garbage (to the monitor), slow SECONDS (before
it answers Drain). What it was asked for goes to `<machine>/../<name>.asked`, a line each.
"""

import argparse
import os
import select
import socket
import sys
import time
from pathlib import Path

import zmq

from vmesh.v1 import common_pb2, cpu_pb2, lifecycle_pb2
from vmesh.v1.packet_pb2 import Packet


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--epoch", type=int, default=1)
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--monitor", type=int)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--paused", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    arguments = parser.parse_args(argv)
    return StandIn(arguments).run()


class StandIn:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.phase = lifecycle_pb2.SERVICE_PAUSED if arguments.paused else lifecycle_pb2.SERVICE_RUNNING
        if arguments.never_ready:
            self.phase = lifecycle_pb2.SERVICE_STARTING
        self.socket = zmq.Context().socket(zmq.ROUTER)
        self.socket.bind(f"ipc://{arguments.machine}/{arguments.name}.sock")
        self.monitors: set[bytes] = set()
        self.slow = 0.0
        self.ends = False
        self.console: socket.socket | None = None
        self.user: socket.socket | None = None
        if arguments.kind == "ns16550a":
            self.console = socket.socket(socket.AF_UNIX)
            path = arguments.machine / f"{arguments.name}.console"
            path.unlink(missing_ok=True)
            self.console.bind(str(path))
            self.console.listen()
        self.asked = arguments.machine.parent / f"{arguments.name}.asked"
        self.orders = arguments.machine / f"{arguments.name}.do"

    def run(self) -> int:
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        while not self.ends:
            if self.arguments.lifeline is not None and select.select([self.arguments.lifeline], [], [], 0)[0]:
                return 0
            if poller.poll(20):
                self.answer(*self.socket.recv_multipart())
            self.serve_console()
            if self.orders.exists():
                orders = self.orders.read_text().splitlines()
                self.orders.unlink()
                for order in orders:
                    self.follow(*order.split(" ", 1))
        return 0

    def serve_console(self) -> None:
        """Greet whoever connects, then echo, marking the end of what came."""
        if self.console is not None and self.user is None and select.select([self.console], [], [], 0)[0]:
            self.user, _ = self.console.accept()
            self.user.sendall(b"guest is up\n")
        if self.user is not None and select.select([self.user], [], [], 0)[0]:
            data = self.user.recv(4096)
            self.user.sendall(b"<" + data + b">")

    def follow(self, verb: str, rest: str = "") -> None:
        match verb:
            case "exit":
                os._exit(int(rest))
            case "hang":
                time.sleep(3600)
            case "say":
                print(rest, file=sys.stderr, flush=True)
            case "slow":
                self.slow = float(rest)
            case "poweroff":
                self.notice(common_pb2.Notice(power_off=common_pb2.PowerOff(exit_code=int(rest))))
            case "reset":
                self.notice(common_pb2.Notice(reset_request=common_pb2.ResetRequest()))
            case "fault":
                self.notice(common_pb2.Notice(fault=common_pb2.Fault(service=self.arguments.name, reason=rest)))
            case "lost":
                self.notice(
                    common_pb2.Notice(fault=common_pb2.Fault(service=self.arguments.name, reason=rest, lost=True))
                )
            case "write":
                while self.user is None:  # the launcher is on its way
                    time.sleep(0.01)
                    self.serve_console()
                self.user.sendall(rest.encode() * 10_000)
            case "garbage":
                for peer in self.monitors:
                    self.socket.send_multipart([peer, b"\xff" * 100])

    def notice(self, notice: common_pb2.Notice) -> None:
        notice.severity, notice.service = common_pb2.SEVERITY_INFO, self.arguments.name
        for peer in self.monitors:
            self.socket.send_multipart([peer, Packet(notice=notice).SerializeToString()])

    def answer(self, peer: bytes, data: bytes) -> None:
        packet = Packet.FromString(data)
        body = packet.WhichOneof("body") or ""
        if body not in ("health", "processes"):
            with self.asked.open("a") as file:
                file.write(f"{body}\n")
        answer = Packet(id=packet.id)
        match body:
            case "hello":
                self.monitors.add(peer)
                answer.welcome.CopyFrom(
                    common_pb2.Welcome(
                        major=1, name=self.arguments.name, kind=self.arguments.kind, epoch=self.arguments.epoch
                    )
                )
            case "health":
                answer.health_report.CopyFrom(
                    lifecycle_pb2.HealthReport(
                        phase=self.phase,
                        name=self.arguments.name,
                        kind=self.arguments.kind,
                        epoch=self.arguments.epoch,
                        pid=os.getpid(),
                    )
                )
            case "drain":
                time.sleep(self.slow)
                answer.drained.SetInParent()
            case "cpu_status_request":
                answer.cpu_status.harts.append(cpu_pb2.HartStatus(hart=0, pc=0x1000, retired=42))
            case "hart_registers_request" if packet.hart_registers_request.hart:
                answer.error.CopyFrom(common_pb2.Error(code=common_pb2.ERROR_BAD_REQUEST, text="there is 1 hart"))
            case "hart_registers_request":
                answer.hart_registers.registers.append(cpu_pb2.RegisterValue(name="pc", value=0x1000))
            case _:
                if body == "pause":
                    self.phase = lifecycle_pb2.SERVICE_PAUSED
                elif body == "resume":
                    self.phase = lifecycle_pb2.SERVICE_RUNNING
                self.ends = body == "shutdown"
                answer.done.SetInParent()
        self.socket.send_multipart([peer, answer.SerializeToString()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
