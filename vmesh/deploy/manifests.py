"""The description in the words of compose files, Swarm stacks and Kubernetes. Plain data, to be written as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmesh.deploy.description import HEALTH, MEMORY, MONITOR, RUNTIME, STOP_SECONDS, USER, VOLUME, Container, Deployment

NODE_LABEL = "vmesh"  # of the Swarm nodes that may have machines
# Kubernetes gives a volume to a group, and a folder that others may enter is refused: machines are in one of their own.
_POD_RUNTIME = f"{RUNTIME}/machines"
_BOUNDS = "noexec,nosuid,nodev"

Manifest = dict[str, Any]


def tmpfs(ram: str) -> Manifest:
    """The options of the local volume driver for what all share."""
    return {"type": "tmpfs", "device": "tmpfs", "o": f"size={ram},uid={USER},gid={USER},mode=0700,{_BOUNDS}"}


def compose(machine: Deployment) -> Manifest:
    """A compose file (compose specification)."""
    return {
        "services": {each.service: _compose_service(machine, each) for each in machine.containers},
        "volumes": {VOLUME: {"driver_opts": tmpfs(machine.ram)}},
    }


def stack(machine: Deployment, tls: Mapping[str, str] | None = None) -> Manifest:
    """A stack (compose file 3.8) for `docker stack deploy`: all on one node that has the label, as they share memory.

    `tls` are the secrets with the keys of the gateway, by file: then it can be reached at a port of its node.
    """
    stacked: Manifest = {
        "version": "3.8",
        "services": {each.service: _stack_service(machine, each) for each in machine.containers},
        "volumes": {VOLUME: {"driver_opts": tmpfs(machine.ram)}},
    }
    if tls:
        mounted = [
            {"source": secret, "target": file, "uid": str(USER), "gid": str(USER), "mode": 0o400}
            for file, secret in tls.items()
        ]
        for service in (MEMORY, MONITOR):  # memory looks at the keys when it reads its flags
            stacked["services"][service]["secrets"] = mounted
        stacked["services"][MONITOR]["networks"] = ["node"]
        stacked["networks"] = {"node": {"external": True, "name": "host"}}
        stacked["secrets"] = {secret: {"external": True} for secret in tls.values()}
    return stacked


def kubernetes(machine: Deployment) -> Manifest:
    """A Deployment of one pod: its containers share memory, and together are one machine.

    What is killed is started again, here all of them: without its memory or cpu a machine ends, and begins anew.
    """
    labels = {"app.kubernetes.io/name": "vmesh"}
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_pod_container(machine, each) for each in machine.containers],
        "volumes": [
            {"name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": f"{machine.ram.upper()}i"}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "vmesh", "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _common(machine: Deployment, container: Container) -> Manifest:
    made: Manifest = {
        "image": machine.image,
        "command": container.command,
        "read_only": True,
        "cap_drop": ["ALL"],
        "volumes": [f"{VOLUME}:{RUNTIME}"],
        "tmpfs": ["/tmp"],
        "stop_grace_period": f"{STOP_SECONDS}s",
        "healthcheck": {
            "test": ["CMD", *HEALTH.command(container.service)],
            "interval": f"{HEALTH.interval}s",
            "timeout": f"{HEALTH.timeout}s",
            "retries": HEALTH.retries,
            "start_period": f"{HEALTH.start}s",
        },
    }
    if container.input:
        made["stdin_open"] = True
    return made


def _compose_service(machine: Deployment, container: Container) -> Manifest:
    made = _common(machine, container)
    made |= {"network_mode": "none", "security_opt": ["no-new-privileges:true"]}
    if container.restarts:
        made["restart"] = "on-failure"
    if all(not well for well in container.after.values()):
        made |= {"depends_on": list(container.after)} if container.after else {}
    else:
        condition = {True: "service_healthy", False: "service_started"}
        made["depends_on"] = {name: {"condition": condition[well]} for name, well in container.after.items()}
    return made


def _stack_service(machine: Deployment, container: Container) -> Manifest:
    """Swarm knows no order of start, which no service needs, and has no containers without any network."""
    made = _common(machine, container)
    made["volumes"] += [{"type": "tmpfs", "target": path} for path in made.pop("tmpfs")]  # `tmpfs` is ignored
    return made | {
        "deploy": {
            "replicas": 1,
            "placement": {"constraints": [f"node.labels.{NODE_LABEL} == true"]},
            "restart_policy": {"condition": "on-failure" if container.restarts else "none", "delay": "0s"},
        }
    }


def _pod_container(machine: Deployment, container: Container) -> Manifest:
    probe = {"exec": {"command": ["vmesh", "health", *HEALTH.command(container.service)[2:-2]]}, "timeoutSeconds": 10}
    made: Manifest = {
        "name": container.service,
        "image": machine.image,
        "args": container.command,
        "env": [{"name": "VMESH_RUNTIME", "value": _POD_RUNTIME}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": VOLUME, "mountPath": RUNTIME},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "startupProbe": probe | {"periodSeconds": HEALTH.interval, "failureThreshold": HEALTH.start // HEALTH.interval},
        "livenessProbe": probe | {"periodSeconds": HEALTH.hold, "failureThreshold": HEALTH.retries},
    }
    if container.input:
        made["stdin"] = True
    return made
