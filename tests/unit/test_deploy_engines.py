"""What an engine is asked before anything is made. (That it does it: tests/system/test_containers.py.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("docker")

from docker.errors import APIError, DockerException
from requests import Response

from vmesh.deploy import engines
from vmesh.deploy.description import describe


class Engine:
    """A Swarm whose nodes have these labels; it notes the services that are made."""

    def __init__(self, *labels: dict[str, str] | None) -> None:
        self.made: list[str] = []
        specs = [{"Spec": {} if each is None else {"Labels": each}} for each in labels]
        self.nodes = SimpleNamespace(list=lambda: [SimpleNamespace(attrs=each) for each in specs])
        self.services = SimpleNamespace(create=self._create)

    def _create(self, _image: str, **given: Any) -> str:
        self.made.append(given["name"])
        return self.made[-1]


@pytest.mark.parametrize("labels", [(), (None,), ({"vmesh": "false"}, {"other": "true"})])
def test_a_swarm_without_a_node_for_machines(labels: tuple[dict[str, str] | None, ...]) -> None:
    engine = Engine(*labels)
    with pytest.raises(engines.DeployError, match="docker node update --label-add vmesh=true NODE"):
        engines._start_services(engine, describe([], ["rtc"], "vmesh", "1g"), "m")  # type: ignore[arg-type]
    assert engine.made == []


def test_a_swarm_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(engines, "_wait_task", waited.append)
    engine = Engine(None, {"vmesh": "true"})
    engines._start_services(engine, describe([], ["rtc"], "vmesh", "1g"), "m")  # type: ignore[arg-type]
    assert "m-memory" in engine.made
    assert waited == engine.made


def _refusal(status: int) -> APIError:
    response = Response()
    response.status_code = status
    return APIError(f"status {status}", response=response)


class Thing:
    """A container or volume that answers the first attempts to remove it like this."""

    def __init__(self, name: str, *answers: int, labels: dict[str, str] | None = None) -> None:
        self.name = name
        self.answers = list(answers)
        self.labels = labels or {}
        self.gone = False

    def stop(self, timeout: int) -> None: ...

    def remove(self) -> None:
        if self.answers:
            raise _refusal(self.answers.pop(0))
        self.gone = True


class Removing:
    """An engine that lists what is left, and needs to be told that what goes meanwhile is no fault."""

    def __init__(self, containers: list[Thing], volumes: list[Thing]) -> None:
        self.containers = SimpleNamespace(list=lambda **given: self._left(containers) if given["ignore_removed"] else 0)
        self.volumes = SimpleNamespace(list=lambda **given: self._left(volumes))

    def _left(self, things: list[Thing]) -> list[Thing]:
        for thing in things:
            thing.gone |= "swarm" in thing.labels.values()  # which removes it itself, once it was seen
        return [thing for thing in things if not thing.gone]

    def info(self) -> dict[str, Any]:
        return {"Swarm": {}}


def test_what_is_going_already_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LOOK_SECONDS", 0)
    things = [Thing("m-cpu", 409), Thing("m-rtc", 404), Thing("m-uart0", labels={engines._SWARM_SERVICE: "swarm"})]
    volume = Thing("m-volume", 409, 409)
    engines._remove(Removing(things, [volume]), "m")  # type: ignore[arg-type]
    assert all(thing.gone for thing in [*things, volume])


def test_what_cannot_be_removed_is_said_and_keeps_nothing_else() -> None:
    stuck, other = Thing("m-cpu", 500), Thing("m-rtc")
    with pytest.raises(APIError, match="500 Server Error"):
        engines._remove(Removing([stuck, other], []), "m")  # type: ignore[arg-type]
    assert other.gone


def test_what_never_goes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LOOK_SECONDS", 0)
    monkeypatch.setattr(engines, "STOP_SECONDS", 0.0)
    volume = Thing("m-volume", *[409] * 1_000_000)
    with pytest.raises(DockerException, match="the volume m-volume is in use"):
        engines._remove(Removing([], [volume]), "m")  # type: ignore[arg-type]
