"""One HMP client: the prompt, its line editor, and a command at a time."""

from __future__ import annotations

from vmesh_services.monitor.control import Control
from vmesh_services.monitor.hmp import commands
from vmesh_services.monitor.hmp.editor import LineEditor
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers.control import version_info
from vmesh_services.monitor.stream_server import Stream

PROMPT = "(vmesh) "


class Session:
    """Speaks HMP on a stream that is, or is like, a terminal."""

    def __init__(self, control: Control, stream: Stream) -> None:
        self._control = control
        self._stream = stream
        self._editor = LineEditor(PROMPT, lambda line: commands.complete(control, line))
        self._input = bytearray()
        self._busy = False  # with a command that is not done
        self._pumping = False
        self._hart = 0
        self._say(f"{version_info()['package']} monitor - type 'help' for more information\n{PROMPT}")

    def received(self, data: bytes) -> None:
        self._input += data
        self._pump()

    def drained(self) -> None:
        self._pump()

    def ended(self) -> None:
        self._input.clear()

    def _pump(self) -> None:
        """Take keys until a line is complete and its command not done, or the client does not read the answers."""
        if self._pumping:
            return
        self._pumping = True
        taken, echo = 0, ""
        while taken < len(self._input) and not (self._busy or self._stream.crowded or self._stream.closed):
            text, line = self._editor.key(self._input[taken])
            taken += 1
            echo += text
            if line is not None:
                self._say(echo)
                echo = ""
                self._run(line)
        del self._input[:taken]
        self._say(echo)
        self._pumping = False
        self._stream.hold(self._busy)

    def _run(self, line: str) -> None:
        self._busy = True
        self._control.carry_out(lambda: commands.execute(self._control, line, self._hart), self._done)

    def _done(self, answer: object) -> None:
        self._busy = False
        if isinstance(answer, commands.Chosen):
            self._hart = answer.hart
        self._say(f"Error: {answer}\n{PROMPT}" if isinstance(answer, QmpError) else f"{answer}{PROMPT}")
        self._pump()

    def _say(self, text: str) -> None:
        if text:
            self._stream.write(text.replace("\n", "\r\n").encode())
