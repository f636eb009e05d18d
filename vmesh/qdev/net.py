"""`-netdev` and `-nic`: what a network card is plugged into, from the flag to the card's command line.

Source: QEMU's manual page. What a netdev may be is in vmesh/netdev/options.py, which only a machine that has one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmesh import properties
from vmesh.netdev import USAGE
from vmesh.qdev import names

if TYPE_CHECKING:
    from vmesh.netdev.options import Options

DRIVER = "virtio-net-device"
CARD_PROPERTIES = ("netdev", "mac", "host_mtu")
CARD_USAGE = ",netdev=NAME[,mac=XX:XX:XX:XX:XX:XX][,host_mtu=BYTES]"
NETDEV_USAGE = f"{USAGE}; each with id=NAME"

_FIRST_MAC = 0x52_54_00_12_34_56  # QEMU's; the next card has the next one


@dataclass(frozen=True, slots=True)
class Netdev:
    """What -netdev describes, and the name by which a card asks for it."""

    name: str
    asked: Options


def parse_netdev(text: str) -> Netdev:
    """Raises ValueError."""
    from vmesh.netdev import options

    name, rest = _without(text, "id")
    if not names.is_name(name):
        raise ValueError(f"expected {names.USAGE}, got {names.said(name)}")
    return Netdev(name, options.parse(rest))


def parse_nic(text: str, number: int) -> tuple[Netdev, dict[str, str]] | None:
    """The netdev of a -nic, the `number`th, and the properties of its card; None for `none`. Raises ValueError."""
    if text == "none":
        return None
    name, rest = _without(text, "id")
    mac, rest = _without(rest, "mac")
    model, rest = _without(rest, "model")
    if model not in ("", DRIVER, "virtio"):
        raise ValueError(f"expected model={DRIVER}, the card that this board has, got '{model}'")
    netdev = parse_netdev(properties.join([*properties.split(rest), f"id={name or f'nic{number}'}"]))
    return netdev, {"netdev": netdev.name} | ({"mac": mac} if mac else {})


def card_arguments(properties: Mapping[str, str], netdevs: Mapping[str, Netdev], number: int) -> list[str]:
    """What the card's process is told; it is the `number`th of the machine. Raises ValueError."""
    from vmesh.netdev.port import mac_address

    name = properties.get("netdev", "")
    netdev = netdevs.get(name)
    if netdev is None:
        there = f"there is no '{name}'" if name else "got none"
        raise ValueError(f"{DRIVER}: expected netdev=NAME of a -netdev with id=NAME, {there}")
    mac = properties.get("mac") or (_FIRST_MAC + number).to_bytes(6, "big").hex(":")
    mac_address(mac)
    arguments = ["--netdev", str(netdev.asked), "--mac", mac]
    if mtu := properties.get("host_mtu", ""):
        if not (mtu.isascii() and mtu.isdecimal() and 68 <= int(mtu) <= 65535):
            raise ValueError(f"host_mtu={mtu}: expected 68 to 65535")
        arguments += ["--host-mtu", mtu]
    return arguments


def _without(text: str, key: str) -> tuple[str, str]:
    """The value of a property, empty if it is not there, and the text of the others."""
    value, others = "", []
    for part in properties.split(text):
        found, equals, content = part.partition("=")
        if equals and found == key:
            value = content
        else:
            others.append(part)
    return value, properties.join(others)
