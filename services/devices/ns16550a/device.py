"""The model of the ns16550a. Names of registers and bits are those of the PC16550D data sheet, section 8."""

from __future__ import annotations

from google.protobuf.message import Message

from vmesh import chardev, errors
from vmesh.device import Device
from vmesh.service import Runtime
from vmesh.v1.bus_pb2 import READ_SHADOW, WRITE_POSTED, Line, Region, Register
from vmesh.v1.devices_pb2 import Ns16550aState, PendingOutput

SIZE = 0x100  # of the region on the board; the registers are its first eight bytes
FIFO = 16


class Offset:
    """The registers, of a byte each."""

    RBR_THR_DLL = 0
    IER_DLM = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


IER_RDI, IER_THRI, IER_RLSI, IER_MSI = 1, 2, 4, 8
IIR_NONE, IIR_MSI, IIR_THRI, IIR_RDI, IIR_RLSI, IIR_TIMEOUT, IIR_FIFOS = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C, 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX, FCR_KEPT = 0x01, 0x02, 0x04, 0xC9
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP, MCR_BITS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x1F
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TERI = 0x04

_TRIGGER = (1, 4, 8, 14)  # bytes in the FIFO, by FCR bits 7:6
_DIVISOR = 12  # 9600 baud at 1.8432 MHz


class Ns16550a(Device):
    """The serial port; `console` is what it is connected to."""

    kind = "ns16550a"
    state = Ns16550aState
    slot_bytes = chardev.JOURNAL_BYTES + 1024

    def __init__(self, runtime: Runtime, base: int, irq: int, specification: str) -> None:
        super().__init__(runtime)
        registers = [
            Register(name="RBR/THR", offset=Offset.RBR_THR_DLL, size=1, write=WRITE_POSTED),
            Register(name="IER", offset=Offset.IER_DLM, size=1, read=READ_SHADOW),
            Register(name="IIR/FCR", offset=Offset.IIR_FCR, size=1, read=READ_SHADOW),
            Register(name="LCR, MCR, LSR", offset=Offset.LCR, size=1, count=3, read=READ_SHADOW),
            Register(name="SCR", offset=Offset.SCR, size=1, read=READ_SHADOW),
        ]
        # Any size is allowed, as on QEMU's board, and reaches the register at its address.
        self.regions = [Region(name="registers", base=base, size=SIZE, access_sizes=15, registers=registers)]
        self.lines = [Line(name="interrupt", irq=irq)]
        self.console = chardev.make(specification, runtime.loop, runtime.log, self._room, self._input)
        self._paused = False
        self._output = bytearray()  # transmitted in this batch
        self._state = _power_on()

    def take_journal(self, journal: bytes) -> None:
        self.console.recover(journal)

    def start(self) -> None:
        self.console.start()
        self.console.wait(self.runtime.lifeline)

    def journal(self) -> bytes:
        return self.console.journal()

    def commit(self) -> None:
        self.console.commit()

    def read(self, region: int, offset: int, size: int) -> int:
        value = self._read(offset) if offset < 8 else 0
        self._drive()
        return value

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        state = self._state
        if offset == Offset.RBR_THR_DLL and not state.lcr & LCR_DLAB and not state.mcr & MCR_LOOP:
            # The frequent one: nothing changes but, if it was not so before, that the transmitter is empty again.
            self._output.append(value & 0xFF)
            if state.thr_empty_pending:
                return
            state.thr_empty_pending = True
        elif offset < 8:
            self._write(offset, value & 0xFF)
        self._drive()

    def flush(self) -> None:
        if self._output:
            data = bytes(self._output)
            self._output.clear()
            self.console.write(data)

    @property
    def blocked(self) -> bool:
        return self.console.full

    def reset(self) -> None:
        self._state = _power_on()
        self._drive()
        self.console.input_changed()

    def save(self) -> Message:
        state = Ns16550aState(output=PendingOutput(data=self.console.pending()))
        state.MergeFrom(self._state)
        return state

    def slot_state(self) -> Message:
        return self._state  # the journal has what is under way

    def check(self, state: Message, version: int) -> None:
        assert isinstance(state, Ns16550aState)
        limits = {"ier": 0x0F, "lcr": 0xFF, "mcr": MCR_BITS, "scr": 0xFF, "divisor": 0xFFFF, "msr_delta": 0x0F}
        for name, limit in limits.items():
            if getattr(state, name) > limit:
                raise errors.BadState(f"ns16550a {name}", expected=f"at most {limit:#x}", got=hex(getattr(state, name)))
        if state.fcr & ~FCR_KEPT or (state.fcr and not state.fcr & FCR_ENABLE):
            raise errors.BadState("ns16550a fcr", expected="bits 0, 3, 6 and 7, or none", got=hex(state.fcr))
        depth = FIFO if state.fcr & FCR_ENABLE else 1
        if len(state.receive) > depth:
            raise errors.BadState("ns16550a receive", expected=f"at most {depth} bytes", got=str(len(state.receive)))
        chardev.check_pending("ns16550a", state.output.data)

    def load(self, state: Message) -> None:
        assert isinstance(state, Ns16550aState)
        if state.HasField("output"):  # not in a slot
            self.console.restore(state.output.data)
        self._state = Ns16550aState()
        self._state.CopyFrom(state)
        self._state.ClearField("output")
        self._drive()
        self.console.input_changed()

    def pause(self) -> None:
        self._paused = True
        self.console.input_changed()

    def resume(self) -> None:
        self._paused = False
        self.console.release()
        self.console.input_changed()

    def hand_over(self) -> None:
        self.console.hand_over()

    def shutdown(self) -> None:
        self.console.finish()

    def counters(self) -> dict[str, int]:
        return {"console_bytes_lost": self.console.lost, "console_bytes_waiting": self.console.waiting}

    def _read(self, offset: int) -> int:
        state = self._state
        match offset:
            case Offset.RBR_THR_DLL:
                if state.lcr & LCR_DLAB:
                    return state.divisor & 0xFF
                received = state.receive
                state.receive = received[1:]
                self.console.input_changed()
                return received[0] if received else 0
            case Offset.IER_DLM:
                return state.divisor >> 8 if state.lcr & LCR_DLAB else state.ier
            case Offset.IIR_FCR:
                identification = self._identification()
                if self._pending() == IIR_THRI:
                    state.thr_empty_pending = False
                return identification
            case Offset.LCR:
                return state.lcr
            case Offset.MCR:
                return state.mcr
            case Offset.LSR:
                status = self._line_status()
                state.overrun = False
                return status
            case Offset.MSR:
                status = self._modem_lines() | state.msr_delta
                state.msr_delta = 0
                return status
            case _:
                return state.scr

    def _write(self, offset: int, value: int) -> None:
        state = self._state
        match offset:
            case Offset.RBR_THR_DLL if state.lcr & LCR_DLAB:
                state.divisor = state.divisor & 0xFF00 | value
            case Offset.RBR_THR_DLL:  # in loop-back: the receiver gets it
                self._push(value)
                state.thr_empty_pending = True
            case Offset.IER_DLM if state.lcr & LCR_DLAB:
                state.divisor = value << 8 | state.divisor & 0xFF
            case Offset.IER_DLM:
                if value & ~state.ier & IER_THRI:
                    state.thr_empty_pending = True  # the transmitter is empty: enabling interrupts says so at once
                state.ier = value & 0x0F
            case Offset.IIR_FCR:
                self._write_fcr(value)
            case Offset.LCR:
                state.lcr = value
            case Offset.MCR:
                before = self._modem_lines()
                state.mcr = value & MCR_BITS
                self._modem_changed(before, self._modem_lines())
                self.console.input_changed()
            case Offset.SCR:
                state.scr = value
            case _:
                pass  # LSR and MSR: factory tests in the data sheet, nothing here

    def _write_fcr(self, value: int) -> None:
        state = self._state
        if (value ^ state.fcr) & FCR_ENABLE:
            value |= FCR_CLEAR_RX | FCR_CLEAR_TX  # changing bit 0 clears both
        if value & FCR_CLEAR_RX:
            state.receive = b""
        if value & FCR_CLEAR_TX:
            state.thr_empty_pending = True
        state.fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        self.console.input_changed()

    def _pending(self) -> int:
        """The interrupt of the highest priority, as IIR names it (data sheet, table V)."""
        state = self._state
        if state.ier & IER_RLSI and state.overrun:
            return IIR_RLSI
        if state.ier & IER_RDI and state.receive:
            if state.fcr & FCR_ENABLE and len(state.receive) < _TRIGGER[state.fcr >> 6]:
                # The time-out of four characters has passed: no time does between characters that come from a socket.
                return IIR_TIMEOUT
            return IIR_RDI
        if state.ier & IER_THRI and state.thr_empty_pending:
            return IIR_THRI
        if state.ier & IER_MSI and state.msr_delta:
            return IIR_MSI
        return IIR_NONE

    def _identification(self) -> int:
        return self._pending() | (IIR_FIFOS if self._state.fcr & FCR_ENABLE else 0)

    def _line_status(self) -> int:
        state = self._state
        return LSR_THRE | LSR_TEMT | (LSR_DR if state.receive else 0) | (LSR_OE if state.overrun else 0)

    def _modem_lines(self) -> int:
        state = self._state
        if not state.mcr & MCR_LOOP:
            return MSR_DCD | MSR_DSR | MSR_CTS
        looped = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(line for output, line in looped if state.mcr & output)

    def _modem_changed(self, before: int, after: int) -> None:
        state = self._state
        state.msr_delta |= ((before ^ after) & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4
        if before & ~after & MSR_RI:
            state.msr_delta |= MSR_TERI

    def _room(self) -> int:
        """How many bytes the receiver could take from the console now."""
        state = self._state
        if self._paused or state.mcr & MCR_LOOP:
            return 0
        return max(0, (FIFO if state.fcr & FCR_ENABLE else 1) - len(state.receive))

    def _input(self, data: bytes) -> None:
        self._state.receive += data
        self._drive()

    def _push(self, value: int) -> None:
        """A character arrives whether there is room or not (data sheet, 8.6.3: OE)."""
        state = self._state
        if len(state.receive) < (FIFO if state.fcr & FCR_ENABLE else 1):
            state.receive += bytes((value,))
            return
        state.overrun = True
        if not state.fcr & FCR_ENABLE:
            state.receive = bytes((value,))  # without a FIFO it destroys the one before; with one it is lost itself

    def _drive(self) -> None:
        """Bring line and shadows up to date with the registers."""
        state, wires = self._state, self.wires
        pending = self._pending()
        wires.set_line(0, pending != IIR_NONE)
        wires.set_shadow(0, Offset.IER_DLM, 1, state.divisor >> 8 if state.lcr & LCR_DLAB else state.ier)
        wires.set_shadow(0, Offset.LCR, 1, state.lcr)
        wires.set_shadow(0, Offset.MCR, 1, state.mcr)
        wires.set_shadow(0, Offset.SCR, 1, state.scr)
        if pending == IIR_THRI:
            wires.withdraw_shadow(0, Offset.IIR_FCR, 1)  # reading it clears the interrupt
        else:
            wires.set_shadow(0, Offset.IIR_FCR, 1, self._identification())
        if state.overrun:
            wires.withdraw_shadow(0, Offset.LSR, 1)  # reading it clears the overrun
        else:
            wires.set_shadow(0, Offset.LSR, 1, self._line_status())


def _power_on() -> Ns16550aState:
    return Ns16550aState(mcr=MCR_OUT2, divisor=_DIVISOR)
