"""The states of all devices: any message of the right type is refused, or taken and lived with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.unit.device_harness import Bench, FakeRuntime
from tests.unit.test_virtio_garbage import DEVICES as VIRTIO
from tests.unit.virtio_driver import guest_memory
from vmesh import errors
from vmesh.device import BusError, Device
from vmesh.v1.devices_pb2 import Ns16550aState, VirtioConsoleState, VirtioRngState
from vmesh_services.devices.fw_cfg.device import FwCfg
from vmesh_services.devices.fw_cfg.items import items
from vmesh_services.devices.goldfish_rtc.device import GoldfishRtc
from vmesh_services.devices.ns16550a.device import Ns16550a
from vmesh_services.devices.sifive_test.device import SifiveTest

DEVICES: dict[str, Callable[[Any, Path], Device]] = {
    "uart": lambda runtime, folder: Ns16550a(runtime, 0x1000_0000, 10, "null"),
    "rtc": lambda runtime, folder: GoldfishRtc(runtime, 0x10_1000, 11),
    "test": lambda runtime, folder: SifiveTest(runtime, 0x10_0000),
    "fw_cfg": lambda runtime, folder: FwCfg(runtime, 0x1010_0000, items(1, {"opt/a": b"abc"}), bytes(16)),
    **VIRTIO,
}
NUMBER = some.one_of(
    some.integers(0, 20),
    some.sampled_from((0x7F, 0xFF, 0x100, 0xFFFF, 0x1_0000, (1 << 32) - 1, 1 << 32, 1 << 34, 1 << 63, (1 << 64) - 1)),
    some.integers(0, (1 << 64) - 1),
)
_SIGNED = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
_BITS = {FieldDescriptor.CPPTYPE_INT32: 32, FieldDescriptor.CPPTYPE_UINT32: 32}
#: A change: which field (of those there are, modulo their number), what becomes of it.
CHANGE = some.tuples(some.integers(0, 1000), NUMBER, some.binary(max_size=20))


def places(message: Message) -> list[tuple[Message, FieldDescriptor, int]]:
    """All scalars of a message and of those in it, with their index where they are repeated."""
    found = []
    assert isinstance(message.DESCRIPTOR, Descriptor)
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            found += [(message, field, -1)]
            for index, each in enumerate(value):
                found += places(each) if field.message_type else [(message, field, index)]
        elif field.message_type:
            found += places(value)
        else:
            found.append((message, field, -1))
    return found


def change(message: Message, which: int, number: int, data: bytes) -> None:
    if not (all_places := places(message)):
        return
    owner, field, index = all_places[which % len(all_places)]
    if field.is_repeated and index < 0:
        elements = getattr(owner, field.name)
        if number % 2 and elements:
            del elements[number % len(elements) :]
        elif field.message_type:
            elements.add()
        else:
            elements.append(scalar(field, number, data))
    elif field.is_repeated:
        getattr(owner, field.name)[index] = scalar(field, number, data)
    else:
        setattr(owner, field.name, scalar(field, number, data))


def scalar(field: FieldDescriptor, number: int, data: bytes) -> int | bool | bytes:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return data * (number % 3 * 500 + 1)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return bool(number & 1)
    bits = _BITS.get(field.cpp_type, 64)
    value = number % (1 << bits)
    return value - (1 << bits) if field.cpp_type in _SIGNED and value >> bits - 1 else value


def live(bench: Bench) -> None:
    """What the loop, the harts and the monitor may do with a device."""
    device = bench.device
    region = device.regions[0]
    device.resume()
    for offset in range(0, min(region.size, 0x110), bench.size):
        with suppress(BusError):
            device.read(0, offset, bench.size)
        with suppress(BusError):
            device.write(0, offset, bench.size, offset & 0xFF)
    device.flush()
    for _ in range(3):
        device.settle()
        device.commit()
    runtime: Any = device.runtime
    for name in list(runtime.timers):
        if name in runtime.timers:
            runtime.fire(name)
    bench.wires()
    device.pause()


@pytest.mark.parametrize("name", DEVICES)
def test_any_state_is_refused_or_lived_with(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        device = DEVICES[name](FakeRuntime(), Path(folder))
        bench = Bench(device, 1 if name == "uart" else 4)
        device.memory = guest_memory(Path(folder))
        device.attached()
        good = device.save().SerializeToString()

        @settings(max_examples=60, deadline=None)
        @given(some.lists(CHANGE, min_size=1, max_size=8))
        def given_changes(changes: list[tuple[int, int, bytes]]) -> None:
            message = device.state.FromString(good)
            for each in changes:
                change(message, *each)
            before = device.save()
            try:
                device.check(message, device.state_version)
            except errors.BadState:
                assert device.save() == before
                return
            device.load(message)
            device.check(device.save(), device.state_version)
            live(bench)
            device.check(device.save(), device.state_version)
            device.reset()

        given_changes()


def rng(**fields: Any) -> Callable[[], Message]:
    """A state of a device with one queue of 64, in which all that follows from `fields` is right."""

    def make() -> Message:
        message = VirtioRngState()
        message.virtio.queues.add(size=64)
        queue = message.virtio.queues[0]
        for name, value in fields.items():
            setattr(queue if name in ("size", "ready", "position") else message.virtio, name, value)
        return message

    return make


BAD: dict[str, tuple[str, Callable[[], Message]]] = {
    "uart: FIFO bits without FIFOs": ("uart", lambda: Ns16550aState(fcr=0xC0)),
    "uart: two bytes without FIFOs": ("uart", lambda: Ns16550aState(receive=b"12")),
    "uart: ier": ("uart", lambda: Ns16550aState(ier=0x10)),
    "status": ("rng", rng(status=0x20)),
    "interrupts": ("rng", rng(interrupt_status=4)),
    "features that are not offered": ("rng", rng(status=0xF, driver_features=1 << 50)),
    "a queue before the features": ("rng", rng(status=3, ready=True)),
    "a queue that is too large": ("rng", rng(status=0xB, ready=True, size=128)),
    "a queue of no power of two": ("rng", rng(status=0xB, ready=True, size=3)),
    "a place behind the ring": ("rng", rng(status=0xB, position=1 << 16)),
    "a place behind a packed ring": ("rng", rng(status=0xB, driver_features=1 << 34, ready=True, position=64)),
    "console: more given than there is": ("console", lambda: VirtioConsoleState(given=1)),
}


@pytest.mark.parametrize(("name", "make"), BAD.values(), ids=BAD)
def test_what_no_guest_can_bring_about_is_refused(name: str, make: Callable[[], Message], tmp_path: Path) -> None:
    device = DEVICES[name](FakeRuntime(), tmp_path)
    device.reset()
    with pytest.raises(errors.BadState):
        device.check(make(), 1)
