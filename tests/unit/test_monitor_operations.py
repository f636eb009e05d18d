"""The lifecycle's sequences, with the services played by a function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from vmesh.v1 import cpu_pb2, lifecycle_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import hotplug, operations
from vmesh_services.monitor.operations import Operation, Request, RequestError, Roster
from vmesh_services.monitor.supervisor.supervisor import Supervisor

ROSTER = Roster("memory", "cpu", ("uart0", "rtc"))
Play = Callable[[Request], Packet]


def carry_out(operation: Operation, play: Play) -> list[list[tuple[str, str]]]:
    """The batches of (service, request) that an operation made."""
    batches: list[list[tuple[str, str]]] = []
    try:
        batch = next(operation)
        while True:
            batches.append([(request.service, request.body.DESCRIPTOR.name) for request in batch])
            answers: list[Packet] = []
            failures: list[RequestError] = []
            for request in batch:  # all are asked before the first has answered
                try:
                    answers.append(play(request))
                except RequestError as error:
                    failures.append(error)
            batch = operation.throw(failures[0]) if failures else operation.send(answers)
    except StopIteration:
        return batches


def willing(request: Request) -> Packet:
    packet = Packet()
    if isinstance(request.body, lifecycle_pb2.Drain):
        packet.drained.update_sequence = len(request.service)
    return packet


def names(batches: list[list[tuple[str, str]]]) -> list[str]:
    """A batch as 'Pause,Drain uart0,rtc; Drain cpu': what is asked, and who is."""
    found = []
    for batch in batches:
        bodies: dict[str, list[str]] = {}
        for service, body in batch:
            bodies.setdefault(service, []).append(body)
        services: dict[str, list[str]] = {}
        for service, asked in bodies.items():
            services.setdefault(",".join(asked), []).append(service)
        found.append("; ".join(f"{asked} {','.join(those)}" for asked, those in services.items()))
    return found


def test_pause_stops_harts_first_and_drains_before_it_looks() -> None:
    assert names(carry_out(operations.pause(ROSTER), willing)) == [
        "Pause cpu",
        "Pause,Drain uart0,rtc",
        "Pause,Drain memory; Drain cpu",
        "Health uart0,rtc,memory,cpu",
    ]


def test_the_switch_of_a_migration_takes_three_turns_for_all_states() -> None:
    def play(request: Request) -> Packet:
        packet = willing(request)
        if isinstance(request.body, lifecycle_pb2.Save):
            packet.service_state.type = f"state of {request.service}"
        return packet

    states: dict[str, lifecycle_pb2.ServiceState] = {}
    assert names(carry_out(operations.quiesce(ROSTER, states), play)) == [
        "Pause cpu",
        "Pause,Drain,Save uart0,rtc",
        "Pause,Drain,Save memory; Drain,Save cpu",
    ]
    assert {name: state.type for name, state in states.items()} == {name: f"state of {name}" for name in ROSTER.all}


def test_pause_tells_the_cpu_which_updates_to_wait_for() -> None:
    seen: list[lifecycle_pb2.Drain] = []

    def play(request: Request) -> Packet:
        if request.service == "cpu" and isinstance(request.body, lifecycle_pb2.Drain):
            seen.append(request.body)
        return willing(request)

    carry_out(operations.pause(ROSTER), play)
    assert [dict(drain.updates) for drain in seen] == [{"uart0": 5, "rtc": 3}]


@pytest.mark.parametrize("refused", ["Pause", "Drain"])
def test_pause_that_fails_lets_all_go_on(refused: str) -> None:
    asked: list[str] = []

    def play(request: Request) -> Packet:
        asked.append(f"{request.body.DESCRIPTOR.name} {request.service}")
        if request.service == "rtc" and request.body.DESCRIPTOR.name == refused:
            raise RequestError("rtc: no")
        return willing(request)

    with pytest.raises(RequestError, match="rtc: no"):
        carry_out(operations.pause(ROSTER), play)
    assert [entry for entry in asked if entry.startswith("Resume")] == [
        "Resume uart0",
        "Resume rtc",
        "Resume memory",
        "Resume cpu",
    ]


@pytest.mark.parametrize("operation", [operations.pause, partial(operations.reset, stay_paused=False)])
def test_harts_go_on_after_a_pause_that_a_device_does_not_answer(operation: Callable[[Roster], Operation]) -> None:
    """It waits for a page, say, and answers neither this nor what comes behind it."""
    asked: list[str] = []

    def play(request: Request) -> Packet:
        asked.append(f"{request.body.DESCRIPTOR.name} {request.service}")
        if request.service == "uart0" and not isinstance(request.body, lifecycle_pb2.Health):
            raise RequestError(f"uart0 does not answer {request.body.DESCRIPTOR.name}")
        return willing(request)

    with pytest.raises(RequestError, match="does not answer Pause"):
        carry_out(operation(ROSTER), play)
    assert "Resume cpu" in asked


@pytest.mark.parametrize("stay_paused", [False, True])
def test_reset_restores_memory_before_the_harts_and_resumes_harts_last(stay_paused: bool) -> None:
    batches = names(carry_out(operations.reset(ROSTER, stay_paused=stay_paused), willing))
    assert batches[4:7] == ["Reset memory", "Reset uart0,rtc", "Reset cpu"]
    resumed = ["Resume uart0,rtc,memory", "Resume cpu", "Health uart0,rtc,memory,cpu"]
    assert batches[7:] == ([] if stay_paused else resumed)


@pytest.mark.parametrize("stay_paused", [False, True])
def test_reset_that_memory_refuses_changes_nothing_and_lets_all_go_on(stay_paused: bool) -> None:
    asked: list[str] = []

    def play(request: Request) -> Packet:
        asked.append(f"{request.body.DESCRIPTOR.name} {request.service}")
        if asked[-1] == "Reset memory":
            raise RequestError("memory: no")
        return willing(request)

    with pytest.raises(RequestError, match="memory: no"):
        carry_out(operations.reset(ROSTER, stay_paused=stay_paused), play)
    assert [entry for entry in asked if entry.startswith("Reset")] == ["Reset memory"]
    assert ("Resume cpu" in asked) == (not stay_paused)


def test_cpu_that_does_not_answer_leaves_its_status_empty() -> None:
    def play(request: Request) -> Packet:
        raise RequestError("cpu: busy")

    status = cpu_pb2.CpuStatus()
    carry_out(operations.cpu_status(ROSTER, status), play)
    assert status == cpu_pb2.CpuStatus()


def test_writers_are_shut_down_before_those_they_write_to() -> None:
    assert ROSTER.shutdown_order() == (("cpu",), ("uart0", "rtc"), ("memory",))


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (("uart0", "rtc", "test"), "no device 'rtc' can be taken away; no device of this machine can be unplugged"),
        (("uart0", "rtc", "blk0", "d1"), "no device 'rtc' can be taken away; expected one of: blk0, d1"),
        (("uart0", "rtc", "fw_cfg", "d1"), "no device 'rtc' can be taken away; expected one of: d1"),
    ],
)
def test_device_of_the_board_stays_and_those_that_can_go_are_named(devices: tuple[str, ...], said: str) -> None:
    condition = SimpleNamespace(devices_refusal=lambda: "")
    supervisor = SimpleNamespace(condition=condition, roster=Roster("memory", "cpu", devices))
    with pytest.raises(RequestError) as refused:
        carry_out(hotplug.remove(cast(Supervisor, supervisor), "rtc"), willing)
    assert str(refused.value) == said
