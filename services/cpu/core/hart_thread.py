"""A hart's thread: native code most of the time, and the bus accesses that native code asks for."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from vmesh import errors, scheduling
from vmesh.time import host_ns
from vmesh.v1 import bus_pb2 as messages
from vmesh.v1.trace_pb2 import TRACE_SYNC, TRACE_UNMAPPED

from ..bus.link import Counters, Ending, Link, NoAnswer
from ..engine import Surroundings
from .harts import Harts
from .pages import Pages
from .regions import Regions
from .state import (
    ACCESS_DONE,
    ACCESS_FAILED,
    ACCESS_NONE,
    DEBUG_NONE,
    DEVICE_UNMAPPED,
    EXIT_ACCESS,
    EXIT_DRAIN,
    EXIT_FLUSH,
    EXIT_PAGE,
    EXIT_REGIONS,
    EXIT_STOP,
)
from .trace import Tracer

#: Harts that connect to all devices before they run, which takes some milliseconds; others do when they need one.
_CONNECTED = 8
#: Between two looks whether all harts stand still, in seconds; one that comes to the gate is seen at once.
STANDING_LOOK = 0.01


class Gate:
    """Where harts wait while the machine is paused."""

    def __init__(self, harts: int, closed: bool) -> None:
        self._condition = threading.Condition()
        self._harts = harts
        self._closed = closed
        self._parked = 0
        self._held: frozenset[int] = frozenset()
        self._at_once = False
        self.settling = False  # the machine is to stand still: what harts have posted is taken, not waited with
        self.ending = threading.Event()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def halts(self) -> bool:
        """Whether harts that wait for a device stand still, as if they were here."""
        return self._closed and self._at_once

    def close(self, *, at_once: bool = False, settling: bool = False) -> None:
        with self._condition:
            self._closed = True
            self._at_once, self.settling = at_once, settling

    def open(self) -> None:
        with self._condition:
            self._closed = self.settling = False
            self._condition.notify_all()

    def hold(self, harts: Iterable[int]) -> None:
        """These harts stay here though the gate is open, and no others do."""
        with self._condition:
            self._held = frozenset(harts)

    def close_behind(self, hart: int) -> None:
        """A hart has stopped by itself: it does not go on before it is let go of, and all others come here."""
        with self._condition:
            self._closed = True
            self._held |= {hart}

    def bars(self, hart: int) -> bool:
        """Whether a hart has to wait here."""
        return self._closed or hart in self._held

    def end(self) -> None:
        self.ending.set()
        self.hold(())
        self.open()

    def wait_parked(self, timeout: float, elsewhere: Callable[[], int] = lambda: 0) -> bool:
        """Waits until every hart is at the gate, or stands still ``elsewhere``, which gives how many do."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while self._parked + elsewhere() < self._harts:
                if time.monotonic() > deadline:
                    return False
                self._condition.wait(STANDING_LOOK)
            return True

    def park(self, hart: int) -> None:
        """A hart waits here until the gate opens for it."""
        with self._condition:
            self._parked += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self.bars(hart))
            self._parked -= 1

    def leave(self) -> None:
        """A hart ends and counts as parked from now on."""
        with self._condition:
            self._parked += 1
            self._condition.notify_all()


class HartThread(threading.Thread):
    """Runs hart ``number`` of a machine with ``devices``, by their numbers. ``connect`` makes its link to one, given
    the eventfd that ends its waits; ``stopped`` is called, from this thread, when it has stopped for the debugger."""

    def __init__(
        self,
        harts: Harts,
        number: int,
        gate: Gate,
        connect: Callable[[int, Counters, int], Link],
        stopped: Callable[[], None],
        regions: Regions | None,
        devices: Sequence[int],
        tracer: Tracer,
        around: Surroundings,
    ) -> None:
        super().__init__(name=f"hart {number}", daemon=True)
        self.counters = Counters()
        self.waits_for = ""
        self.waits_for_page = False
        self._harts = harts
        self._number = number
        self._hart: Any = harts.hart[number]
        self._gate = gate
        self._connect = connect
        self._stopped = stopped
        self._regions = regions
        self._devices = devices
        self._tracer = tracer
        self._around = around
        self._links: dict[int, Link] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake).atexit = False
        self.pages = Pages(partial(around.dial_memory, number, self._wake), harts.is_present)

    def wake(self) -> None:
        """From any thread: end this hart's wait for a device, which may have come back, or for a page."""
        os.eventfd_write(self._wake, 1)

    def forget(self, device: int) -> None:
        """The device leaves the board. From the service's thread, while this one is at the gate with nothing posted."""
        link = self._links.pop(device, None)
        if link is not None:
            link.close()

    def run(self) -> None:
        scheduling.usual_slices()
        try:
            if self._number < _CONNECTED:
                self._carry_out(self._connect_all)
            while not self._gate.ending.is_set():
                self._carry_out(self._turn)
        except (Ending, errors.LifelineEnded):
            pass
        except errors.VmeshError as error:
            self._around.failed(f"hart {self._number} stopped: {error}")
        finally:
            for link in self._links.values():
                link.close()
            self.pages.close()
            self._gate.leave()

    def _carry_out(self, part: Callable[[], None]) -> None:
        """The boundary: what nobody foresaw stops the machine. This hart is between two instructions then, and tries
        the same again when it is let go of."""
        try:
            part()
        except (Ending, errors.VmeshError):
            raise
        except Exception as error:
            self._gate.close_behind(self._number)
            self._harts.stop()
            self._around.stumbled(f"hart {self._number} cannot go on: {errors.said(error)}")
            self._gate.park(self._number)

    def _connect_all(self) -> None:
        for device in self._devices:
            with self._waiting_for(device):
                self._link(device).connect()

    def _turn(self) -> None:
        """To the gate, or into native code once."""
        if self._gate.bars(self._number) and self._hart.access_state == ACCESS_NONE:
            self._hart.left_at = 0
            self._drain()
            self._gate.park(self._number)
            return
        reason = self._harts.run(self._number)
        if self._hart.debug_reason != DEBUG_NONE:
            self._gate.close_behind(self._number)
            self._harts.stop()
            self._stopped()
        if reason == EXIT_ACCESS:
            self._access()
        elif reason == EXIT_PAGE:
            self._wait_for_page()
        elif reason == EXIT_REGIONS and self._regions is not None:
            self._regions.serve(self._number)
        elif reason == EXIT_DRAIN:
            self._drain()
        elif reason in (EXIT_FLUSH, EXIT_STOP):
            self._flush()
            for device, link in self._links.items():
                with self._waiting_for(device):
                    link.look()

    def _link(self, device: int) -> Link:
        link = self._links.get(device)
        if link is None:
            link = self._links[device] = self._connect(device, self.counters, self._wake)
        return link

    @contextmanager
    def _waiting_for(self, device: int) -> Iterator[None]:
        """For what may wait for a device; one that does not answer has been complained of, and the hart goes on."""
        self.waits_for = str(device)
        try:
            with suppress(NoAnswer):
                yield
        finally:
            self.waits_for = ""

    def _take_ring(self) -> dict[int, list[messages.Access]]:
        """The posted writes of the ring by device, in program order."""
        hart = self._hart
        posted: dict[int, list[messages.Access]] = {}
        ring = hart.ring
        for index in range(hart.ring_count):
            entry = ring[index]
            access = messages.Access(
                region=entry.region, offset=entry.offset, size=entry.size, write=True, value=entry.value
            )
            posted.setdefault(entry.device, []).append(access)
        for device in posted:
            self._link(device)  # if there can be none now, they stay in the ring
        hart.ring_count = 0
        return posted

    def _flush(self) -> None:
        posted = self._take_ring()
        for device, accesses in posted.items():
            self._post(device, accesses)
        if posted:  # whoever sends it has been woken, perhaps on this core, which native code would keep
            os.sched_yield()

    def _post(self, device: int, accesses: list[messages.Access]) -> None:
        with self._waiting_for(device):
            link = self._link(device)
            began, sequence = host_ns(), link.next_sequence
            link.post(accesses, self._around.clock.now_ns())
            if self._tracer.on:
                self._tracer.batch(self._hart, device, began, sequence, len(accesses))

    def _drain(self) -> None:
        """Returns when every posted write has been handled."""
        self._flush()
        for device, link in self._links.items():
            with self._waiting_for(device):
                link.settle()

    def _wait_for_page(self) -> None:
        """Returns when the page is there that the next instruction needs; or without it, to wait at the gate."""
        self._flush()
        self.waits_for_page = True
        self.pages.wait(self._hart.absent_page, self._is_wanted_elsewhere)
        self.waits_for_page = False

    def _is_wanted_elsewhere(self) -> bool:
        return self._gate.bars(self._number) or self._gate.ending.is_set()

    def _access(self) -> None:
        """Makes the access that native code waits for."""
        hart = self._hart
        number = hart.access_device
        write = bool(hart.access_write)
        if number == DEVICE_UNMAPPED:
            value = self._around.unmapped(hart.access_offset, hart.access_size, hart.pc, write)
            if value is None:
                self.counters.faults += 1
                hart.access_state = ACCESS_FAILED
            else:
                hart.access_value = value
                hart.access_state = ACCESS_DONE
            if self._tracer.on:
                self._tracer.record(hart, number, TRACE_UNMAPPED, host_ns(), value=hart.access_offset)
            return
        tracing = self._tracer.on
        if tracing and self._tracer.access(hart, number, self._link(number).next_sequence):
            if write and self._tracer.rings(hart, number):
                self._flush()
            return
        posted = self._take_ring()
        before = posted.pop(number, [])
        for device, accesses in posted.items():
            self._post(device, accesses)
        value = hart.access_value if write else 0
        access = messages.Access(
            region=hart.access_region, offset=hart.access_offset, size=hart.access_size, write=write, value=value
        )
        state = ACCESS_FAILED
        with self._waiting_for(number):
            link = self._link(number)
            began, sequence = host_ns(), link.next_sequence + len(before)
            answer = link.access(before, access, self._around.clock.now_ns())
            if tracing:
                took, value = host_ns() - began, value if write else answer.value
                text = "access fault" if answer.bus_error else ""
                self._tracer.record(
                    hart, number, TRACE_SYNC, began, duration_ns=took, sequence=sequence, value=value, text=text
                )
            if not answer.bus_error:
                hart.access_value = answer.value
                state = ACCESS_DONE
        hart.access_state = state
        if state == ACCESS_FAILED:
            self.counters.faults += 1
