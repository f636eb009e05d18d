"""What an engine is asked before anything is made. (That it does it: tests/system/test_containers.py.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("docker")

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
        return given["name"]


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
