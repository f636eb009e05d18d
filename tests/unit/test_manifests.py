"""docker-compose.yml, the stack and the Kubernetes manifests say what vmesh/deploy/description.py says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import manifests as written
from vmesh.cli.deploy import show
from vmesh.deploy import manifests
from vmesh.deploy.description import describe

ROOT = Path(__file__).resolve().parents[2]


def compose_file() -> dict[str, Any]:
    """docker-compose.yml as an engine understands it when no variable is set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    for service in found["services"].values():
        service["command"] = shlex.split(service["command"])
    return {key: value for key, value in found.items() if not key.startswith("x-")}


def test_compose_file_is_the_description() -> None:
    assert compose_file() == manifests.compose(describe())


@pytest.mark.parametrize("path", sorted(written.written()))
def test_written_manifests_are_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == written.written()[path], "run tools/manifests.py"


def test_stack_and_compose_file_have_the_same_services() -> None:
    stack, compose = yaml.safe_load((ROOT / "deploy/stack.yml").read_text()), compose_file()
    assert list(stack["services"]) == list(compose["services"])
    for name, service in stack["services"].items():
        for key in ("image", "read_only", "cap_drop", "healthcheck", "stop_grace_period"):
            assert service[key] == compose["services"][name][key]
        assert service["volumes"] == [*compose["services"][name]["volumes"], {"type": "tmpfs", "target": "/tmp"}]
        restarts = compose["services"][name].get("restart", "none")
        assert service["deploy"]["restart_policy"]["condition"] == restarts


def test_kubernetes_manifests_follow_its_schema() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (make dev)")
    folder = ROOT / "deploy/kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for resource in kustomization["resources"]:
        manifest = yaml.safe_load((folder / resource).read_text())
        schemas.validate(manifest, schemas.latest_version(), strict=True)
        manifest["spec"]["replica"] = 1
        with pytest.raises(schemas.ValidationError):
            schemas.validate(manifest, schemas.latest_version(), strict=True)


def test_kubernetes_has_the_containers_of_the_description() -> None:
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/machine.yaml").read_text())["spec"]["template"]["spec"]
    assert [each["args"] for each in pod["containers"]] == [each.command for each in describe().containers]
    image = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())["images"][0]["name"]
    assert {each["image"] for each in pod["containers"]} == {image}


def test_flags_make_containers(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("compose", ["-smp", "2", "-device", "virtio-rng-device"], "other", "2g") == 0
    made = yaml.safe_load(capsys.readouterr().out)
    (device,) = set(made["services"]) - set(compose_file()["services"])
    assert made["services"][device]["command"] == ["serve", device]
    assert made["services"]["memory"]["command"] == ["serve", "memory", "-smp", "2", "-device", "virtio-rng-device"]
    assert made["services"]["cpu"]["depends_on"][device] == {"condition": "service_healthy"}
    assert made["volumes"]["machine"]["driver_opts"]["o"].startswith("size=2g,")


def test_bad_flag_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vmesh.deploy.engines", raising=False)  # another test may have imported it
    assert show("compose", ["-smp", "none"], "vmesh", "1g") == 2
    assert capsys.readouterr().err.startswith("vmesh deploy: -smp")
    assert "vmesh.deploy.engines" not in sys.modules  # whoever has no engine needs no SDK
