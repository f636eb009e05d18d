"""Devices and the object tree (QEMU, qapi/qdev.json, qom.json, net.json)."""

from __future__ import annotations

from vmesh_services.monitor.qmp.types import (
    ANY,
    STR,
    Array,
    Command,
    Enum,
    Event,
    Member,
    Module,
    Struct,
    optional,
)

_PROPERTY_INFO = Struct(
    "ObjectPropertyInfo",
    (
        Member("name", STR),
        Member("type", STR, "child<KIND> for an object below, otherwise the type of the value"),
        optional("description", STR),
        optional("default-value", ANY),
    ),
)
_NETDEV = Struct(
    "Netdev",
    (
        Member("id", STR),
        Member("type", Enum("NetClientDriver", ("stream", "tap", "user"))),
    ),
    "The other members are those of `-netdev` (docs/cli.md).",
    open=True,
)

MODULE = Module(
    "Devices",
    commands=(
        Command(
            "device_add",
            "Add a device while the guest runs. The other members are those of `-device` (docs/cli.md).",
            Struct("DeviceAddArguments", (Member("driver", STR), optional("bus", STR), optional("id", STR)), open=True),
        ),
        Command(
            "device_del",
            "Remove a device; DEVICE_DELETED tells when the guest has let go of it.",
            Struct("DeviceDelArguments", (Member("id", STR, "its name, or its path in the object tree"),)),
        ),
        Command("netdev_add", "Describe what a card that is added later is plugged into.", _NETDEV),
        Command(
            "netdev_del",
            "Forget what `netdev_add` described.",
            Struct("NetdevDelArguments", (Member("id", STR),)),
        ),
        Command(
            "qom-list",
            "What is below a place in the object tree: /machine, its devices, their properties.",
            Struct("QomListArguments", (Member("path", STR),)),
            Array(_PROPERTY_INFO),
        ),
        Command(
            "qom-get",
            "The value of a property.",
            Struct("QomGetArguments", (Member("path", STR), Member("property", STR))),
            ANY,
        ),
        Command(
            "device-list-properties",
            "What `-device` and device_add take for a driver.",
            Struct("DeviceListPropertiesArguments", (Member("typename", STR),)),
            Array(_PROPERTY_INFO),
        ),
    ),
    events=(
        Event(
            "DEVICE_DELETED",
            "A device that was to be removed is gone.",
            Struct("DeviceDeletedEvent", (optional("device", STR), Member("path", STR))),
        ),
    ),
)
