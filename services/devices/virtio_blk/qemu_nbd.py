"""Formats that vmesh does not know: qemu-nbd (Debian: qemu-utils) makes a plain disk of them, which we reach by NBD.

The server is a child and gets SIGTERM when the device dies, however it dies: it then writes back what it holds and
ends, and the device's successor starts its own as soon as the image is free.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import time
from pathlib import Path

from vmesh import errors
from vmesh_services.devices.virtio_blk.nbd import Address, NbdImage

PROGRAM = "qemu-nbd"
_PATIENCE = 10.0  # seconds for a server to come up, and for one before it to end
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class ServedImage(NbdImage):
    """The image `file` of a `format` that qemu-nbd knows, served at `socket`. Raises ConfigError."""

    def __init__(self, file: Path, format_: str, socket: Path, *, read_only: bool, discard: bool) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise errors.ConfigError(f"format={format_} needs {PROGRAM}, which is not installed (Debian: qemu-utils)")
        command = [program, "--persistent", f"--socket={socket}", f"--format={format_}"]
        command += [f"--discard={'unmap' if discard else 'ignore'}", *["--read-only"] * read_only, str(file)]
        deadline = time.monotonic() + _PATIENCE
        while True:
            socket.unlink(missing_ok=True)
            self._server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )  # fmt: skip
            while not socket.exists() and self._server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self._server.poll() is None:
                break
            assert self._server.stderr is not None
            said = self._server.stderr.read().strip()
            if "lock" not in said or time.monotonic() >= deadline:
                raise errors.ConfigError(f"{PROGRAM} cannot serve {file}: {said}")
            time.sleep(0.1)
        try:
            super().__init__(Address(str(socket), "", 0, ""), read_only=read_only, patience=_PATIENCE)
        except errors.ConfigError:
            self._server.kill()
            raise

    def close(self) -> None:
        """The server writes back what it holds, and ends."""
        super().close()
        self._server.terminate()
        self._server.wait()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
