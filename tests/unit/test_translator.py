"""The translator's process: answers, deaths, garbage. Harts never notice."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.models.assembler import assemble
from tests.waiting import wait_for
from vmesh_services.cpu.core import translator
from vmesh_services.cpu.core.region import ALL
from vmesh_services.cpu.core.region_store import RegionStore, store_path
from vmesh_services.cpu.core.regions import Translation
from vmesh_services.cpu.core.tlb import PAGE
from vmesh_services.cpu.core.translator import translate
from vmesh_services.cpu.core.translator_process import MOST_STARTS, Request, TranslatorProcess
from vmesh_services.cpu.isa.interface import Isa
from vmesh_services.cpu.isa.riscv.definition import ISA
from vmesh_services.cpu.isa.riscv.features import FEATURES
from vmesh_services.cpu.native.build import BuildError

PAGE_OF_CODE = assemble("loop: addi a0, a0, 1\n addi a1, a1, 1\n addi a2, a2, 1\n bnez a3, loop\n ecall", 0).code.ljust(
    PAGE, b"\0"
)
DIGEST = bytes(range(24))
LIMIT = 60


class Answers(queue.Queue[tuple[bytes, Translation]]):
    """What came back."""

    def __call__(self, digest: bytes, translation: Translation, microseconds: int) -> None:
        assert microseconds > 0
        self.put((digest, translation))


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def process(answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TranslatorProcess]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = TranslatorProcess(ISA.name, frozenset(FEATURES), answers, keep=True)
    yield made
    made.close()


def is_expected(translation: Translation) -> bool:
    """Whether it is the loop's."""
    return translation == translate(ISA, Request(DIGEST, 0, 0, frozenset(FEATURES), ALL, PAGE_OF_CODE))


def test_a_request_is_answered_and_kept(process: TranslatorProcess, answers: Answers) -> None:
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    digest, first = answers.get(timeout=LIMIT)
    assert digest == DIGEST
    assert is_expected(first)
    process.request(DIGEST[::-1], PAGE_OF_CODE, 4, ALL, 0)
    digest, translation = answers.get(timeout=LIMIT)
    assert digest == DIGEST[::-1]
    assert translation.sound
    # the first is on disk before the second is compiled
    assert RegionStore(store_path()).find(DIGEST) == [first]


def test_nothing_is_kept_unless_asked(answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process = TranslatorProcess(ISA.name, frozenset(FEATURES), answers, keep=False)
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    assert answers.get(timeout=LIMIT)[0] == DIGEST
    process.close()
    assert not store_path().exists()


def test_many_requests_at_once(process: TranslatorProcess, answers: Answers) -> None:
    """More than the socket holds; where nothing can be compiled the answer says so."""
    for number in range(40):
        code = bytes([number]) * 24, PAGE_OF_CODE, 0 if number % 2 else 16, ALL, number << 12
        wait_for(partial(process.request, *code), "room for a request")
    got = dict(answers.get(timeout=LIMIT) for _ in range(40))
    assert got.keys() == {bytes([number]) * 24 for number in range(40)}
    assert all(is_expected(each) if digest[0] % 2 else each == Translation.nothing(16) for digest, each in got.items())


def pid_of(process: TranslatorProcess) -> int:
    assert process._process is not None
    return process._process.pid


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_translator_is_started_again(process: TranslatorProcess, answers: Answers, stopped: bool) -> None:
    """Killed while idle, or with requests that it has not read; requests are answered again, no child is left."""
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    answers.get(timeout=LIMIT)
    first = pid_of(process)
    if stopped:
        os.kill(first, signal.SIGSTOP)
        for _ in range(3):
            process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    os.kill(first, signal.SIGKILL)

    def answered() -> bool:
        # what is sent to a process that is about to die is lost
        process.request(b"2" * 24, PAGE_OF_CODE, 0, ALL, 0)
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=2)[0] == b"2" * 24
        return False

    wait_for(answered, "an answer")
    assert pid_of(process) != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_a_translator_that_always_dies(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not started for ever: the machine goes on without."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    process = TranslatorProcess(ISA.name, frozenset(FEATURES), answers, keep=False)
    deadline = time.monotonic() + LIMIT
    while process.starts < MOST_STARTS and time.monotonic() < deadline:
        process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
        time.sleep(0.01)
    time.sleep(0.1)
    for _ in range(10):
        process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
        time.sleep(0.02)
    assert process.starts == MOST_STARTS
    assert not process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    process.close()


def test_asked_again_a_request_is_the_newest() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    order = [0, 1, 2, 1, 0]
    with ours, theirs:
        for number in order:
            request = Request(bytes([number]) * 24, 0, number << 12, frozenset(FEATURES), ALL, PAGE_OF_CODE)
            ours.send(request.pack())
        thread = threading.Thread(target=translator.serve, args=(ISA, theirs, None))
        thread.start()
        answered = [ours.recv(1 << 20)[0] for _ in range(3)]
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT)
    assert answered == [0, 1, 2]


def test_what_a_page_held_before_is_not_compiled() -> None:
    """Data beside the code changes all the time: of each place the newest request waits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for number in range(20):
            ours.send(Request(bytes([number]) * 24, 0, 0x8000_0000, frozenset(FEATURES), ALL, PAGE_OF_CODE).pack())
        thread = threading.Thread(target=translator.serve, args=(ISA, theirs, None))
        thread.start()
        assert ours.recv(1 << 20)[0] == 19
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT)


def test_another_thread_starts_it_where_a_hart_must_not_wait(answers: Answers) -> None:
    asked = threading.Event()
    process = TranslatorProcess(ISA.name, frozenset(FEATURES), answers, keep=False, start_soon=asked.set)
    assert not process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    assert asked.is_set()
    assert process.starts == 0
    process.start()
    assert process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    assert answers.get(timeout=LIMIT)[0] == DIGEST
    process.close()
    assert not process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)  # it is closed for good
    assert process._process is not None
    assert process._process.returncode is not None


def test_what_cannot_be_compiled_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(isa: Isa, request: Request) -> Translation | None:
        if request.digest[0] == 1:
            raise BuildError("LLVM does not like it")
        return translate(isa, request)

    monkeypatch.setattr(translator, "translate", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for number in (2, 1):
            ours.send(Request(bytes([number]) * 24, 0, number << 12, frozenset(FEATURES), ALL, PAGE_OF_CODE).pack())
        thread = threading.Thread(target=translator.serve, args=(ISA, theirs, None))
        thread.start()
        assert ours.recv(1 << 20)[0] == 2
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT)


def test_a_translator_that_does_not_read(process: TranslatorProcess, answers: Answers) -> None:
    """A hart that asks never waits: it is told that there is no room."""
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    answers.get(timeout=LIMIT)
    os.kill(pid_of(process), signal.SIGSTOP)
    taken: list[int] = []
    done = threading.Event()

    def ask() -> None:
        taken.append(sum(process.request(DIGEST[::-1], PAGE_OF_CODE, 0, ALL, 0) for _ in range(500)))
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    try:
        assert done.wait(LIMIT / 3)
        assert taken[0] < 500
    finally:
        os.kill(pid_of(process), signal.SIGCONT)
    assert answers.get(timeout=LIMIT)[0] == DIGEST[::-1]


def test_close_ends_it(process: TranslatorProcess, answers: Answers) -> None:
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    pid = pid_of(process)
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    process.close()


def test_it_ends_with_the_cpu() -> None:
    """The other end of the connection is gone: nothing is left behind."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        thread = threading.Thread(target=translator.serve, args=(ISA, theirs, None))
        thread.start()
        ours.close()
        thread.join(LIMIT)
        assert not thread.is_alive()


def answer(steps: int, entries: int, code: int, body: bytes) -> bytes:
    return struct.pack("<24sHHII", DIGEST, steps, entries, code, 1) + body


GARBAGE = {
    "half a header": bytes(10),
    "less than it says": answer(2, 2, 10, bytes(13)),
    "more than it says": answer(2, 2, 10, bytes(15)),
    "4 GiB": answer(2, 2, 0xFFFF_FFFF, bytes(15)),
    "noise": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_the_process(
    process: TranslatorProcess, answers: Answers, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is handed on; the next request goes to a new one."""
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    assert answers.get(timeout=LIMIT)[0] == DIGEST
    first = pid_of(process)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ended = threading.Event()

    def read() -> None:
        process._read(ours)
        ended.set()

    # as if this came from the process
    with process._lock:
        old, process._connection = process._connection, ours
    threading.Thread(target=read, daemon=True).start()
    with theirs:
        theirs.sendall(GARBAGE[what])
        assert ended.wait(LIMIT)
    assert old is not None
    assert answers.empty()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    process.request(DIGEST, PAGE_OF_CODE, 0, ALL, 0)
    assert answers.get(timeout=LIMIT)[0] == DIGEST
    assert pid_of(process) != first
    with pytest.raises(OSError):  # noqa: PT011
        ours.send(b"")
