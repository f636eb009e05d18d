"""Devices and the object tree.

The tree, in QEMU's places: /machine/soc0/harts[N], and each device at /machine/peripheral/NAME. A device's properties
are what its process was started with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmesh import properties
from vmesh.qdev import external, net, virtio
from vmesh.v1 import gateway_pb2
from vmesh_services.monitor import hotplug
from vmesh_services.monitor.control import Control, Parts, Work
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import DeviceNotFound, QmpError
from vmesh_services.monitor.qmp.handlers.registry import handles
from vmesh_services.monitor.supervisor.supervised import Supervised

_PERIPHERAL = "/machine/peripheral/"
_HIDDEN = ("machine", "name")  # options that say nothing about the device
_EVERY = ("id", "bus", "packed")  # properties that every virtio device has


@dataclass(frozen=True, slots=True)
class Object:
    """A place in the tree: `members` are Objects below it and values."""

    kind: str
    members: Mapping[str, object]


@handles("device_add")
def _device_add(control: Control, arguments: Json) -> object:
    text = flag(str(arguments["driver"]), {key: value for key, value in arguments.items() if key != "driver"})
    request = gateway_pb2.AddDeviceRequest(device=text)
    drive, netdev = str(arguments.get("drive", "")), str(arguments.get("netdev", ""))
    if drive in control.drives:
        request.drives.append(control.drives[drive])
    if netdev in control.netdevs:
        request.netdevs.append(control.netdevs[netdev])
    return Work(_add(control, request), exclusive=True)


def _add(control: Control, request: gateway_pb2.AddDeviceRequest) -> Parts:
    yield from hotplug.add(control.supervisor, request, gateway_pb2.AddDeviceReply())
    return {}


@handles("device_del")
def _device_del(control: Control, arguments: Json) -> object:
    name = str(arguments["id"]).removeprefix(_PERIPHERAL)
    if name not in control.roster.devices:
        raise DeviceNotFound(f"Device '{name[:80]}' not found")
    return Work(_remove(control, name), exclusive=True)


def _remove(control: Control, name: str) -> Parts:
    yield from hotplug.remove(control.supervisor, name)
    return {}


@handles("netdev_add")
def _netdev_add(control: Control, arguments: Json) -> object:
    name = str(arguments["id"])
    if name in control.netdevs:
        raise QmpError(f"Duplicate ID '{name[:80]}' for netdev")
    text = flag(str(arguments["type"]), {key: value for key, value in arguments.items() if key != "type"})
    try:
        net.parse_netdev(text)
    except ValueError as error:
        raise QmpError(str(error)) from error
    control.keep(control.netdevs, name, text)
    return {}


@handles("netdev_del")
def _netdev_del(control: Control, arguments: Json) -> object:
    name = str(arguments["id"])
    if control.netdevs.pop(name, None) is None:
        raise DeviceNotFound(f"Device '{name[:80]}' not found")
    return {}


def flag(first: str, given: Json) -> str:
    """`first,key=value,...` as a flag has it. Raises QmpError for what no flag can say."""
    words = [first]
    for key, value in given.items():
        if isinstance(value, dict | list) or value is None:
            raise QmpError(f"Invalid parameter type for '{key[:80]}', expected: string, number or boolean")
        text = ("on" if value else "off") if isinstance(value, bool) else str(value)
        words.append(f"{key}={text}")
    return properties.join(words)


@handles("qom-list")
def _qom_list(control: Control, arguments: Json) -> object:
    node = _find(control, str(arguments["path"]))
    return [{"name": name, "type": _type(value)} for name, value in node.members.items()]


@handles("qom-get")
def _qom_get(control: Control, arguments: Json) -> object:
    node, name = _find(control, str(arguments["path"])), str(arguments["property"])
    if name not in node.members:
        raise QmpError(f"Property '{node.kind}.{name[:80]}' not found")
    value = node.members[name]
    return f"{str(arguments['path']).rstrip('/')}/{name}" if isinstance(value, Object) else value


@handles("device-list-properties")
def _device_list_properties(control: Control, arguments: Json) -> object:
    name = str(arguments["typename"])
    if name == external.DRIVER:
        names: tuple[str, ...] = ("id", "base", "size", "irq", "command", "compatible")
    elif name in virtio.DRIVERS:
        names = (*virtio.DRIVERS[name].properties, *_EVERY)
    elif name == virtio.CONSOLE:
        names = ("chardev", "id")
    else:
        raise DeviceNotFound(f"Device '{name[:80]}' not found")
    return [{"name": each, "type": "str"} for each in names]


def tree(control: Control) -> Object:
    """The object tree as it is now."""
    devices = {
        service.command.name: Object(service.command.kind, _properties(control, service))
        for service in control.devices()
    }
    harts = {f"harts[{hart}]": _object("rv64-riscv-cpu", {"hartid": hart}) for hart in range(control.harts)}
    parts = {
        "ram": _object("memory-region", {"size": control.supervisor.condition.ram_bytes}),
        "soc0": _object("riscv.hart_array", {"num-harts": control.harts, **harts}),
        "peripheral": _object("container", devices),
    }
    return _object("container", {"machine": _object("virt-machine", parts)})


def _properties(control: Control, service: Supervised) -> Mapping[str, object]:
    shown = {name: value for name, value in control.options(service.command.name).items() if name not in _HIDDEN}
    state = {"realized": service.ready, "epoch": service.epoch, "pid": service.child.pid, "state": service.state}
    return {"type": service.command.kind, **shown, **state}


def _object(kind: str, members: Mapping[str, object]) -> Object:
    return Object(kind, {"type": kind, **members})


def _find(control: Control, path: str) -> Object:
    """The object at an absolute path. Raises DeviceNotFound."""
    node: object = tree(control)
    for name in filter(None, path.split("/")) if path.startswith("/") else [path]:
        node = node.members.get(name) if isinstance(node, Object) else None
    if not isinstance(node, Object):
        raise DeviceNotFound(f"Device '{path[:80]}' not found")
    return node


def _type(value: object) -> str:
    match value:
        case Object():
            return f"child<{value.kind}>"
        case bool():
            return "bool"
        case int():
            return "int"
        case _:
            return "string"
