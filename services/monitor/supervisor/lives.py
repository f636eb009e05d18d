"""The lives of the services: how each begins and ends, a device's next one, and another program in its place."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import zmq

from vmesh import elsewhere
from vmesh.addresses import Addresses
from vmesh.errors import PeerError, said
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.machine import MachineDirectory
from vmesh.spawn import Child, ServiceCommand, describe_exit, start_service
from vmesh.v1 import lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.events import EventHub
from vmesh_services.monitor.keeper import Keeper
from vmesh_services.monitor.link import Answered, Link
from vmesh_services.monitor.operations import Operation, Request
from vmesh_services.monitor.output import Output
from vmesh_services.monitor.run_states import AWAY
from vmesh_services.monitor.supervisor.condition import Condition
from vmesh_services.monitor.supervisor.ending import END_LIMIT, Ending
from vmesh_services.monitor.supervisor.run_state import RunState
from vmesh_services.monitor.supervisor.runs import Runs
from vmesh_services.monitor.supervisor.supervised import (
    DEATHS,
    DEATHS_SECONDS,
    EXTERNAL,
    Successor,
    Supervised,
    by_hand,
    process,
)
from vmesh_services.monitor.warnings import Warnings

_DIAL_SECONDS = 0.2  # between two looks for a service that somebody else starts


class Lives:
    """`welcomed` gets a service's answer to the monitor's Hello, `noticed` what it says unasked, `broke` is told of
    what no message may say. The keeper forks next lives; there is none where somebody else starts the services."""

    def __init__(
        self,
        machine: MachineDirectory,
        condition: Condition,
        runs: Runs,
        ending: Ending,
        run_state: RunState,
        keeper: Keeper | None,
        addresses: Addresses,
        loop: Loop,
        events: EventHub,
        warnings: Warnings,
        output: Output,
        log: Log,
    ) -> None:
        self.welcomed: Callable[[Supervised, Packet], None] = lambda service, packet: None
        self.noticed: Callable[[str, Packet], None] = lambda name, packet: None
        self.broke: Callable[[str, str], None] = lambda name, how: None
        self._machine, self._condition, self._keeper = machine, condition, keeper
        self._runs, self._ending, self._run_state = runs, ending, run_state
        self._addresses, self._loop = addresses, loop
        self._events, self._warnings, self._output, self._log = events, warnings, output, log
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._helpers: dict[str, int] = {}  # processes that services may hear from and that are none of the roster's
        ending.gone = self.ended
        run_state.mend = self.mend

    @property
    def _services(self) -> dict[str, Supervised]:
        return self._condition.services

    # Begin

    def start(self, commands: Sequence[ServiceCommand], lifeline: int) -> None:
        """Fork every service, `lifeline` in hand, then connect to them. Call before any thread runs."""
        children = []
        assert self._keeper is not None
        # All wait for memory, and it not for our connection: a pipe says which processes the others are.
        heard, told = os.pipe()
        for command in commands:
            # Memory outlives the others, to remove the directory: nothing but its lifeline ends it, and it does not
            # hold the lock, since it waits for the lock to learn that the others are gone.
            last = command.name == self._condition.roster.memory
            keep = [heard] if last else [self._machine.lock_fd]
            death_signal = 0 if last else signal.SIGKILL
            more = ["--monitor", str(os.getpid()), *(["--processes", str(heard)] if last else [])]
            child = start_service(command, lifeline=lifeline, more=more, keep=keep, death_signal=death_signal)
            children.append(child)
            os.write(told, f"{command.name} {process(command, child)}\n".encode())
        os.close(heard)
        os.close(told)
        self._keeper.start(lifeline)
        self._context = zmq.Context()
        for command, child in zip(commands, children, strict=True):
            service = Supervised(command, child, self._link(command.name), time.monotonic())
            self._services[command.name] = service
            self._meet(service)
        self._tell_processes()
        self._loop.watch(self._keeper.child.pidfd, read=self._keeper_dead)

    def attach(self, commands: Sequence[ServiceCommand]) -> None:
        """Meet services that somebody else starts: another process, a container engine; in any order."""
        self._context = zmq.Context()
        for command in commands:
            service = Supervised(command, Child(0, -1), self._link(command.name), time.monotonic(), alive=False)
            self._services[command.name] = service
            self._meet(service)

    def connect(self, name: str, unasked: Answered) -> Link:
        """A connection to a service that is not one of the roster's; its packets are received in the loop."""
        assert self._context is not None
        link = Link(self._context, self._addresses, name, unasked, partial(self.broke, name))
        link.watch(self._loop)
        return link

    def introduce(self, name: str, process: int) -> None:
        """Which process a helper is, that is not one of the roster's services; 0: it has ended."""
        self._helpers[name] = process
        self._tell_processes()

    def _link(self, name: str) -> Link:
        assert self._context is not None
        unasked, broke = partial(self.noticed, name), partial(self.broke, name)
        return Link(self._context, self._addresses, name, unasked, broke)

    def _meet(self, service: Supervised) -> None:
        """A process of a service has been started, or somebody else will: watch it, and say Hello."""
        attached = self._condition.attached
        if not attached:
            self._loop.watch(service.child.pidfd, read=partial(self._dead, service))
            self._loop.watch(service.child.output, read=partial(self._drain, service))
        self._greet(service)

    def _greet(self, service: Supervised) -> None:
        """Say Hello to whoever listens in the place of a service, now or later."""
        service.link.watch(self._loop)
        if self._condition.attached:
            service.link.watch_loss(self._loop, partial(self._lost, service))
        elif by_hand(service.command):
            service.link.watch_loss(self._loop, partial(self._lost_by_hand, service))
        service.link.hello(partial(self.welcomed, service))

    def _tell_processes(self) -> None:
        """Tell each service which processes the others are, and so who may say what to it."""
        if self._condition.attached or self._condition.failure:  # they are not ours, nor known here; or all go
            return
        there = [service for service in self._services.values() if service.alive]
        known = {service.name: service.process for service in there}
        # Between two lives, too: the next one may have said Hello before the end of the last was seen.
        known |= {name: 0 for name, service in self._services.items() if by_hand(service.command)}
        known |= {name: process for name, process in self._helpers.items() if process}
        for service in there:
            with suppress(PeerError):  # it will be found hung
                service.link.tell(lifecycle_pb2.Processes(processes=known))

    # End

    def fail(self, service: Supervised, how: str) -> None:
        """The machine ends because of `service`."""
        service.last_error = how
        self._ending.end(1, self._described(service, how))

    def ended(self, service: Supervised, how: str) -> None:
        """A life is over; `how`. What follows is up to what the service is, and what was asked for."""
        service.alive = False
        service.state = "dead"
        self._log.info("service ended", service=service.name, how=how)
        self._tell_processes()
        if self._condition.ending:
            if self._ending.has_more(service):
                service.died()
                self._start_life(service, how)
            self._ending.go_on()
        elif service.leaving:
            self._remove(service)
        elif service.broken:
            pass
        elif service.successor is not None:
            self._succeed(service)
        elif service.on_trial:
            self._failed_trial(service, how)
        elif self._condition.may_return(service):
            self._restart(service, how)
        else:
            self.fail(service, how)
        self._maybe_all_ended()

    def _drain(self, service: Supervised) -> None:
        self._output.drain(service.name, service.child.output)

    def _dead(self, service: Supervised) -> None:
        _, status = os.waitpid(service.child.pid, 0)
        service.finished |= status == 0
        self._drain(service)
        for fd in (service.child.pidfd, service.child.output):
            self._loop.watch(fd)
            os.close(fd)
        self.ended(service, service.last_error if service.state == "hung" else describe_exit(status))

    def _lost(self, service: Supervised) -> None:
        """The connection to a service that somebody else has started is gone, and so is the service.

        Without a Welcome that was no life of it: a process that is killed listens a little longer than it talks. The
        limit for the service to come goes on.
        """
        service.link.close()
        if service.welcomed or self._condition.ending:
            self.ended(service, "is gone")
        else:
            self._loop.call_in(f"dial {service.name}", _DIAL_SECONDS, partial(self._dial, service))

    def _lost_by_hand(self, service: Supervised) -> None:
        """What was started by hand is gone. Who stands in for it may not have seen that, if another one has come within
        the time between two of its looks: it goes too.

        Without a Welcome it was somebody that memory has refused, and who comes next is greeted.
        """
        service.came = True
        if not service.welcomed:
            again = partial(self._greet_next, service, service.child)
            self._loop.call_in(f"greet {service.name}", _DIAL_SECONDS, again)
        elif service.alive:
            self.give_up(service, "is gone")

    def _greet_next(self, service: Supervised, child: Child) -> None:
        """Whoever comes while `child` still waits for somebody."""
        if service.child is not child or not service.alive:
            return
        try:
            former, service.link = service.link, self._link(service.name)
            former.close()
            self._greet(service)
        except Exception as error:  # no descriptors
            self.give_up(service, str(said(error)))

    def _dial(self, service: Supervised) -> None:
        """Meet whoever listens in the place of a service that somebody else starts."""
        try:
            service.link = self._link(service.name)
            self._meet(service)
        except Exception as error:  # no descriptors
            self._spawned(service, None, str(said(error)))

    def _maybe_all_ended(self) -> None:
        if any(map(self._ending.is_there, self._services.values())):
            return
        if self._keeper is None:
            if self._condition.ending:
                self._loop.stop()
        elif not self._keeper.busy:
            self._keeper.close()  # its end is the machine's
            self._loop.call_in("keeper", END_LIMIT, self._keeper.kill)

    def _keeper_dead(self) -> None:
        assert self._keeper is not None
        _, status = os.waitpid(self._keeper.child.pid, 0)
        self._loop.watch(self._keeper.child.pidfd)
        if any(service.alive for service in self._services.values()):
            self._ending.end(1, f"the keeper (pid {self._keeper.child.pid}) {describe_exit(status)}")
            self._ending.kill_all()
        self._loop.stop()

    def _described(self, service: Supervised, how: str) -> str:
        """One line that says which service, how it has ended, and what it said last."""
        pid = "" if self._condition.attached else f" (pid {service.child.pid})"
        text = f"service '{service.name}'{pid} {how}"
        last = self._output.last_line(service.name)
        return f"{text}; its last words: {last}" if last else text

    # A device's next life

    def _restart(self, service: Supervised, how: str) -> None:
        """Start the next life of a device, unless it dies again and again. Who was refused, before it could take the
        place of one that is started by hand, has not died of being it."""
        if service.welcomed or not (service.came and by_hand(service.command)):
            service.died()
        last = self._output.last_line(service.name)
        told = f"{how}; its last words: {last}" if last else how
        if self._condition.lost:  # what it needs is not there
            self._break(service, how)
            service.last_error = told
            return
        if service.dies_too_often:
            self._break(service, f"{how}, for the {DEATHS}th time within {DEATHS_SECONDS:g} s")
            return
        service.last_error = told
        self._start_life(service, how)

    def _break(self, service: Supervised, how: str) -> None:
        """A device does not come back: the machine stops, as QEMU does with werror=stop, until somebody lets it go on,
        which starts the device's next life, or puts another program in its place."""
        if self._condition.starting or self._condition.ending:
            self.fail(service, how)
            return
        text = self._described(service, how)
        service.state, service.last_error, service.broken = "dead", how, True
        self._runs.is_gone(service, text)
        if self._condition.lost:
            self._run_state.halt()
        else:
            self._run_state.stop_for(service.name, text, "io-error")

    def mend(self) -> Operation:
        """Give each broken device a next life; its deaths are counted afresh. RequestError if one is not there then."""
        broken = self._condition.broken
        for service in broken:
            service.broken = False
            service.deaths.clear()
            self._start_life(service, "is mended")
        if broken:
            yield [Request(service.name, lifecycle_pb2.Health()) for service in broken]

    def _start_life(self, service: Supervised, how: str) -> None:
        """Start the process of the next epoch; `how` the former one ended."""
        service.state, service.welcomed, service.asked_at = "restarting", False, None
        service.finished = False  # what a life before has left in order, as it went by itself, is not the machine's end
        if self._condition.ending:
            self._ending.extend()
        self._output.forget(service.name)  # the last words are one life's
        service.began = time.monotonic()
        hand = by_hand(service.command) and not self._condition.attached
        # Attached, lives are counted where they are started. By hand, a life in which nobody came was none.
        if not self._condition.attached and (service.came or not hand or not service.epoch):
            service.epoch += 1
        service.came = False
        if hand and not self._condition.ending:
            self._warnings.warn(service.name, f"is to be started by hand, with --epoch {service.epoch}")
        try:
            former, service.link = service.link, self._link(service.name)
            former.close()
        except Exception as error:  # no descriptors
            self._spawned(service, None, str(said(error)))
            return
        if self._keeper is None:
            self._log.info("waiting for the next life", service=service.name, how=how)
            self._meet(service)
            return
        self._log.info("starting", service=service.name, how=how, epoch=service.epoch)
        # Memory hears first which life it is: what the former one has called itself is not to be believed.
        expected = memory_pb2.ExpectLife(name=service.name, epoch=service.epoch)
        try:
            memory = self._services[self._condition.roster.memory]
            memory.link.ask(expected, lambda packet: self._spawn(service))
        except PeerError as error:
            self._spawned(service, None, str(error))

    def _spawn(self, service: Supervised) -> None:
        assert self._keeper is not None
        if self._condition.ending and not self._ending.is_there(service):
            return  # the keeper may have ended
        more = ["--epoch", str(service.epoch)]
        if self._condition.stage in AWAY and service.command.module != EXTERNAL:
            more.append("--away")
        self._keeper.spawn(service.command, more, partial(self._spawned, service))

    def not_spawned(self, service: Supervised, why: str) -> None:
        """Its process has not come."""
        self._spawned(service, None, why)

    def _spawned(self, service: Supervised, child: Child | None, failure: str) -> None:
        if child is None and (service.on_trial or service.leaving):
            service.state = "dead"
            self._remove(service) if service.leaving else self._failed_trial(service, failure)
            return
        if child is None:
            self._break(service, f"cannot be started again: {failure}")
            if self._condition.ending:
                service.state = "dead"
                self._ending.go_on()
            self._maybe_all_ended()
            return
        if service.broken or self._services.get(service.name) is not service:
            self._reap(child)  # it is not waited for any more
            return
        awaited = self._ending.is_there(service)
        service.child, service.alive = child, True
        try:
            self._meet(service)
        except Exception as error:  # no descriptors, and its end is one of its deaths
            self._loop.fail(error)
            service.kill()
        self._tell_processes()
        ends = self._condition.ending and not awaited
        if ends or service.successor is not None or service.leaving:
            service.kill()

    def _reap(self, child: Child) -> None:
        """Have a process end that is nobody's."""

        def ended() -> None:
            os.waitpid(child.pid, 0)
            self._loop.watch(child.pidfd)
            os.close(child.pidfd)

        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.close(child.output)
        self._loop.watch(child.pidfd, read=ended)

    def back(self, service: Supervised) -> None:
        """A life is ready that is not the machine's first: its next one, or that of a device that was added."""
        took = f"{(time.monotonic() - service.began) * 1e3:.0f}"
        self._log.info("restarted", service=service.name, pid=service.child.pid, epoch=service.epoch, ms=took)
        if service.was_ready:
            self._events.publish(
                "__org.vmesh_SERVICE_RESTARTED",
                {"service": service.name, "epoch": service.epoch, "reason": service.last_error},
            )
        self._warnings.end(service.name)
        self._runs.is_back(service)

    def resume_strays(self) -> None:
        """A device that was restarted in the midst of a resume was paused, and may have missed it."""
        for service in self._services.values():
            if self._condition.running and service.ready and service.state == "paused":
                with suppress(PeerError):
                    service.link.ask(lifecycle_pb2.Resume(), lambda packet: None)

    # Another program in a device's place

    def put_in_place(self, name: str, successor: Successor, *, on_trial: bool) -> None:
        """End the process of a device, and start another program as its next life.

        On trial, the end of the new process fails what it was asked (RequestError), and no next life follows it.
        """
        service = self._services[name]
        service.successor, service.on_trial, service.broken = successor, on_trial, False
        service.deaths.clear()
        if service.alive:
            service.kill()
        elif service.state == "dead":
            self._succeed(service)

    def put_back(self, name: str, command: ServiceCommand) -> None:
        """What was to mend a broken device has not: it is as broken as before, and `command` is its program again."""
        service = self._services[name]
        service.command, service.on_trial, service.broken, service.successor = command, False, True, None
        service.state = "dead"
        if service.alive:
            service.kill()

    def accept(self, name: str) -> None:
        """The program on trial is the device from now on."""
        service = self._services[name]
        service.on_trial = False
        service.deaths.clear()  # they were another program's

    def give_up(self, service: Supervised, how: str) -> None:
        """End a process that does not do what it is for, on trial or gone; `how` it has failed."""
        service.state, service.last_error = "hung", how
        service.kill()

    def _succeed(self, service: Supervised) -> None:
        assert service.successor is not None
        try:
            service.successor.prepare()
        except OSError as error:
            service.successor = None
            self._break(service, f"cannot be started again: {error}")
            return
        service.command, service.successor = service.successor.command, None
        self._output.forget(service.name)
        self._start_life(service, "was replaced")

    def _failed_trial(self, service: Supervised, how: str) -> None:
        """It has ended, or was never there."""
        service.state, service.last_error = "dead", how
        self._runs.is_gone(service, ": ".join(filter(None, (how, self._output.last_line(service.name)))))

    # Devices that come and go

    def add(self, command: ServiceCommand) -> None:
        """Start a device more, on trial: until `accept`, its end fails what it was asked."""
        service = Supervised(command, Child(-1, -1), self._link(command.name), time.monotonic(), epoch=0)
        service.on_trial, service.alive = True, False
        self._services[command.name] = service
        roster = self._condition.roster
        self._condition.roster = replace(roster, devices=(*roster.devices, command.name))
        self._output.forget(command.name)
        self._start_life(service, "is new")

    def remove(self, name: str) -> None:
        """Take a device out of the machine. It ends when it has brought out what the guest has written."""
        service = self._services[name]
        roster = self._condition.roster
        self._condition.roster = replace(roster, devices=tuple(each for each in roster.devices if each != name))
        service.leaving = True
        if service.state == "dead":
            self._remove(service)
            return
        if not service.alive:
            return  # its next life is being forked: killed when it is there
        if service.ready and not service.on_trial:
            with suppress(PeerError):
                service.link.ask(lifecycle_pb2.Shutdown(), lambda packet: None)
        else:
            service.kill()
        self._loop.call_in(f"leaving {name}", END_LIMIT, lambda: service.kill() if service.alive else None)

    def _remove(self, service: Supervised) -> None:
        """It has ended: forget it, and what it has left in the machine directory."""
        name = service.name
        self._warnings.end(name)
        self._loop.cancel(f"leaving {name}")
        service.link.close()
        self._services.pop(name, None)
        if self._keeper is not None:
            self._keeper.forget(name)
        elsewhere.remove(self._machine.elsewhere(name))
        for left in self._machine.device_files(name):
            with suppress(OSError):
                left.unlink()
        if not service.on_trial:
            self._events.publish("DEVICE_DELETED", {"device": name, "path": f"/machine/peripheral/{name}"})
        self._runs.next()
