"""What the monitor makes of the balloon: bytes of pages, requests of commands, events of notices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmesh.v1.common_pb2 import BalloonChange, Notice
from vmesh.v1.lifecycle_pb2 import HealthReport, SetProperty
from vmesh.v1.packet_pb2 import Packet
from vmesh.virtio.balloon import COUNTER
from vmesh_services.monitor import balloon
from vmesh_services.monitor.control import Work
from vmesh_services.monitor.hmp import commands
from vmesh_services.monitor.operations import Request
from vmesh_services.monitor.qmp.errors import DeviceNotActive, QmpError
from vmesh_services.monitor.qmp.handlers import execute
from vmesh_services.monitor.supervisor.notices import Notices

RAM = 256 << 20
PAGE = 4096
EVERY = (1 << 32) - 1  # pages: what a hostile driver says


def control(*kinds: str) -> Any:
    """A machine with a device of each kind, `air0` and so on."""
    devices = [
        SimpleNamespace(name=f"air{number}", command=SimpleNamespace(kind=kind)) for number, kind in enumerate(kinds)
    ]
    condition = SimpleNamespace(ram_bytes=RAM, check=lambda act: None)
    return SimpleNamespace(supervisor=SimpleNamespace(condition=condition), devices=lambda: devices)


def result(work: object, *answers: list[Packet]) -> tuple[list[Request], object]:
    """What is asked of services, and the answer."""
    assert isinstance(work, Work)
    asked = list(next(work.parts))
    try:
        for each in answers:
            asked += work.parts.send(each)
    except StopIteration as done:
        return asked, done.value
    raise AssertionError("expected an end")


@pytest.mark.parametrize(
    ("target", "pages"),
    [(RAM, 0), (RAM + 1, 0), ((1 << 63) - 1, 0), (RAM - PAGE, 1), (RAM - 1, 0), (1, RAM // PAGE - 1)],
)
def test_bytes_that_the_guest_is_to_have(target: int, pages: int) -> None:
    work = execute(control("virtio-rng", balloon.KIND), "balloon", {"value": target})
    assert isinstance(work, Work)
    assert work.exclusive
    assert result(work, [Packet()]) == ([Request("air1", SetProperty(name="pages", value=pages))], {})


@pytest.mark.parametrize(("pages", "actual"), [(0, RAM), (1, RAM - PAGE), (RAM // PAGE, 0), (EVERY, 0)])
def test_bytes_that_the_guest_has(pages: int, actual: int) -> None:
    report = Packet(health_report=HealthReport(counters={COUNTER: pages}))
    assert result(execute(control(balloon.KIND), "query-balloon", {}), [report])[1] == {"actual": actual}
    shown = commands.execute(control(balloon.KIND), "info balloon")
    assert result(shown, [report])[1] == f"balloon: actual={actual >> 20}\n"


def test_people_say_megabytes() -> None:
    work = commands.execute(control(balloon.KIND), "balloon 128 + 64")
    assert isinstance(work, Work)
    assert work.exclusive
    asked, text = result(work, [Packet()])
    assert asked == [Request("air0", SetProperty(name="pages", value=(RAM - (192 << 20)) // PAGE))]
    assert text == ""


@pytest.mark.parametrize("value", [0, -1, -(1 << 63)])
def test_a_size_that_is_none(value: int) -> None:
    with pytest.raises(QmpError, match=r"^Parameter 'target' expects a size$"):
        execute(control(balloon.KIND), "balloon", {"value": value})


@pytest.mark.parametrize("name", ["balloon", "query-balloon"])
def test_a_machine_without_one(name: str) -> None:
    with pytest.raises(DeviceNotActive, match=r"^No balloon device has been activated$"):
        execute(control("virtio-rng"), name, {"value": 1} if name == "balloon" else {})


@pytest.mark.parametrize(("kind", "pages"), [(balloon.KIND, 2), (balloon.KIND, EVERY), ("virtio-rng", 2)])
def test_what_the_device_says_is_an_event_and_of_no_other_device(kind: str, pages: int) -> None:
    events: list[object] = []
    complaints: list[str] = []
    service = SimpleNamespace(command=SimpleNamespace(kind=kind), on_trial=False)
    parts: dict[str, Any] = {
        "condition": SimpleNamespace(
            services={"air0": service}, roster=SimpleNamespace(cpu="cpu"), ram_bytes=RAM, is_device=lambda name: True
        ),
        "health": SimpleNamespace(broke=lambda name, text: complaints.append(name)),
        "events": SimpleNamespace(publish=lambda *event: events.append(event)),
        "log": SimpleNamespace(info=lambda *_, **__: None),
        "lives": SimpleNamespace(),
    }
    notices = Notices(ending=SimpleNamespace(), run_state=SimpleNamespace(), **parts)  # type: ignore[arg-type]
    notices.take("air0", Packet(notice=Notice(balloon_change=BalloonChange(pages=pages))))
    expected = [("BALLOON_CHANGE", {"actual": max(0, RAM - pages * PAGE)})]
    assert (events, complaints) == ((expected, []) if kind == balloon.KIND else ([], ["air0"]))
