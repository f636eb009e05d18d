"""The monitor of services that somebody else starts: it takes them as they come, and however often they are lost."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import zmq

from tests.waiting import wait_for
from vmesh import wire
from vmesh.addresses import Addresses
from vmesh.limits import MOST_LIVES
from vmesh.log import Log
from vmesh.machine import MachineDirectory
from vmesh.spawn import ServiceCommand
from vmesh.v1 import gateway_pb2
from vmesh.v1.common_pb2 import Welcome
from vmesh_services.monitor.output import Output
from vmesh_services.monitor.supervisor.settings import Settings
from vmesh_services.monitor.supervisor.supervised import Supervised
from vmesh_services.monitor.supervisor.supervisor import Supervisor

KINDS = {"memory": "memory", "cpu": "cpu", "rtc": "goldfish-rtc"}


class World:
    """An attached supervisor, whose services are this process's."""

    def __init__(self, folder: Path) -> None:
        self.machine, self.log = MachineDirectory(folder), Log("monitor", folder / "log")
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.served: dict[str, wire.Server] = {}
        commands = [ServiceCommand(name, kind, f"vmesh_services.{kind}", ()) for name, kind in KINDS.items()]
        self.supervisor = Supervisor(
            self.machine, commands, Settings(), None, self.log, Output(self.log, None), Addresses(self.machine)
        )
        self.supervisor.attach()

    def service(self, name: str) -> Supervised:
        return self.supervisor.services[name]

    def serve(self, name: str, epoch: int) -> None:
        """The next life of a service; a former one ends."""
        if former := self.served.pop(name, None):
            self.end(former)
        welcome = Welcome(kind=KINDS[name], major=wire.MAJOR, epoch=epoch)
        self.served[name] = wire.Server(
            self.context, self.machine.socket(name), name, self.log, lambda client: welcome, lambda client: None
        )

    def end(self, server: wire.Server) -> None:
        server.socket.close(0)

    def lose(self, name: str) -> None:
        """A life that ends before it has said anything: the connection to it is there, and is lost."""
        lost = self.service(name).link
        path = self.machine.socket(name)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)

            def is_lost() -> bool:
                with suppress(BlockingIOError):  # the connection before this one may come, too
                    listener.accept()[0].close()
                return self.service(name).link is not lost

            self.wait(is_lost, f"the loss of {name}")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        def step() -> bool:
            self.supervisor.loop.call_in("step", 0.01, lambda: None)
            self.supervisor.loop._step()
            for server in self.served.values():
                server.receive()
            return bool(condition())

        wait_for(step, what)

    def close(self) -> None:
        for service in self.supervisor.services.values():
            service.link.close()
        cast(Any, self.supervisor.lives)._context.destroy(0)
        self.context.destroy(0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("losses", [0, 2])
def test_a_service_is_taken_as_the_first_life_that_it_says_it_is(world: World, name: str, losses: int) -> None:
    for _ in range(losses):
        world.lose(name)
    world.serve(name, 1)
    world.wait(lambda: world.service(name).welcomed, f"the Welcome of {name}")
    assert (world.service(name).epoch, world.service(name).state) == (1, "starting")


@pytest.mark.parametrize("epoch", [2, 1, 1 + MOST_LIVES])
def test_the_next_life_of_a_device_is_the_one_that_it_says_it_is_however_often_it_was_lost(
    world: World, epoch: int
) -> None:
    world.supervisor.condition.state = gateway_pb2.MACHINE_RUNNING
    world.serve("rtc", 1)
    world.wait(lambda: world.service("rtc").welcomed, "the Welcome")
    world.service("rtc").was_ready = True
    world.end(world.served.pop("rtc"))
    world.wait(lambda: not world.service("rtc").welcomed, "the loss")
    began = world.service("rtc").began
    world.lose("rtc")  # by a process that is ending, and listens still
    world.serve("rtc", epoch)
    world.wait(lambda: world.service("rtc").welcomed, "the Welcome of the next life")
    assert (world.service("rtc").epoch, world.service("rtc").state) == (epoch, "restarting")
    assert (len(world.service("rtc").deaths), world.service("rtc").began) == (1, began)


def test_a_device_whose_number_is_far_from_any_life_of_it_is_not_taken(world: World) -> None:
    world.service("rtc").was_ready = True
    world.serve("rtc", 2 + MOST_LIVES)
    world.wait(lambda: world.service("rtc").state == "hung", "it to be found out")
    assert world.service("rtc").epoch == 1
