"""What -device, -drive, -netdev, -fsdev and their like add to a machine; the texts are what QEMU takes behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from vmesh import properties
from vmesh.board.external import External
from vmesh.board.parts import Part
from vmesh.errors import VmeshError
from vmesh.qdev import external, net, share, virtio


@dataclass(frozen=True, slots=True)
class Added:
    """What has been asked for, in the order in which it was."""

    external: tuple[External, ...] = ()
    virtio_devices: tuple[virtio.DeviceOption, ...] = ()
    objects: tuple[str, ...] = ()  # sources of random numbers, which are all the host's
    drives: tuple[virtio.Drive, ...] = ()
    netdevs: tuple[net.Netdev, ...] = ()
    shares: tuple[share.Share, ...] = ()
    snapshot: bool = False

    def parts(self, there: Mapping[int, str] | None = None, cards: int = 0) -> dict[int, Part]:
        """The virtio devices by slot, as virtio.parts has them. Raises ValueError for what does not fit together."""
        made = virtio.parts(self.virtio_devices, self.drives, self.netdevs, self.shares, self.snapshot, there, cards)
        for each in self.virtio_devices:
            source = (each.properties or {}).get("rng", "")
            if source and source not in self.objects:
                raise ValueError(f"-device virtio-rng-device: expected rng=NAME of an -object, there is no '{source}'")
        return made


Asked = TypeVar("Asked", bound=Added)


def device(added: Asked, text: str) -> Asked:
    found = properties.parse(text, "driver")
    driver = found.pop("driver", "")
    if driver == "help":
        usages = [*(virtio.usage(name) for name in virtio.DRIVERS), virtio.CONSOLE_USAGE, external.USAGE]
        raise properties.HelpRequested("\n".join(usages))
    if driver == virtio.CONSOLE:
        return replace(added, virtio_devices=virtio.add_console(added.virtio_devices, found))
    if driver in virtio.DRIVERS:
        return replace(added, virtio_devices=(*added.virtio_devices, virtio.parse_device(driver, found)))
    if driver == external.DRIVER:
        return replace(added, external=(*added.external, external.parse(found)))
    known = ", ".join([*virtio.DRIVERS, virtio.CONSOLE, external.DRIVER])
    why = "the board has no PCI" if driver.endswith("-pci") else f"no device '{driver}' can be added"
    raise ValueError(f"{why}; expected one of {known}")


def drive(added: Asked, text: str) -> Asked:
    return replace(added, drives=(*added.drives, virtio.parse_drive(properties.parse(text, "file"))))


def disk(added: Asked, text: str) -> Asked:
    """-hda and the like: a -drive whose value is nothing but the file."""
    return replace(added, drives=(*added.drives, virtio.parse_drive({"file": text})))


def cdrom(added: Asked, text: str) -> Asked:
    return replace(added, drives=(*added.drives, virtio.parse_drive({"file": text, "readonly": "on"})))


def netdev(added: Asked, text: str) -> Asked:
    return replace(added, netdevs=(*added.netdevs, net.parse_netdev(text)))


def nic(added: Asked, text: str) -> Asked:
    made = net.parse_nic(text, len(added.netdevs))
    if made is None:
        return added
    card = virtio.parse_device(net.DRIVER, made[1])
    return replace(added, netdevs=(*added.netdevs, made[0]), virtio_devices=(*added.virtio_devices, card))


def fsdev(added: Asked, text: str) -> Asked:
    return replace(added, shares=(*added.shares, share.parse(properties.parse(text, "driver"))))


def virtfs(added: Asked, text: str) -> Asked:
    shared, tag = share.parse_virtfs(properties.parse(text, "driver"))
    made = virtio.DeviceOption("virtio-9p-device", properties={"fsdev": shared.name, "mount_tag": tag})
    return replace(added, shares=(*added.shares, shared), virtio_devices=(*added.virtio_devices, made))


def source(added: Asked, text: str) -> Asked:
    """-object: a source of random numbers, which are all the host's."""
    found = properties.parse(text, "qom-type")
    kind, name = found.pop("qom-type", ""), found.pop("id", "")
    if kind not in ("rng-random", "rng-builtin"):
        raise ValueError("expected rng-random or rng-builtin: RAM is -m, keys are where they are used, threads its own")
    if not name or found.pop("filename", "/dev/urandom") not in ("/dev/urandom", "/dev/random", "/dev/hwrng") or found:
        raise ValueError(f"expected {kind},id=NAME, the host's random numbers")
    return replace(added, objects=(*added.objects, name))


def follow(added: Added, flag: str, text: str) -> Added:
    """One of FLAGS. Raises ValueError, which says the flag and its text, and HelpRequested."""
    try:
        return FLAGS[flag](added, text)
    except (ValueError, VmeshError) as error:
        raise ValueError(f"{flag} {text}: {error}") from error
    except OSError as error:  # of a file that it names
        raise ValueError(f"{flag} {text}: {error.strerror}") from error


#: Those of which a machine that runs takes more.
FLAGS: Mapping[str, Callable[[Added, str], Added]] = {
    "-drive": drive,
    "-netdev": netdev,
    "-fsdev": fsdev,
    "-device": device,
}
