"""The serial port register by register."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.unit.device_harness import Bench, FakeRuntime
from vmesh import errors
from vmesh.v1.devices_pb2 import Ns16550aState
from vmesh_services.devices.ns16550a.device import Ns16550a, Offset

RBR = THR = DLL = Offset.RBR_THR_DLL
IER = DLM = Offset.IER_DLM
IIR = FCR = Offset.IIR_FCR


class Uart(Bench):
    def __init__(self) -> None:
        self.uart = Ns16550a(cast(Any, FakeRuntime()), 0x1000_0000, 10, "null")
        self.output = b""
        super().__init__(self.uart, 1)
        self.uart.console.write = self._take  # type: ignore[method-assign]

    def _take(self, data: bytes) -> None:
        self.output += data

    def type(self, data: bytes) -> int:
        """Type as much of `data` as there is room for; gives how much that was."""
        count = min(self.uart._room(), len(data))
        self.uart._input(data[:count])
        return count


@pytest.fixture
def uart() -> Uart:
    return Uart()


def test_after_reset(uart: Uart) -> None:
    assert [uart.read(offset) for offset in range(1, 8)] == [0, 0x01, 0, 0x08, 0x60, 0xB0, 0]
    assert not uart.line
    uart.write(Offset.LCR, 0x80)
    assert (uart.read(DLL), uart.read(DLM)) == (12, 0)


def test_output(uart: Uart) -> None:
    for byte in b"hello":
        uart.write(THR, byte)
        assert uart.shadow(Offset.LSR) == uart.read(Offset.LSR) == 0x60
    assert uart.output == b"hello"


def test_the_divisor_is_behind_dlab(uart: Uart) -> None:
    uart.write(IER, 0x05)
    uart.write(Offset.LCR, 0x83)
    uart.write(DLL, 0x34)
    uart.write(DLM, 0x12)
    assert uart.shadow(IER) == 0x12
    assert uart.read(DLL) == 0x34
    uart.write(Offset.LCR, 0x03)
    assert uart.shadow(IER) == 0x05
    assert uart.output == b""
    uart.write(Offset.LCR, 0x83)
    assert (uart.read(DLL), uart.read(DLM)) == (0x34, 0x12)


def test_shadows_are_what_a_read_gives(uart: Uart) -> None:
    for offset in (IER, Offset.LCR, Offset.MCR, Offset.SCR):
        for value in (0xFF, 0x00, 0x15):
            uart.write(offset, value)
            assert uart.shadow(offset) == uart.read(offset)
    assert uart.shadow(RBR) is uart.shadow(Offset.MSR) is None


def test_iir_is_a_shadow_unless_reading_it_clears_an_interrupt(uart: Uart) -> None:
    def read() -> int:
        shadow, value = uart.shadow(IIR), uart.read(IIR)
        assert shadow == (None if value & 0x3F == 0x02 else value)
        return value

    assert read() == 0x01
    uart.write(FCR, 0x01)
    assert read() == 0xC1
    uart.write(IER, 0x03)
    assert [read(), read()] == [0xC2, 0xC1]
    uart.type(b"x")
    assert read() == 0xC4
    uart.write(THR, 65)
    assert read() == 0xC4
    uart.read(RBR)
    assert [read(), read()] == [0xC2, 0xC1]


def test_transmitter_empty_interrupt(uart: Uart) -> None:
    uart.write(IER, 0x02)
    assert uart.line
    assert uart.read(IIR) == 0x02
    assert not uart.line
    assert uart.read(IIR) == 0x01
    uart.write(THR, 65)
    assert uart.line
    uart.write(THR, 66)
    assert uart.read(IIR) == 0x02
    assert not uart.line
    uart.write(IER, 0x02)  # enabled already: says nothing new
    assert not uart.line
    uart.write(IER, 0x00)
    uart.write(IER, 0x02)
    assert uart.line


def test_reading_iir_clears_only_what_it_names(uart: Uart) -> None:
    uart.write(IER, 0x03)
    uart.type(b"x")
    assert uart.read(IIR) == 0x04
    uart.read(RBR)
    assert uart.read(IIR) == 0x02
    assert uart.read(IIR) == 0x01


def test_receive_without_fifo(uart: Uart) -> None:
    uart.write(IER, 0x01)
    assert uart.type(b"ab") == 1
    assert uart.line
    assert uart.shadow(Offset.LSR) == 0x61
    assert uart.read(IIR) == 0x04
    assert uart.read(RBR) == ord("a")
    assert uart.shadow(Offset.LSR) == 0x60
    assert not uart.line


def test_receive_with_fifo_trigger_and_timeout(uart: Uart) -> None:
    uart.write(FCR, 0x81)  # trigger at 8
    uart.write(IER, 0x01)
    assert uart.type(bytes(range(20))) == 16
    assert uart.read(IIR) == 0xC4
    assert [uart.read(RBR) for _ in range(9)] == list(range(9))
    assert uart.read(IIR) == 0xCC  # seven are left: below the trigger
    assert [uart.read(RBR) for _ in range(8)] == [*range(9, 16), 0]
    assert uart.read(IIR) == 0xC1


def test_fcr_clears(uart: Uart) -> None:
    uart.write(FCR, 0x01)
    uart.type(b"abc")
    uart.write(FCR, 0x03)
    assert uart.read(Offset.LSR) == 0x60
    uart.type(b"abc")
    uart.write(FCR, 0x00)  # leaving FIFO mode clears too
    assert uart.read(Offset.LSR) == 0x60
    assert uart.read(IIR) == 0x01


def test_loopback(uart: Uart) -> None:
    uart.write(Offset.MCR, 0x1A)  # LOOP, OUT2, RTS
    assert uart.read(Offset.MSR) & 0xF0 == 0x90
    uart.write(THR, 0x42)
    assert uart.output == b""
    assert uart.read(Offset.LSR) == 0x61
    assert uart.read(RBR) == 0x42
    assert uart.uart._room() == 0
    uart.write(Offset.MCR, 0x08)
    assert uart.uart._room() == 1


def test_modem_deltas(uart: Uart) -> None:
    uart.write(IER, 0x08)
    uart.write(Offset.MCR, 0x14)  # LOOP, OUT1: RI rises; DCD, DSR, CTS fall
    assert uart.line
    assert uart.read(IIR) == 0x00
    assert uart.read(Offset.MSR) == 0x4B
    assert not uart.line
    uart.write(Offset.MCR, 0x10)  # RI falls
    assert uart.read(Offset.MSR) == 0x04


def test_overrun_in_loopback_withdraws_the_shadow(uart: Uart) -> None:
    uart.write(IER, 0x04)
    uart.write(Offset.MCR, 0x10)
    uart.write(THR, 1)
    assert not uart.line
    uart.write(THR, 2)
    assert uart.line
    assert uart.shadow(Offset.LSR) is None
    assert uart.read(IIR) == 0x06
    assert uart.read(Offset.LSR) == 0x63
    assert uart.shadow(Offset.LSR) == 0x61
    assert not uart.line
    assert uart.read(RBR) == 2
    uart.write(FCR, 0x01)
    for value in range(17):
        uart.write(THR, value)
    assert uart.read(Offset.LSR) == 0x63
    assert [uart.read(RBR) for _ in range(16)] == list(range(16))


def test_pause_takes_no_input(uart: Uart) -> None:
    uart.uart.pause()
    assert uart.uart._room() == 0
    uart.uart.resume()
    assert uart.uart._room() == 1


def test_state_travels_whole(uart: Uart) -> None:
    for offset, value in ((FCR, 0xC1), (Offset.LCR, 0x80), (DLL, 9), (Offset.LCR, 3), (IER, 3), (Offset.SCR, 7)):
        uart.write(offset, value)
    uart.type(b"pending")
    state = Ns16550aState.FromString(uart.uart.save().SerializeToString())
    other = Uart()
    other.uart.check(state, 1)
    other.uart.load(state)
    assert other.wires() == uart.wires()
    assert other.line
    assert [other.read(offset) for offset in range(8)] == [uart.read(offset) for offset in range(8)]


@pytest.mark.parametrize(
    "state",
    [
        Ns16550aState(ier=0x10),
        Ns16550aState(lcr=0x100),
        Ns16550aState(mcr=0x20),
        Ns16550aState(scr=0x100),
        Ns16550aState(fcr=0x02),
        Ns16550aState(divisor=0x10000),
        Ns16550aState(msr_delta=0x10),
        Ns16550aState(receive=b"ab"),
        Ns16550aState(receive=bytes(17), fcr=1),
    ],
)
def test_states_that_cannot_be(uart: Uart, state: Ns16550aState) -> None:
    with pytest.raises(errors.BadState):
        uart.uart.check(state, 1)
