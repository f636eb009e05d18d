"""What the cpu records of the bus while somebody wants to see it (proto/vmesh/v1/trace.proto).

Native code then leaves every access to a device to Python: `Tracer` does what native code would have done, and records
it. While nobody looks, native code has its tables, and nothing here is called but to find that out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vmesh import trace
from vmesh.time import host_ns
from vmesh.trace import Recorder
from vmesh.v1 import bus_pb2, trace_pb2

from ..bus.device import BusDevice
from .harts import Harts
from .state import ACCESS_DONE, DOORBELL_VALUES, RING_ENTRIES, SHADOW_SHIFT


class Tracer:
    """Switched by the service's thread; the rest is of the harts' threads, and `update` of any."""

    def __init__(self, recorder: Recorder, harts: Harts) -> None:
        self._recorder = recorder
        self._harts = harts
        self._devices: dict[int, BusDevice] = {}

    @property
    def on(self) -> bool:
        return self._recorder.on

    def switch(self, devices: Iterable[BusDevice], on: bool) -> None:
        """Take the devices' accesses from native code, or give them back."""
        if on:
            self._devices = {device.number: device for device in devices}
            for device in self._devices.values():
                device.seen = self._update
                self._harts.leave_to_python(device.number)
        else:
            for device in self._devices.values():
                self._harts.leave_to_native(device.number)
                device.seen = None

    def access(self, hart: Any, number: int, sequence: int) -> bool:
        """Make an access as native code would, and record it: a shadow's read, a posted write. False: it is to wait.

        `sequence` is the next one of this hart and device. A posted write is in the ring then, and a doorbell waits to
        be flushed (`rings`).
        """
        device = self._devices.get(number)
        if device is None:
            return False
        region, offset, size = hart.access_region, hart.access_offset, hart.access_size
        table = device.tables[region]
        kinds = table.kinds_of(offset)
        if not hart.access_write:
            if not (kinds >> SHADOW_SHIFT) & size:
                return False
            hart.access_value = value = table.value(offset, size)
            hart.count_shadow += 1
            self.record(hart, number, trace_pb2.TRACE_SHADOW, host_ns(), value=value)
        else:
            if not kinds & size or hart.ring_count == RING_ENTRIES:
                return False
            value = hart.access_value
            if not hart.ring_count:
                hart.ring_since = hart.stop_at = 0  # it goes out at the next look
            entry = hart.ring[hart.ring_count]
            entry.device, entry.region, entry.offset, entry.size, entry.value = number, region, offset, size, value
            hart.ring_count += 1
            hart.count_posted += 1
            kind = trace_pb2.TRACE_DOORBELL if self.rings(hart, number) else trace_pb2.TRACE_POSTED
            waiting = sum(hart.ring[index].device == number for index in range(hart.ring_count))
            self.record(hart, number, kind, host_ns(), value=value, sequence=sequence + waiting - 1)
        hart.access_state = ACCESS_DONE
        return True

    def rings(self, hart: Any, number: int) -> bool:
        """Whether the access is one to the device's doorbell, which does not wait for the end of a time slice."""
        place = (hart.access_region, hart.access_offset, hart.access_size)
        device = self._devices.get(number)
        return device is not None and device.doorbell == place and hart.access_value < DOORBELL_VALUES

    def record(self, hart: Any, number: int, kind: trace_pb2.TraceKind.ValueType, time_ns: int, **fields: Any) -> None:
        """The access that a hart makes."""
        device = self._devices.get(number)
        if device is not None:
            regions = device.description.regions
            fields["device"] = device.name
            fields["register"] = trace.register_name(regions, hart.access_region, hart.access_offset)
        self._recorder.add(
            kind,
            time_ns,
            hart=hart.mhartid,
            write=bool(hart.access_write),
            size=hart.access_size,
            pc=hart.pc,
            **fields,
        )

    def batch(self, hart: Any, number: int, time_ns: int, sequence: int, count: int) -> None:
        """Posted writes were sent."""
        device = self._devices.get(number)
        self._recorder.add(
            trace_pb2.TRACE_BATCH,
            time_ns,
            duration_ns=host_ns() - time_ns,
            device=device.name if device is not None else "",
            hart=hart.mhartid,
            sequence=sequence,
            size=count,
            write=True,
        )

    def _update(self, device: BusDevice, update: bus_pb2.DeviceUpdate) -> None:
        text = trace.describe(update, device.description.regions)
        self._recorder.add(trace_pb2.TRACE_UPDATE, host_ns(), device=device.name, update=update.sequence, text=text)
