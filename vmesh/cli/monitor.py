"""`vmesh monitor NAME`: the machine's HMP prompt, edited here, with completion and a history that is kept.

The commands are the monitor's: each line travels as human-monitor-command through the machine's QMP socket.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from vmesh import connecting
from vmesh.machine import MachineDirectory, MachineError, find

PROMPT = "(vmesh) "
_ANSWER_SECONDS = 3600.0  # savevm of a large machine takes long; Ctrl-C gives up sooner


class MonitorError(Exception):
    """The monitor refused or did not answer; the message is one line for the user."""


class MonitorClient:
    """A QMP connection to a machine. Every call raises MonitorError."""

    def __init__(self, machine: MachineDirectory) -> None:
        self._name = machine.name
        try:
            self._socket = connecting.connect(machine.qmp)
        except OSError as error:
            raise MonitorError(
                f"machine '{machine.name}' does not answer at {machine.qmp}: {error.strerror}"
            ) from error
        self._socket.settimeout(_ANSWER_SECONDS)
        self._lines = self._socket.makefile("rb")
        self._receive()  # the greeting
        self.call("qmp_capabilities")

    def __enter__(self) -> MonitorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def call(self, command: str, **arguments: object) -> object:
        """What a QMP command returns."""
        message = {
            "execute": command,
            "arguments": {name.replace("_", "-"): value for name, value in arguments.items()},
        }
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise MonitorError(f"machine '{self._name}' is gone: {error.strerror}") from error
        while True:
            answer = self._receive()
            if "error" in answer:
                raise MonitorError(str(answer["error"]["desc"]))
            if "return" in answer:
                return answer["return"]

    def line(self, text: str) -> str:
        """What a line of HMP prints."""
        return str(self.call("human-monitor-command", command_line=text)).replace("\r", "")

    def complete(self, text: str) -> list[str]:
        """The words that could stand where the line's last one does."""
        found = self.call("__org.vmesh_complete", line=text)
        return [str(word) for word in found] if isinstance(found, list) else []

    def _receive(self) -> dict[str, dict[str, object]]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise MonitorError(f"machine '{self._name}' does not answer: {error}") from error
        if not line:
            raise MonitorError(f"machine '{self._name}' has ended")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


class _Completer(Completer):
    def __init__(self, client: MonitorClient) -> None:
        self._client = client

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        start = -len(text.rpartition(" ")[2])
        with suppress(MonitorError):
            for word in self._client.complete(text):
                yield Completion(word, start_position=start)


def monitor(name: str, commands: list[str]) -> int:
    """Run the prompt, or just `commands`. Returns the exit status; errors are one line on stderr."""
    try:
        with MonitorClient(find(name)) as client:
            if commands:
                for command in commands:
                    print(client.line(command), end="")
            elif os.isatty(0):
                _prompt(client)
            else:
                for line in sys.stdin:
                    print(client.line(line.strip()), end="", flush=True)
    except (MachineError, MonitorError) as error:
        print(f"vmesh monitor: {error}", file=sys.stderr)
        return 1
    return 0


def _prompt(client: MonitorClient) -> None:
    session: PromptSession[str] = PromptSession(
        PROMPT, completer=_Completer(client), history=_history(), complete_while_typing=False
    )
    while True:
        try:
            line = session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        print(client.line(line), end="", flush=True)
        if line.strip() in ("quit", "q"):
            return


def _history() -> History:
    """In $XDG_STATE_HOME (~/.local/state), for its owner; where that cannot be, of this session."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "vmesh"
    path = state / "monitor-history"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
