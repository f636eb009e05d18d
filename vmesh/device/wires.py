"""What a device drives. Only changes cost a message."""

from __future__ import annotations

from vmesh.v1 import bus_pb2 as messages

MOST_MESSAGES = 4096  # of one update


class Wires:
    """What a device drives: interrupt lines and messages, shadowed registers, where its regions are. Only changes cost
    a packet."""

    def __init__(self) -> None:
        self._levels: dict[int, bool] = {}
        self._shadows: dict[tuple[int, int, int], int | None] = {}
        self._changed_lines: set[int] = set()
        self._changed_shadows: set[tuple[int, int, int]] = set()
        self._latches: dict[tuple[int, int, int], int] = {}  # bits raised since they were cleared
        self._raised: dict[tuple[int, int, int], int] = {}  # of these, what has not been said
        self._cleared: set[tuple[int, int, int]] = set()  # said to nobody
        self._places: dict[int, int | None] = {}  # of regions that move
        self._moved: set[int] = set()
        # Address and data of interrupts: those that nobody has been told of, and those that were said, newest last.
        self._messages: dict[tuple[int, int], None] = {}
        self._said: dict[tuple[int, int], None] = {}

    @property
    def changed(self) -> bool:
        return bool(self._raised or self._more_than_raises)

    @property
    def _more_than_raises(self) -> bool:
        return bool(self._changed_lines or self._changed_shadows or self._cleared or self._moved or self._messages)

    def set_line(self, line: int, level: bool) -> None:
        """Drive a line. A device drives all of its lines in `reset`."""
        if self._levels.get(line) != level:
            self._levels[line] = level
            self._changed_lines.add(line)

    def set_shadow(self, region: int, offset: int, size: int, value: int) -> None:
        """Say what a read of this register gives until further notice."""
        self._set_shadow((region, offset, size), value)

    def withdraw_shadow(self, region: int, offset: int, size: int) -> None:
        """The next read of this register has a side effect: let it come to the device."""
        self._set_shadow((region, offset, size), None)

    def raise_latch(self, region: int, offset: int, size: int, bits: int) -> None:
        """Set bits of a READ_LATCH register; the guest clears them, and the device does not hear of it."""
        key = (region, offset, size)
        self._latches[key] = self._latches.get(key, 0) | bits
        self._raised[key] = self._raised.get(key, 0) | bits

    def clear_latch(self, region: int, offset: int, size: int) -> None:
        """Clear all bits of a READ_LATCH register: the device is reset."""
        key = (region, offset, size)
        self._latches[key] = 0
        self._raised.pop(key, None)
        self._cleared.add(key)

    def place(self, region: int, base: int | None) -> None:
        """A region that moves is at `base` of its space from now on, or nowhere; outside of its aperture, where a guest
        may want it, is nowhere too. A device places all of them in `reset` and `load`."""
        if region not in self._places or self._places[region] != base:
            self._places[region] = base
            self._moved.add(region)

    def send_message(self, address: int, data: int) -> None:
        """Interrupt by a message: a store of 32 bits. The same twice, before it was said, is one. Who connects anew is
        told of all that were ever said: what was on its way may be lost, and one too many does no harm. So a next
        life sends anew what may not have been heard."""
        self._messages.pop((address, data), None)  # what is said last counts last
        self._messages[address, data] = None

    def forget_messages(self) -> None:
        """The device is another one, by a reset or a state: nobody is told again of what it was."""
        self._messages.clear()
        self._said.clear()

    def _set_shadow(self, key: tuple[int, int, int], value: int | None) -> None:
        if key not in self._shadows or self._shadows[key] != value:
            self._shadows[key] = value
            self._changed_shadows.add(key)

    def fill(self, update: messages.DeviceUpdate, *, everything: bool = False) -> None:
        """Put into `update` what changed since the last time, or all there is."""
        for line in sorted(self._levels if everything else self._changed_lines):
            update.lines.add(line=line, level=self._levels[line])
        for key in sorted(self._shadows if everything else self._changed_shadows):
            region, offset, size = key
            value = self._shadows[key]
            update.shadows.add(region=region, offset=offset, size=size, value=value or 0, withdrawn=value is None)
        for key in sorted(self._latches if everything else self._raised.keys() | self._cleared):
            region, offset, size = key
            bits = (self._latches if everything else self._raised).get(key, 0)
            # All of it where nothing is set, or nobody knows that nothing was; otherwise what is set beside the rest.
            update.shadows.add(
                region=region, offset=offset, size=size, value=bits, raised=bool(bits) and key not in self._cleared
            )
        for number in sorted(self._places if everything else self._moved):
            base = self._places[number]
            update.places.add(region=number, base=base or 0, absent=base is None)
        if self._messages or (everything and self._said):
            self._fill_messages(update, everything=everything)
        self._moved.clear()
        self._raised.clear()
        self._cleared.clear()
        self._changed_lines.clear()
        self._changed_shadows.clear()

    def _fill_messages(self, update: messages.DeviceUpdate, *, everything: bool) -> None:
        """As many as an update has room for: those said before first, if they are to be said again."""
        again = [each for each in self._said if each not in self._messages] if everything else []
        for address, data in [*again, *self._messages][:MOST_MESSAGES]:
            update.messages.add(address=address, data=data)
            self._messages.pop((address, data), None)
            self._said.pop((address, data), None)
            self._said[address, data] = None
        for old in list(self._said)[: max(0, len(self._said) - MOST_MESSAGES)]:
            del self._said[old]

    def take_raises(self) -> list[tuple[tuple[int, int, int], int]]:
        """The latches with the bits raised since the last time, if nothing else has changed; otherwise none."""
        if self._more_than_raises:
            return []
        raises = list(self._raised.items())
        self._raised.clear()
        return raises

    def put_back(self, update: messages.DeviceUpdate) -> None:
        """`update` has not reached anybody."""
        self._changed_lines.update(each.line for each in update.lines)
        self._moved.update(each.region for each in update.places)
        self._messages = {(each.address, each.data): None for each in update.messages} | self._messages
        for each in update.shadows:
            key = (each.region, each.offset, each.size)
            if key not in self._latches:
                self._changed_shadows.add(key)
                continue
            if each.value:
                self._raised[key] = self._raised.get(key, 0) | each.value
            if not each.raised:
                self._cleared.add(key)
