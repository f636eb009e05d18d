"""One gdb: its packets, a command at a time (gdb's manual, E.2 to E.7; QEMU's manual, "GDB usage").

A command is a generator of the supervisor's (see operations) that gives its reply; while it is carried out nothing is
read. All stop: when one hart stops, or gdb looks at anything, the machine is paused, as by `vmesh pause`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Protocol

from vmesh.v1 import common_pb2, cpu_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor import operations
from vmesh_services.monitor.events import Event
from vmesh_services.monitor.gdb import target
from vmesh_services.monitor.gdb.actions import Action, Stepping, parse_actions, step_of
from vmesh_services.monitor.gdb.packet import LIMIT, Framer, Sign, frame
from vmesh_services.monitor.operations import Batch, Operation, Request, RequestError, StateError
from vmesh_services.monitor.run_states import Act
from vmesh_services.monitor.stream_server import Stream
from vmesh_services.monitor.supervisor.supervisor import Supervisor

Reply = Generator[Batch, Sequence[Packet], bytes | None]
#: Carries out a line of the monitor's (HMP) for a hart, and calls back with what it printed.
Console = Callable[[str, int, Callable[[str], None]], None]

SIGINT, SIGTRAP = 2, 5
#: Milliseconds that a step may take while devices stand still; after that they go on too.
_STEP_TIME = 100
_RESENDS = 3
#: Errors as gdb shows them, by errno(3): for what cannot be, no memory there, a machine in no state for it.
_INVALID, _FAULT, _STATE = b"E16", b"E0e", b"E01"
_WATCHES = {
    common_pb2.STOP_WRITE: "watch",
    common_pb2.STOP_READ: "rwatch",
    common_pb2.STOP_ACCESS: "awatch",
}
_WATCH_KINDS = {2: cpu_pb2.WATCH_WRITE, 3: cpu_pb2.WATCH_READ, 4: cpu_pb2.WATCH_ACCESS}
_NO_INTERRUPTS = 2  # bit of qemu.sstep


class Malformed(Exception):
    """A packet that is no command."""


class Host(Protocol):
    """What the session is part of."""

    @property
    def supervisor(self) -> Supervisor: ...

    @property
    def console(self) -> Console | None: ...


class Session:
    """Speaks with one gdb, which finds the machine paused."""

    def __init__(self, host: Host, stream: Stream) -> None:
        self._host = host
        self._supervisor = host.supervisor
        self._stream = stream
        self._framer = Framer()
        self._input = bytearray()
        self._acks = True
        self._sent = b""  # what is not acknowledged yet
        self._resends = 0
        self._busy = False  # with a command
        self._pumping = False
        self._running = False  # gdb waits for a stop
        self._over = False  # detached, killed or gone
        self._stop = _stopped(SIGTRAP, 0)
        self._target: target.Target | None = None
        self._hart = 0  # that registers and memory are of
        self._step_hart = 0
        self._breakpoints: set[tuple[int, int, int]] = set()  # type as in Z, address, kind
        self._holds = False  # harts, when the machine goes on
        self._physical = False
        self._step_bits = 7
        self._swbreak = self._hwbreak = False
        self._unsubscribe = self._supervisor.events.subscribe(self._event)
        self._do(self._attach(), replies=False)

    # the stream

    def received(self, data: bytes) -> None:
        self._input += data
        self._pump()

    def drained(self) -> None:
        self._pump()

    def ended(self) -> None:
        """The client is gone: so are its breakpoints, and what it held. A machine that was paused stays so."""
        self._unsubscribe()
        self._input.clear()
        if not self._over:
            self._over = True
            self._supervisor.submit(self._leave(), exclusive=True)

    def _pump(self) -> None:
        """Take packets until a command is under way, or the client does not read the answers."""
        if self._pumping:
            return
        self._pumping = True
        while not (self._busy or self._stream.closed or self._stream.crowded):
            item = self._framer.take(self._input)
            if item is None:
                break
            self._take(item)
        self._pumping = False
        if not self._stream.closed:
            self._stream.hold(self._busy)

    def _take(self, item: bytes | Sign) -> None:
        match item:
            case Sign.ACK:
                self._sent = b""
            case Sign.NACK:
                if self._sent and self._resends < _RESENDS:
                    self._resends += 1
                    self._stream.write(self._sent)
            case Sign.INTERRUPT:
                if self._running:
                    self._do(self._interrupt(), replies=False)
            case Sign.DAMAGED:
                if self._acks:
                    self._stream.write(b"-")
            case bytes():
                if self._acks:
                    self._stream.write(b"+")
                self._command(item)

    def _send(self, reply: bytes) -> None:
        data = frame(reply)
        self._sent, self._resends = (data if self._acks else b""), 0
        self._stream.write(data)

    # commands

    def _command(self, packet: bytes) -> None:
        try:
            reply = self._reply(packet)
        except (Malformed, ValueError):
            self._send(_INVALID)
            return
        if isinstance(reply, bytes):
            self._send(reply)
        elif reply is not None:
            self._do(reply)

    def _do(self, reply: Reply, *, replies: bool = True) -> None:
        """Carry out a command; what it gives is sent. One that gives None has set the machine going, or has sent it."""
        self._busy = True
        result: list[bytes | None] = [None]
        future = self._supervisor.submit(_keep(reply, result), exclusive=True)
        future.add_done_callback(lambda future: self._done(future, result, replies))

    def _done(self, future: Future[None], result: list[bytes | None], replies: bool) -> None:
        self._busy = False
        error = future.exception()
        if isinstance(error, RequestError | StateError):
            result[0] = _FAULT if isinstance(error, RequestError) and error.callers_fault else _STATE
            if self._target is None:
                self._stream.finish()  # there is nothing to be debugged
        elif error is not None:
            raise error
        if not self._stream.closed:
            if result[0] is not None and replies:
                self._send(result[0])
            self._pump()

    def _reply(self, packet: bytes) -> bytes | Reply | None:
        """The answer to a packet: at once, by carrying it out, or None if it comes later. Empty: no such command."""
        name, rest = packet[:1], packet[1:]
        match name:
            case b"?":
                return self._stop
            case b"g":
                return self._read_all()
            case b"G":
                return self._write_all(_unhex(rest))
            case b"p":
                return self._read_register(_number(rest))
            case b"P":
                number, value = _split(rest, b"=")
                return self._write_register(_number(number), _unhex(value))
            case b"m":
                return self._read_memory(*_range(rest))
            case b"M":
                place, data = _split(rest, b":")
                return self._write_memory(*_range(place), _unhex(data))
            case b"X":
                place, data = _split(rest, b":")
                return self._write_memory(*_range(place), data)
            case b"Z" | b"z":
                return self._change_breakpoint(rest, add=name == b"Z")
            case b"c" | b"s" | b"C" | b"S":
                return self._old_resume(name, rest)
            case b"H":
                return self._choose_hart(rest)
            case b"T":
                return b"OK" if 0 < _number(rest) <= self._harts else _INVALID
            case b"D":
                return self._detach()
            case b"k":
                self._kill()
                return None
            case b"v":
                return self._verbose(rest)
            case b"q" | b"Q":
                return self._query(packet)
        return b""

    def _verbose(self, text: bytes) -> bytes | Reply | None:
        if text == b"Cont?":
            return b"vCont;c;C;s;S;r"
        if text.startswith(b"Cont;"):
            return self._resume(parse_actions(text[5:].decode("ascii")))
        if text.startswith(b"Kill"):
            self._send(b"OK")
            self._kill()
            return None
        return b""

    def _query(self, packet: bytes) -> bytes | Reply | None:
        name, _, rest = packet.partition(b":")
        match name:
            case b"qSupported":
                features = rest.split(b";")
                self._swbreak, self._hwbreak = b"swbreak+" in features, b"hwbreak+" in features
                return b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+" % LIMIT
            case b"QStartNoAckMode":
                self._send(b"OK")
                self._acks, self._framer.verify, self._sent = False, False, b""
                return None
            case b"qXfer" if rest.startswith(b"features:read:"):
                return self._read_features(rest.removeprefix(b"features:read:"))
            case b"qAttached":
                return b"1"
            case b"qC":
                return b"QC%x" % (self._hart + 1)
            case b"qfThreadInfo":
                return b"m" + b",".join(b"%x" % (hart + 1) for hart in range(self._harts))
            case b"qsThreadInfo":
                return b"l"
            case b"qqemu.sstepbits":
                return b"ENABLE=1,NOIRQ=2,NOTIMER=4"
            case b"qqemu.sstep":
                return b"0x%x" % self._step_bits
            case b"qqemu.PhyMemMode":
                return b"%d" % self._physical
            case b"Qqemu.PhyMemMode":
                self._physical = bool(_number(rest))
                return b"OK"
        if name.startswith(b"qThreadExtraInfo,"):
            return self._describe_hart(_number(name.partition(b",")[2]) - 1)
        if name.startswith(b"qRcmd,"):
            return self._monitor(_unhex(name.partition(b",")[2]).decode(errors="replace"))
        if name.startswith(b"Qqemu.sstep="):
            self._step_bits = _number(name.partition(b"=")[2]) & 7
            return b"OK"
        return b""

    @property
    def _harts(self) -> int:
        return self._target.harts if self._target is not None else 1

    # what gdb looks at

    def _attach(self) -> Reply:
        roster = self._supervisor.roster
        if not roster.cpu:
            raise RequestError("the machine has no cpu service")
        yield from self._halt()
        (packet,) = yield [Request(roster.cpu, cpu_pb2.DescribeRegisters())]
        self._target = target.describe(packet.register_set)
        return None

    def _halt(self) -> Operation:
        """Everything that gdb does, it does to a machine that stands still: also if somebody else has resumed it."""
        if not self._supervisor.condition.paused:
            yield from operations.pause(self._supervisor.roster)

    def _ask(self, *bodies: cpu_pb2.WriteRegisters | cpu_pb2.SetBreakpoints | cpu_pb2.RunHarts) -> Operation:
        yield from self._halt()
        yield [Request(self._supervisor.roster.cpu, body) for body in bodies]

    def _read(self, registers: Sequence[cpu_pb2.RegisterDescription]) -> Reply:
        yield from self._halt()
        request = cpu_pb2.ReadRegisters(hart=self._hart, names=[each.name for each in registers])
        (packet,) = yield [Request(self._supervisor.roster.cpu, request)]
        values = [each.value for each in packet.hart_registers.registers]
        if len(values) != len(registers):
            return _STATE
        return b"".join(_little(value, each.bits) for value, each in zip(values, registers, strict=True))

    def _write(self, registers: Sequence[cpu_pb2.RegisterDescription], data: bytes) -> Reply:
        if len(data) != sum(each.bits // 8 for each in registers):
            raise Malformed
        request = cpu_pb2.WriteRegisters(hart=self._hart)
        place = 0
        for each in registers:
            size = each.bits // 8
            request.registers.add(name=each.name, value=int.from_bytes(data[place : place + size], "little"))
            place += size
        self._supervisor.condition.check(Act.WRITE)
        return self._told(self._ask(request))

    def _told(self, operation: Operation) -> Reply:
        yield from operation
        return b"OK"

    def _read_all(self) -> Reply:
        return self._read(self._target.general if self._target is not None else ())

    def _write_all(self, data: bytes) -> Reply:
        return self._write(self._target.general if self._target is not None else (), data)

    def _register(self, number: int) -> cpu_pb2.RegisterDescription:
        found = self._target.registers.get(number) if self._target is not None else None
        if found is None:
            raise Malformed
        return found

    def _read_register(self, number: int) -> Reply:
        return self._read((self._register(number),))

    def _write_register(self, number: int, data: bytes) -> Reply:
        return self._write((self._register(number),), data)

    def _read_memory(self, address: int, size: int) -> Reply:
        content = bytearray()
        request = cpu_pb2.ReadMemory(
            physical=self._physical, hart=self._hart, address=address, size=min(size, LIMIT // 2)
        )
        yield from operations.read_memory(self._supervisor.roster, request, content)
        return bytes(content).hex().encode()

    def _write_memory(self, address: int, size: int, data: bytes) -> Reply:
        if len(data) != size:
            raise Malformed
        request = cpu_pb2.WriteMemory(physical=self._physical, hart=self._hart, address=address, data=data)
        return self._told(self._supervisor.run_state.write_memory(request))

    def _read_features(self, text: bytes) -> bytes:
        name, _, place = text.rpartition(b":")
        offset, length = _range(place)
        if name != b"target.xml" or self._target is None:
            return _INVALID
        piece = self._target.xml[offset : offset + min(length, LIMIT // 2)]
        return (b"m" if offset + len(piece) < len(self._target.xml) else b"l") + piece

    def _describe_hart(self, hart: int) -> Reply:
        if not 0 <= hart < self._harts:
            raise Malformed
        status = cpu_pb2.CpuStatus()
        yield from operations.cpu_status(self._supervisor.roster, status)
        privilege = {each.hart: cpu_pb2.Privilege.Name(each.privilege) for each in status.harts}.get(hart, "")
        text = f"hart {hart}, {privilege.removeprefix('PRIVILEGE_').lower()} mode"
        return text.encode().hex().encode()

    def _choose_hart(self, text: bytes) -> bytes:
        operation, thread = text[:1], text[1:]
        number = -1 if thread == b"-1" else _number(thread)
        if number > self._harts or operation not in (b"g", b"c"):
            return _INVALID
        if number > 0 and operation == b"g":
            self._hart = number - 1
        elif number > 0:
            self._step_hart = number - 1
        return b"OK"

    def _monitor(self, line: str) -> bytes | None:
        if self._host.console is None:
            return b"this machine has no monitor commands\n".hex().encode()
        self._busy = True

        def done(text: str) -> None:
            self._busy = False
            data = text.encode(errors="replace")
            for place in range(0, len(data), LIMIT // 4):
                self._send(b"O" + data[place : place + LIMIT // 4].hex().encode())
            self._send(b"OK")
            self._pump()

        self._host.console(line, self._hart, done)
        return None

    # how it runs

    def _change_breakpoint(self, text: bytes, *, add: bool) -> bytes | Reply:
        kind, place, size = text.partition(b";")[0].split(b",")
        change = _number(kind), _number(place), _number(size)
        if not 0 <= change[0] <= 4:
            return b""
        changed = self._breakpoints | {change} if add else self._breakpoints - {change}
        return self._set_breakpoints(changed)

    def _set_breakpoints(self, changed: set[tuple[int, int, int]]) -> Reply:
        request = cpu_pb2.SetBreakpoints(addresses=sorted({address for kind, address, _ in changed if kind < 2}))
        for kind, address, size in sorted(changed):
            if kind in _WATCH_KINDS:
                request.watchpoints.add(address=address, size=size, kind=_WATCH_KINDS[kind])
        yield from self._ask(request)
        self._breakpoints = changed
        return b"OK"

    def _old_resume(self, name: bytes, rest: bytes) -> Reply:
        """The packets before vCont: with a signal, which no hart takes, and an address to go on at."""
        if name in (b"C", b"S"):
            rest = rest.partition(b";")[2]
        step = name in (b"s", b"S")
        actions = [Action("s", self._step_hart)] if step else []
        return self._resume([*actions, Action("c", None)], at=_number(rest) if rest else None)

    def _resume(self, actions: Sequence[Action], at: int | None = None) -> Reply:
        stepping = step_of(actions, self._harts, self._step_hart)
        self._supervisor.condition.check(Act.RESUME)
        yield from self._halt()
        cpu = self._supervisor.roster.cpu
        if at is not None:
            yield from self._ask(
                cpu_pb2.WriteRegisters(hart=self._step_hart, registers=[cpu_pb2.RegisterValue(name="pc", value=at)])
            )
        orders = self._orders(stepping)
        self._holds = bool(orders.held)
        if stepping.hart is not None:
            orders.milliseconds = _STEP_TIME
            (packet,) = yield [Request(cpu, orders)]
            if packet.hart_stop.reason != common_pb2.STOP_UNSPECIFIED:
                self._stop = self._describe_stop(packet.hart_stop)
                return self._stop
            orders.milliseconds = 0
        yield [Request(cpu, orders)]
        self._running = True
        try:
            yield from self._supervisor.run_state.resume()
        except RequestError:
            if self._running:
                self._running = False
                raise
        return None

    def _orders(self, stepping: Stepping) -> cpu_pb2.RunHarts:
        orders = cpu_pb2.RunHarts(held=sorted(stepping.held))
        if stepping.hart is not None:
            orders.step.hart, orders.step.low, orders.step.high = stepping.hart, stepping.low, stepping.high
            orders.step.interrupts = not self._step_bits & _NO_INTERRUPTS
        return orders

    def _interrupt(self) -> Reply:
        """Ctrl-C. A hart may have stopped meanwhile by itself: then that was it."""
        yield from self._halt()
        return None

    def hart_stopped(self, stop: common_pb2.HartStop) -> bool:
        """A hart has stopped, and with it all others; gives whether anybody wants that."""
        if self._running:
            self._report(self._describe_stop(stop))
        return not self._over

    def _event(self, event: Event) -> None:
        match event.name:
            case "STOP" if self._running:
                self._report(_stopped(SIGINT, self._hart))
            case "SHUTDOWN" if not self._over:
                self._over = True
                self._send(b"W%02x" % (self._supervisor.condition.exit_status & 0xFF))
                self._stream.finish()

    def _report(self, stop: bytes) -> None:
        """What gdb waits for since it set the machine going."""
        self._running = False
        self._stop = stop
        self._send(stop)

    def _describe_stop(self, stop: common_pb2.HartStop) -> bytes:
        self._hart = self._step_hart = stop.hart
        extra = ""
        if stop.reason in _WATCHES:
            extra = f"{_WATCHES[stop.reason]}:{stop.address:x};"
        elif stop.reason == common_pb2.STOP_BREAKPOINT:
            hardware = not any(kind == 0 and address == stop.address for kind, address, _ in self._breakpoints)
            if hardware and self._hwbreak:
                extra = "hwbreak:;"
            elif not hardware and self._swbreak:
                extra = "swbreak:;"
        return _stopped(SIGTRAP, stop.hart, extra)

    def _detach(self) -> Reply:
        yield from self._let_go()
        if self._supervisor.condition.paused:
            yield from self._supervisor.run_state.resume()
        self._over = True
        return b"OK"

    def _leave(self) -> Operation:
        """Let go of what the last command, which may have been under way when the client went, has left."""
        if self._breakpoints or self._holds:
            yield from self._let_go()

    def _let_go(self) -> Operation:
        """No breakpoint is left, no hart is held; a machine that runs goes on."""
        paused = self._supervisor.condition.paused
        yield from self._ask(cpu_pb2.SetBreakpoints(), cpu_pb2.RunHarts())
        self._breakpoints, self._holds = set(), False
        if not paused:
            yield from self._supervisor.run_state.resume()

    def _kill(self) -> None:
        self._over = True
        self._supervisor.end(0)
        self._stream.finish()


def _keep(reply: Reply, result: list[bytes | None]) -> Operation:
    try:
        result[0] = yield from reply
    except (Malformed, ValueError):
        result[0] = _INVALID


def _stopped(signal: int, hart: int, extra: str = "") -> bytes:
    return f"T{signal:02x}thread:{hart + 1:x};{extra}".encode()


def _little(value: int, bits: int) -> bytes:
    return (value & (1 << bits) - 1).to_bytes(bits // 8, "little").hex().encode()


def _number(text: bytes) -> int:
    """A number in hexadecimal digits, of 64 bits at most."""
    if not 0 < len(text) <= 16 or not text.isalnum():
        raise Malformed
    return int(text, 16)


def _range(text: bytes) -> tuple[int, int]:
    address, size = _split(text, b",")
    return _number(address), _number(size)


def _split(text: bytes, separator: bytes) -> tuple[bytes, bytes]:
    before, found, after = text.partition(separator)
    if not found:
        raise Malformed
    return before, after


def _unhex(text: bytes) -> bytes:
    return bytes.fromhex(text.decode("ascii"))
