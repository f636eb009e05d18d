"""The cpu's ends of a device's FIFOs (proto/vmesh/v1/bus.proto: Description.doorbell, Description.interrupts), and the
thread that takes the interrupts.

Native code knows each by a descriptor that stays the same for as long as the device is on the board; what it stands for
is replaced at once (dup2) when another life of the device begins.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

from vmesh import doorbell

from ..bus.device import BusDevice
from ..bus.irqchip import FLOOD_SECONDS
from .harts import Harts

LISTENERS = 16
_FORGET_SECONDS = 5.0
_READABLE = select.POLLIN << 32
_MUTED = 0xFFFF_FFFF


class Doorbell:
    """Rings a device. Until `open`, and after an `open` that found nobody, harts find that they cannot (EPIPE)."""

    def __init__(self, harts: Harts, device: BusDevice, folder: Path) -> None:
        self._harts, self._device, self._folder = harts, device, folder
        self._nobody = _unread()  # it is rung in vain
        self._file = os.dup(self._nobody)
        assert device.doorbell is not None
        index, offset, size = device.doorbell
        self._index = index
        harts.add_doorbell(device.number, index, offset, size, self._file)

    def close(self) -> None:
        """The device has left the board."""
        os.close(self._file)
        os.close(self._nobody)

    def open(self) -> None:
        """A life of the device begins: ring it, for all that its predecessor was rung for and may not have looked at,
        at times that nobody knows any more (0).

        Raises BadRequest for what is no FIFO.
        """
        os.dup2(self._nobody, self._file, inheritable=False)  # a life of another version has other records
        number, timed = self._device.number, self._device.timed
        self._harts.set_doorbell_record(number, self._index, timed=timed)
        found = doorbell.open_existing(self._folder, self._device.description.doorbell, os.O_WRONLY)
        if found is None:
            return
        _replace(self._file, found)
        for value in self._harts.rung(number, self._index):
            try:
                os.write(self._file, doorbell.ring(value, 0) if timed else bytes((value,)))
            except OSError:  # nobody reads, or there is more to read than can have been rung
                return


class Listener(threading.Thread):
    """Takes what devices raise through their FIFOs, in native code: an interrupt needs no interpreter.

    It has places for LISTENERS devices. `complain` is told, from this thread, of a device (its name) that does what it
    should not.
    """

    def __init__(self, harts: Harts, folder: Path, complain: Callable[[str, str, str], None]) -> None:
        super().__init__(name="interrupts", daemon=True)
        self._harts, self._folder, self._complain = harts, folder, complain
        self._devices: list[BusDevice | None] = [None] * LISTENERS
        self._silent, self._nobody = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # in which there is never anything
        self._files = [os.dup(self._silent) for _ in self._devices]
        self._there = [False] * LISTENERS  # whether there is a FIFO
        self._looked = [0.0] * LISTENERS
        self._muted: dict[int, float] = {}  # until when
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, _close, (self._silent, self._nobody, self._wake, *self._files)).atexit = False
        self._ended = False
        harts.machine.listener_count = LISTENERS
        for number in range(LISTENERS):
            harts.machine.polls[number] = _READABLE | _MUTED
        harts.machine.polls[LISTENERS] = _READABLE | self._wake

    def add(self, device: BusDevice) -> None:
        """Has a place for a device, if there is one: without, it sends messages."""
        if None not in self._devices:
            return
        device.listener = self._devices.index(None)
        self._devices[device.listener] = device
        file = self._files[device.listener]
        self._harts.set_listener(device.listener, file, device.epoch, device.latches[0], len(device.latches))

    def remove(self, device: BusDevice) -> None:
        """The device leaves the board: nothing of it is heard when this returns."""
        number = device.listener
        if number < 0:
            return
        done = threading.Event()

        def forget() -> None:
            self._muted.pop(number, None)
            self._listen_to(number, False)
            os.dup2(self._silent, self._files[number], inheritable=False)
            self._devices[number] = None
            done.set()

        self._call(forget)
        done.wait(_FORGET_SECONDS)

    def run(self) -> None:
        while not self._ended:
            number = self._harts.listen()
            if number < LISTENERS:
                self._look(number)
            else:
                os.eventfd_read(self._wake)
                while not self._calls.empty():
                    self._calls.get()()

    def open(self, device: BusDevice) -> None:
        """A life of the device begins. Raises BadRequest for what is no FIFO."""
        number = device.listener
        found = doorbell.open_existing(self._folder, device.description.interrupts, os.O_RDWR)
        os.dup2(self._silent, self._files[number], inheritable=False)
        self._harts.set_raise_record(number, timed=device.timed)
        if found is not None:
            _replace(self._files[number], found)

        def listen() -> None:
            self._there[number] = found is not None
            if number not in self._muted:  # who is met anew again and again is muted all the same
                self._listen_to(number, found is not None)

        self._call(listen)

    def unmute(self) -> None:
        """Listens again to those that have been muted for long enough."""
        self._call(self._unmute)

    def end(self) -> None:
        self._ended = True
        self._call(lambda: None)

    def _call(self, function: Callable[[], None]) -> None:
        self._calls.put(function)
        os.eventfd_write(self._wake, 1)

    def _listen_to(self, number: int, listen: bool) -> None:
        self._harts.machine.polls[number] = _READABLE | (self._files[number] if listen else _MUTED)

    def _unmute(self) -> None:
        for number, until in list(self._muted.items()):
            if time.monotonic() >= until:
                del self._muted[number]
                self._listen_to(number, self._there[number])

    def _look(self, number: int) -> None:
        listener, device = self._harts.machine.listeners[number], self._devices[number]
        now = time.monotonic()
        lately, self._looked[number] = now - self._looked[number] < FLOOD_SECONDS, now
        if listener.nonsense:
            what, text = "nonsense", "what it raises interrupts with is no record of one"
        elif lately:
            what, text = "floods updates", f"more than {listener.taken} interrupts within {FLOOD_SECONDS:g} s"
        else:
            what = text = ""
        listener.taken = listener.nonsense = 0
        if what and device is not None:
            self._muted[number] = now + FLOOD_SECONDS
            self._listen_to(number, False)
            self._complain(device.name, what, text)


def _unread() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(reader)
    return writer


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)


def _replace(file: int, by: int) -> None:
    os.dup2(by, file, inheritable=False)
    os.close(by)
