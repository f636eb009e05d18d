"""What `-netdev` may ask for, in QEMU's words (qemu-system-riscv64(1)), and its text. An unknown property is refused.

    user[,hostfwd=tcp|udp:[ADDRESS]:PORT-[ADDRESS]:PORT][,net=...][,host=...][,dhcpstart=...][,dns=...][,ipv6=on|off]
    stream,addr.type=unix,addr.path=PATH[,server=on|off][,reconnect=SECONDS][,guest-time=on|off]
    tap,ifname=NAME[,script=no][,downscript=no][,vnet_hdr=on|off]

`guest-time` is not QEMU's: frames carry guest time (frames.py), so both ends have to be machines with it, or hubs.
`id=` is between the flag and the `-device` that names it, and known to neither.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmesh import properties
from vmesh.netdev import USAGE

Properties = Sequence[tuple[str, str]]
"""Keys and values in their order; a key may come more than once."""

_NETWORK = "10.0.2.0/24"  # QEMU's
#: Places in the network of `user`, as QEMU has them.
HOST, DNS, GUEST = 2, 3, 15

_FORWARD = re.compile(r"(tcp|udp)?:([^:]*):(\d+)-([^:]*):(\d+)")
_PATH_LIMIT = 107  # bytes: unix(7)
_NAME_LIMIT = 15  # bytes of an interface's name: IFNAMSIZ in netdevice(7), less one


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to one of the guest; an empty `address` is all of the host's."""

    protocol: str
    address: str
    port: int
    guest_port: int


@dataclass(frozen=True, slots=True)
class User:
    """The host's network by passt. The guest's `network`, and in it the host, the guest and the name server."""

    network: str = _NETWORK
    host: str = ""  # empty: QEMU's default in that network, the second address; likewise the 15th and the third
    guest: str = ""
    dns: str = ""
    ipv6: bool = True
    forwards: tuple[Forward, ...] = ()

    def address(self, given: str, place: int) -> str:
        """`given`, or the address at `place` in the network."""
        return given or str(ipaddress.IPv4Network(self.network)[place])

    @property
    def netmask(self) -> str:
        return str(ipaddress.IPv4Network(self.network).netmask)

    def __str__(self) -> str:
        parts = ["user", f"net={self.network}"]
        parts += [f"{key}={value}" for key, value in self._addresses().items() if value]
        parts += [] if self.ipv6 else ["ipv6=off"]
        parts += [f"hostfwd={each.protocol}:{each.address}:{each.port}-:{each.guest_port}" for each in self.forwards]
        return properties.join(parts)

    def _addresses(self) -> dict[str, str]:
        return {"host": self.host, "dhcpstart": self.guest, "dns": self.dns}


@dataclass(frozen=True, slots=True)
class Stream:
    """A Unix stream socket, listened at or connected to; tried again after `reconnect` seconds."""

    path: str
    server: bool = False
    reconnect: float = 1.0
    guest_time: bool = False

    def __str__(self) -> str:
        server = "server=on" if self.server else f"reconnect={self.reconnect:g}"
        time = ["guest-time=on"] if self.guest_time else []
        return properties.join(["stream", "addr.type=unix", f"addr.path={self.path}", server, *time])


@dataclass(frozen=True, slots=True)
class Tap:
    """An interface of the host; with `offload` checksums and segmentation are left to it."""

    name: str
    offload: bool = True

    def __str__(self) -> str:
        offload = [] if self.offload else ["vnet_hdr=off"]
        return properties.join(["tap", f"ifname={self.name}", "script=no", *offload])


Options = User | Stream | Tap


def parse(text: str) -> Options:
    """What `text` asks for. Raises ValueError."""
    (_, kind), *asked = properties.pairs(text, "type")
    match kind:
        case "user":
            return _user(asked)
        case "stream":
            return _stream(asked)
        case "tap":
            return _tap(asked)
        case other:
            raise ValueError(f"expected a netdev of {USAGE}, got '{other}'")


def _user(asked: Properties) -> User:
    found = {"net": _NETWORK}
    forwards: list[Forward] = []
    guests: list[str] = []  # the addresses that forwards name
    ipv6 = True
    for key, value in asked:
        match key:
            case "hostfwd":
                forward, guest = _forward(value)
                forwards.append(forward)
                guests += [guest] if guest else []
            case "net" | "host" | "dhcpstart" | "dns":
                found[key] = value
            case "ipv6":
                ipv6 = _on_off(key, value)
            case "ipv4" | "restrict" if _on_off(key, value) == (key == "ipv4"):
                pass  # as it is anyway
            case _:
                raise ValueError(f"no property '{key}={value}' of user; expected {USAGE}")
    network = ipaddress.IPv4Network(found["net"], strict=False)
    if network.num_addresses < 32:
        raise ValueError(f"expected a network of at least 32 addresses, got {network}")
    for key in ("host", "dhcpstart", "dns"):
        if key in found and ipaddress.IPv4Address(found[key]) not in network:
            raise ValueError(f"expected {key} in {network}, got {found[key]}")
    host, guest, dns = (found.get(key, "") for key in ("host", "dhcpstart", "dns"))
    made = User(str(network), host, guest, dns, ipv6, tuple(forwards))
    there = ipaddress.IPv4Address(made.address(guest, GUEST))
    for address in guests:
        if ipaddress.IPv4Address(address) != there:
            raise ValueError(f"hostfwd: expected the guest's address, {there}, or none, got '{address}'")
    return made


def _forward(text: str) -> tuple[Forward, str]:
    """And the guest's address, if it is named."""
    found = _FORWARD.fullmatch(text)
    if not found:
        raise ValueError(f"expected hostfwd=[tcp|udp]:[ADDRESS]:PORT-[ADDRESS]:PORT, got '{text}'")
    protocol, address, port, guest, guest_port = found.groups()
    if address:
        ipaddress.IPv4Address(address)
    if not (0 < int(port) < 1 << 16 and 0 < int(guest_port) < 1 << 16):
        raise ValueError(f"expected ports of 1 to 65535, got {port} and {guest_port}")
    return Forward(protocol or "tcp", address, int(port), int(guest_port)), guest


def _stream(asked: Properties) -> Stream:
    path, server, reconnect, guest_time = "", False, 1.0, False
    for key, value in asked:
        match key:
            case "addr.type" if value != "unix":
                raise ValueError(f"expected addr.type=unix, got '{value}'")
            case "addr.type":
                pass
            case "addr.path":
                path = value
            case "server":
                server = _on_off(key, value)
            case "guest-time":
                guest_time = _on_off(key, value)
            case "reconnect" | "reconnect-ms":
                reconnect = float(value) / (1000 if key == "reconnect-ms" else 1)
                if not 0 < reconnect <= 3600:
                    raise ValueError(f"expected {key} above 0 and at most an hour, got '{value}'")
            case _:
                raise ValueError(f"no property '{key}' of stream; expected {USAGE}")
    if not path or len(path.encode()) > _PATH_LIMIT:
        raise ValueError(f"expected addr.path=PATH of at most {_PATH_LIMIT} bytes, got '{path}'")
    return Stream(str(Path(path).absolute()), server, reconnect, guest_time)


def _tap(asked: Properties) -> Tap:
    name, offload = "", True
    for key, value in asked:
        match key:
            case "ifname":
                name = value
            case "script" | "downscript" if value == "no":
                pass
            case "script" | "downscript":
                raise ValueError(f"expected {key}=no, got '{value}': set the interface up yourself")
            case "vnet_hdr":
                offload = _on_off(key, value)
            case _:
                raise ValueError(f"no property '{key}' of tap; expected {USAGE}")
    if not 0 < len(name.encode()) <= _NAME_LIMIT or set(name) & set("/ \t\n\0%"):
        raise ValueError(f"expected ifname=NAME of at most {_NAME_LIMIT} bytes, got '{name}'")
    return Tap(name, offload)


def _on_off(key: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise ValueError(f"expected {key}=on or {key}=off, got '{value}'")
    return value == "on"
