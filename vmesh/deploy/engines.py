"""The description carried out by Docker, or as services of a Swarm: docker's SDK speaks to the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import DriverConfig, Healthcheck, Mount, RestartPolicy
from requests import RequestException

from vmesh.deploy.description import HEALTH, RUNTIME, STOP_SECONDS, VOLUME, Container, Deployment
from vmesh.deploy.manifests import NODE_LABEL, tmpfs
from vmesh.errors import VmeshError

LABEL = "vmesh.machine"  # of all that belongs to a machine: its name
_SWARM_SERVICE = "com.docker.swarm.service.id"  # label of the containers that a Swarm removes itself
_LOOK_SECONDS = 0.2
_NANOSECONDS = 1_000_000_000
_TASK_STATES = ("running", "complete", "failed", "rejected", "shutdown", "remove")


class DeployError(VmeshError):
    """What an engine did not do; one line for the user."""


def up(machine: Deployment, name: str, *, swarm: bool) -> None:
    """Start all of it, each service when those before it are well. What was begun is taken back if one does not start.

    Raises DeployError.
    """

    def begin(engine: docker.DockerClient) -> None:
        if _found(engine, name):
            raise DeployError(f"'{name}' is deployed already (vmesh deploy --down {name} ends it)")
        if not engine.images.list(machine.image):
            raise DeployError(f"no image '{machine.image}' (make image)")
        try:
            _start_services(engine, machine, name) if swarm else _start_containers(engine, machine, name)
        except BaseException:
            with suppress(DockerException):
                _remove(engine, name)
            raise

    _carry_out(begin)


def down(name: str) -> None:
    """End the machine in order, and remove all of it. Raises DeployError if there is none of that name."""

    def end(engine: docker.DockerClient) -> None:
        if not _found(engine, name):
            raise DeployError(f"nothing deployed under the name '{name}'")
        _remove(engine, name)

    _carry_out(end)


def _carry_out(work: Callable[[docker.DockerClient], None]) -> None:
    try:
        engine = docker.from_env()
        try:
            work(engine)
        finally:
            engine.close()
    except (DockerException, RequestException) as error:  # the latter: it does not answer
        reason = str(getattr(error, "explanation", None) or error).splitlines()[0]
        raise DeployError(f"the container engine: {reason}") from error


def _start_containers(engine: docker.DockerClient, machine: Deployment, name: str) -> None:
    volume = engine.volumes.create(_volume(name), driver="local", driver_opts=tmpfs(machine.ram), labels={LABEL: name})
    for each in machine.containers:
        for other, well in each.after.items():
            if well:
                _wait_healthy(engine, _container(name, other))
        engine.containers.run(
            machine.image,
            each.command,
            name=_container(name, each.service),
            labels={LABEL: name},
            detach=True,
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            volumes={volume.name: {"bind": RUNTIME, "mode": "rw"}},
            tmpfs={"/tmp": ""},
            stdin_open=each.input,
            restart_policy={"Name": "on-failure"} if each.restarts else None,
            healthcheck=_health(each),
        )
    _wait_healthy(engine, _container(name, machine.containers[-1].service))


def _start_services(engine: docker.DockerClient, machine: Deployment, name: str) -> None:
    options = DriverConfig("local", tmpfs(machine.ram))
    labels = {LABEL: name}
    swarm: Any = engine.services  # its methods have no type information
    if not any(node.attrs["Spec"].get("Labels", {}).get(NODE_LABEL) == "true" for node in engine.nodes.list()):
        how = f"docker node update --label-add {NODE_LABEL}=true NODE"
        raise DeployError(
            f"no node of the Swarm has the label {NODE_LABEL}=true, which says where machines may be: {how}"
        )
    services = [
        swarm.create(
            machine.image,
            args=each.command,
            name=_container(name, each.service),
            labels=labels,
            container_labels=labels,
            constraints=[f"node.labels.{NODE_LABEL} == true"],
            mounts=[
                Mount(RUNTIME, _volume(name), type="volume", driver_config=options, labels=labels),
                Mount("/tmp", None, type="tmpfs"),
            ],
            read_only=True,
            cap_drop=["ALL"],
            open_stdin=each.input,
            stop_grace_period=STOP_SECONDS * _NANOSECONDS,
            restart_policy=RestartPolicy(condition="on-failure" if each.restarts else "none"),
            healthcheck=_health(each),
        )
        for each in machine.containers
    ]
    for service in services:
        _wait_task(service)


def _health(container: Container) -> Healthcheck:
    return Healthcheck(
        test=["CMD", *HEALTH.command(container.service)],
        interval=HEALTH.interval * _NANOSECONDS,
        timeout=HEALTH.timeout * _NANOSECONDS,
        retries=HEALTH.retries,
        start_period=HEALTH.start * _NANOSECONDS,
    )


def _wait_healthy(engine: docker.DockerClient, container: str) -> None:
    """Until its health check says so; fails if it ends, or is not well when its time to start is over."""
    until = time.monotonic() + HEALTH.start
    while True:
        found = engine.containers.get(container)
        state: dict[str, Any] = found.attrs["State"]
        if state["Health"]["Status"] == "healthy":
            return
        if not state["Running"] or time.monotonic() > until:
            how = f"is {state['Health']['Status']}" if state["Running"] else f"ended with status {state['ExitCode']}"
            words = found.logs(tail=1).decode(errors="replace").strip()
            raise DeployError(f"{container} {how}" + (f"; its last words: {words}" if words else ""))
        time.sleep(_LOOK_SECONDS)


def _wait_task(service: Any) -> None:
    """Until a task of the service runs, which is when it is well for the first time."""
    until = time.monotonic() + HEALTH.start
    said = "no node takes it"
    while time.monotonic() < until:
        for task in service.tasks():
            status = task["Status"]
            if status["State"] == "running":
                return
            said = status.get("Err") or status["State"]
            if status["State"] in _TASK_STATES:
                raise DeployError(f"{service.name}: {said}")
        time.sleep(_LOOK_SECONDS)
    raise DeployError(f"{service.name} does not run after {HEALTH.start} s: {said}")


def _found(engine: docker.DockerClient, name: str) -> list[Any]:
    """The services, or the containers without any, of that machine."""
    return _services(engine, name) or _containers(engine, name)


def _services(engine: docker.DockerClient, name: str) -> list[Any]:
    return list(engine.services.list(filters=_of(name))) if _in_swarm(engine) else []


def _containers(engine: docker.DockerClient, name: str) -> list[Any]:
    """The one made last, the cpu, comes first. The SDK asks for each by itself, and some may go meanwhile."""
    return list(engine.containers.list(all=True, filters=_of(name), ignore_removed=True))


def _remove(engine: docker.DockerClient, name: str) -> None:
    """All that can be removed, is. What is already going (of a Swarm; by somebody else) is waited for. Raises
    DockerException."""
    for service in _services(engine, name):
        with suppress(NotFound):
            service.remove()
    _clear(lambda: _containers(engine, name), _end, "{} does not go")  # the cpu's end is the machine's
    # A container lets go of it after it is gone from the list.
    _clear(
        lambda: list(engine.volumes.list(filters=_of(name))), lambda volume: volume.remove(), "the volume {} is in use"
    )


def _clear(left: Callable[[], list[Any]], remove: Callable[[Any], None], amiss: str) -> None:
    """Until nothing is left. All is tried before a failure is raised, and looked at once more when the time is over."""
    until, over = time.monotonic() + 2 * STOP_SECONDS, False
    while things := left():
        failed = [error for each in things if (error := _try(partial(remove, each)))]
        if failed or over:
            raise failed[0] if failed else DockerException(amiss.format(things[0].name))
        over = time.monotonic() > until
        time.sleep(_LOOK_SECONDS)


def _end(container: Any) -> None:
    if _SWARM_SERVICE in container.labels:  # the Swarm ends it
        return
    container.stop(timeout=STOP_SECONDS)
    container.remove()


def _try(removal: Callable[[], None]) -> DockerException | None:
    """Why it failed, if not because the thing is gone, is going, or is in use a moment longer."""
    try:
        removal()
    except DockerException as error:
        passing = isinstance(error, APIError) and error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
        return None if passing else error
    return None


def _of(name: str) -> dict[str, Any]:
    """The filter of what belongs to that machine."""
    return {"label": f"{LABEL}={name}"}


def _in_swarm(engine: docker.DockerClient) -> bool:
    return bool(engine.info()["Swarm"].get("ControlAvailable"))


def _container(name: str, service: str) -> str:
    return f"{name}-{service}"


def _volume(name: str) -> str:
    return f"{name}-{VOLUME}"
