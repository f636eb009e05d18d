"""The serial port's console in a real process: order, late clients, slow clients, input with backpressure."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.contract.cases import UART
from tests.contract.harness import PATIENCE, Hart, Irqchip, Machine, console, receive
from tests.waiting import wait_for
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Access, AccessBatch, BatchDone

THR, IER, IIR, FCR, MCR, LSR = 0, 1, 2, 2, 4, 5
LSR_SHADOW = (0, LSR, 1)
DR = 1


@pytest.fixture
def hart(machine: Machine) -> Hart:
    machine.start_memory()
    UART.start(machine, "--chardev", f"socket:{machine.path}/uart0.console")
    return machine.hart("uart0")


def writes(text: bytes) -> list[Access]:
    return [Access(offset=THR, size=1, write=True, value=byte) for byte in text]


def write_until_held_back(machine: Machine, hart: Hart, text: bytes) -> int:
    """Write `text` again and again until a batch waits because nobody reads; gives the number of bytes sent."""
    monitor = machine.monitor("uart0")
    answers: list[int] = []

    def answered_or_held() -> bool:
        if (packet := hart.peer.receive()) is not None:
            answers.append(packet.batch_done.done)
        return answers[-1:] == [sent] or monitor.health().counters["batches_waiting"] > 0

    sent = 0
    while not answers or answers[-1] == sent:
        assert sent < 4 << 20, "nothing holds the hart back"
        hart.peer.send(AccessBatch(epoch=1, sequence=hart.sequence, accesses=writes(text)))
        hart.sequence += len(text)
        sent += len(text)
        wait_for(answered_or_held, "an answer, or that the batch waits")
    assert answers[-1] == sent - len(text)
    return sent


def answer(hart: Hart) -> BatchDone:
    """The next answer to a batch. That it is held back may have been said before, or is still on its way."""
    while (packet := hart.peer.receive(PATIENCE)) is not None and packet.batch_done.held:
        pass
    assert packet is not None
    return packet.batch_done


def test_output_in_order_for_all_clients(machine: Machine, hart: Hart) -> None:
    first, second = console(machine.path / "uart0.console"), console(machine.path / "uart0.console")
    hart.batch(*writes(b"one "))
    hart.batch(*writes(b"two"))
    assert receive(first, 7) == receive(second, 7) == b"one two"


def test_a_late_client_gets_the_last_64_kib(machine: Machine, hart: Hart) -> None:
    text = b"".join(b"%07d\n" % number for number in range(10_000))
    for start in range(0, len(text), hart.window):
        hart.batch(*writes(text[start : start + hart.window]))
    late = console(machine.path / "uart0.console")
    assert receive(late, 65536) == text[-65536:]


def test_a_client_that_is_gone_does_no_harm(machine: Machine, hart: Hart) -> None:
    gone = console(machine.path / "uart0.console")
    hart.batch(*writes(b"x"))
    receive(gone, 1)
    gone.close()
    for _ in range(3):
        hart.batch(*writes(b"more"))
    assert receive(console(machine.path / "uart0.console"), 13) == b"xmoremoremore"


def test_a_client_that_does_not_read_makes_the_hart_wait(machine: Machine, hart: Hart) -> None:
    slow = console(machine.path / "uart0.console")
    text = bytes(range(256)) * (hart.window // 256)
    sent = write_until_held_back(machine, hart, text)
    assert machine.monitor("uart0").health().phase == lifecycle.SERVICE_RUNNING
    assert receive(slow, sent) == text * (sent // len(text))
    assert answer(hart).done == sent


def test_drain_takes_what_a_slow_client_holds_up(machine: Machine, hart: Hart) -> None:
    slow = console(machine.path / "uart0.console")
    write_until_held_back(machine, hart, b"y" * hart.window)
    monitor = machine.monitor("uart0")
    monitor.ask(lifecycle.Pause())
    monitor.ask(lifecycle.Drain())
    assert answer(hart).done == hart.sequence - 1
    slow.close()


def test_shutdown_brings_the_output_out(machine: Machine, hart: Hart) -> None:
    client = console(machine.path / "uart0.console")
    text = b"z" * hart.window
    for _ in range(100):
        hart.batch(*writes(text))
    monitor = machine.monitor("uart0")
    number = monitor.peer.send(lifecycle.Shutdown())
    assert receive(client, 100 * len(text) + 1) == text * 100
    packet = monitor.peer.receive(PATIENCE)
    assert packet is not None
    assert (packet.id, packet.WhichOneof("body")) == (number, "done")
    assert machine.processes["uart0"].wait(PATIENCE) == 0


def test_input_raises_the_line_and_is_held_back(machine: Machine, hart: Hart) -> None:
    irqchip = Irqchip(machine, "uart0")
    hart.write(FCR, 0x01)
    hart.write(IER, 0x01)
    client = console(machine.path / "uart0.console")
    text = bytes(range(200))
    client.sendall(text)
    got = b""
    while len(got) < len(text):
        irqchip.until(lambda: irqchip.levels.get(0, False), "the line")
        assert irqchip.shadows[LSR_SHADOW] is not None
        while irqchip.levels[0]:
            done = hart.batch(Access(offset=THR, size=1))
            got += bytes([done.value])
            if done.HasField("update"):
                # The two ways of updates may overtake each other: an older one is dropped, as the cpu does.
                if done.update.sequence > irqchip.sequence:
                    irqchip.apply(done.update)
                else:
                    with suppress(StopIteration):
                        irqchip.levels[0] = next(line.level for line in done.update.lines)
            while (packet := irqchip.peer.receive()) is not None:
                if packet.device_update.sequence > irqchip.sequence:
                    irqchip.apply(packet.device_update)
    assert got == text


def test_input_waits_while_paused(machine: Machine, hart: Hart) -> None:
    monitor = machine.monitor("uart0")
    client = console(machine.path / "uart0.console")
    monitor.ask(lifecycle.Pause())
    client.sendall(b"k")
    for _ in range(20):
        assert not hart.read(LSR) & DR
    monitor.ask(lifecycle.Resume())
    wait_for(lambda: bool(hart.read(LSR) & DR), "the byte")
    assert hart.read(THR) == ord("k")


def test_more_clients_than_places(machine: Machine, hart: Hart) -> None:
    clients = [console(machine.path / "uart0.console") for _ in range(20)]
    hart.batch(*writes(b"hello"))
    assert sorted(receive(client, 5) for client in clients) == [b""] * 4 + [b"hello"] * 16


@pytest.mark.parametrize(
    ("specification", "named"),
    [
        ("nonsense", "expected socket:PATH"),
        ("socket:/nonexistent/x", "cannot listen"),
        ("file:/nonexistent/x", "cannot write"),
        ("unix:/nonexistent/x", "cannot connect"),
        ("unix:/tmp/x,color=red", "color=red"),
    ],
)
def test_bad_specifications_end_with_one_line(machine: Machine, specification: str, named: str) -> None:
    machine.start_memory()
    UART.start(machine, "--chardev", specification)
    assert named in machine.failure("uart0")
