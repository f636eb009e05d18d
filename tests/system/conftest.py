"""Machines as a user has them: `vmesh run` on a terminal or between pipes, in a runtime directory of their own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LIMIT, wait_for
from vmesh import guest
from vmesh.guest import Guest
from vmesh.spawn import python

PROMPT = "~ # "
# Words for the kernel where its start is not what is tested: it leaves out a third of its work, the tests that it runs
# on its own cryptography and type information, and with the second says little, too.
NO_SELF_TESTS = (
    "cryptomgr.notests initcall_blacklist=jent_mod_init,crypto_kdf108_init,load_system_certificate_list,"
    "blake2s_mod_init,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init"
)
_WHERE = "\x1b[6n"  # "where is the cursor?"
BRIEF = f"loglevel=1 {NO_SELF_TESTS}"


class Terminal:
    """A command on a terminal of its own, or with `pipes` as a script has it: nothing to read, all output together."""

    def __init__(self, command: list[str], environment: dict[str, str], root: Path, *, pipes: bool = False) -> None:
        self.output = ""  # all that came, without carriage returns, and what a shell asks its terminal at any time
        self._held = ""  # what may be the beginning of that
        self._seen = 0  # how much of it was expected already
        self._ended = False
        self.limit = LIMIT  # seconds for what is expected to come
        if pipes:
            self._fd, theirs = os.pipe()
            self.process = subprocess.Popen(
                command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
            )
        else:
            self._fd, theirs = pty.openpty()
            self.process = subprocess.Popen(
                command, cwd=root, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
                start_new_session=True, preexec_fn=_take_terminal,  # noqa: PLW1509
            )  # fmt: skip
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def expect(self, text: str) -> str:
        """Wait for `text`; gives what came before it, since the last text that was expected."""
        deadline = time.monotonic() + self.limit
        while (place := self.output.find(text, self._seen)) < 0:
            self._read(deadline, text)
        before = self.output[self._seen : place]
        self._seen = place + len(text)
        return before

    def ask(self, command: str, prompt: str = PROMPT) -> str:
        """What a shell answers to a command."""
        self.type(command + "\n")
        self.expect(command + "\n")
        return self.expect(prompt)

    def interrupt(self, prompt: str = PROMPT) -> None:
        """Ctrl-C until a shell gives its prompt: what comes while it starts a command does not reach that command."""
        deadline = time.monotonic() + LIMIT
        while self.output.find(prompt, self._seen) < 0:
            assert time.monotonic() < deadline, f"waited {LIMIT:g} s for {prompt!r} after {self.output[-2000:]!r}"
            self.type("\x03")
            until = time.monotonic() + 2.0
            while self.output.find(prompt, self._seen) < 0 and time.monotonic() < until:
                if select.select([self._fd], [], [], 0.1)[0]:
                    self._read(deadline, prompt)
        self.expect(prompt)

    def wait(self) -> int:
        """Everything to its end: the exit status."""
        deadline = time.monotonic() + self.limit
        while not self._ended:
            self._read(deadline, "the end")
        return self.process.wait(LIMIT)

    def terminal_modes(self) -> int:
        """The local modes of the terminal, see termios(3)."""
        flags: int = termios.tcgetattr(self._fd)[3]
        return flags

    def close(self) -> None:
        """End it in order if it has not ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self._fd)

    def _read(self, deadline: float, what: str) -> None:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"waited {self.limit:g} s for {what!r} after {self.output[-2000:]!r}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # of a terminal that everybody has closed
            data = b""
        assert data or what == "the end", f"ended before {what!r}: {self.output[-2000:]!r}"
        self._ended = not data
        text = (self._held + data.decode(errors="replace").replace("\r", "")).replace(_WHERE, "")
        held = 0 if self._ended else next(size for size in (3, 2, 1, 0) if text.endswith(_WHERE[:size]))
        self.output += text[: len(text) - held]
        self._held = text[len(text) - held :]


class Host:
    """Where machines of one test session run; `runtime` is their VMESH_RUNTIME."""

    def __init__(self, runtime: Path, root: Path) -> None:
        self.runtime = runtime
        self.environment = {**os.environ, "VMESH_RUNTIME": str(runtime), "TERM": "dumb"}
        self._root = root

    def run(self, *flags: str, pipes: bool = False, **environment: str) -> Terminal:
        """`vmesh run`."""
        return Terminal(_vmesh("run", *flags), {**self.environment, **environment}, self._root, pipes=pipes)

    def vmesh(self, *arguments: str, status: int = 0, stdin: str = "", by: Sequence[str] = ()) -> str:
        """What a vmesh command prints (on stderr if it fails), given `stdin` and run `by` another command; it ends with
        `status`."""
        done = subprocess.run(
            [*by, *_vmesh(*arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    def script(self, *flags: str, stdin: str, status: int = 0) -> str:
        """What `vmesh run` prints, given `stdin`; it ends with `status`."""
        done = subprocess.run(
            _vmesh("run", *flags), input=stdin.encode(), capture_output=True, env=self.environment, timeout=LIMIT,
            check=False,
        )  # fmt: skip
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout.decode().replace("\r\n", "\n")

    def ps(self) -> dict[str, dict[str, Any]]:
        """The machines by name, as `vmesh ps --json` has them."""
        return {machine["name"]: machine for machine in json.loads(self.vmesh("ps", "--json"))}

    def next_life(self, machine: str, service: str, former: Collection[int]) -> int:
        """The process of a service, once that is none of its `former` ones and runs."""
        found: list[int] = []

        def lives() -> bool:
            each = next(each for each in self.ps()[machine]["services"] if each["name"] == service)
            found.append(each["pid"])
            return each["state"] == "running" and each["pid"] not in former

        wait_for(lives, f"{service}'s next life")
        return found[-1]


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def counters(log: Path, service: str) -> dict[str, int]:
    """What a service counted in its life, from the log of a machine that has ended."""
    (found,) = re.findall(rf"^\S+ info {service} counted (.*)$", log.read_text(), re.MULTILINE)
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", found)}


def _vmesh(*arguments: str) -> list[str]:
    return python("vmesh.cli", *arguments)


@pytest.fixture(scope="session")
def host(root: Path) -> Iterator[Host]:
    runtime = Path(tempfile.mkdtemp(prefix="vmesh-system-"))  # not pytest's: it is too long for a socket's path
    yield Host(runtime, root)
    left = sorted(path.name for path in runtime.iterdir())
    shutil.rmtree(runtime)
    assert not left, "machines left something behind"


@pytest.fixture
def run(host: Host) -> Iterator[Callable[..., Terminal]]:
    """Host.run, with whatever still runs ended after the test."""
    started: list[Terminal] = []

    def start(*flags: str, pipes: bool = False, **environment: str) -> Terminal:
        started.append(host.run(*flags, pipes=pipes, **environment))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


@pytest.fixture(scope="session")
def debian() -> Guest:
    found = guest.find()
    if found is None:
        pytest.skip("Debian's guest is not cached (make guest)")
    return found


@pytest.fixture(scope="session")
def shell(host: Host, debian: Guest) -> Iterator[Terminal]:
    """A terminal at the shell of a Debian machine called `shared`, which tests leave as they found it."""
    gdb = host.runtime / "shared" / "gdb"
    terminal = host.run("-name", "shared", "-append", BRIEF, "-gdb", f"unix:{gdb}")
    try:
        terminal.expect(PROMPT)
        yield terminal
    finally:
        terminal.close()
