"""The errors that cross a boundary: each has a class here and a code in common.proto, and says itself in one line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # the command line has errors too, and no time to import messages
    from vmesh.v1 import common_pb2

_SHOWN = 300  # characters of what an error says that is none of these


class VmeshError(Exception):
    """`text` says what failed; `expected` and `got`, where given, what would have been right and what came instead."""

    code: ClassVar[str] = "ERROR_INTERNAL"  # its name in common.proto

    def __init__(self, text: str, *, expected: str = "", got: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        line = self.text
        if self.expected:
            line += f": expected {self.expected}"
        if self.got:
            line += f"{',' if self.expected else ':'} got {self.got}"
        return " ".join(line.split())

    def message(self) -> common_pb2.Error:
        from vmesh.v1 import common_pb2

        code = common_pb2.ErrorCode.Value(self.code)
        return common_pb2.Error(code=code, text=self.text, expected=self.expected, got=self.got)


class BadRequest(VmeshError):
    """Not a request this service knows, or its fields are out of range."""

    code = "ERROR_BAD_REQUEST"


class NotAllowed(VmeshError):
    """Not for the role that the peer stated."""

    code = "ERROR_NOT_ALLOWED"


class StaleEpoch(VmeshError):
    """The batch is for another life of the device."""

    code = "ERROR_STALE_EPOCH"


class TooMany(VmeshError):
    """More unacknowledged accesses than the window, or more connections than a service takes."""

    code = "ERROR_TOO_MANY"


class Overlap(VmeshError):
    """A region lies over memory or over another region."""

    code = "ERROR_OVERLAP"


class Duplicate(VmeshError):
    """A name or an interrupt line is taken."""

    code = "ERROR_DUPLICATE"


class OutsideGrant(VmeshError):
    """Guest memory that this device may not use, or that is not there."""

    code = "ERROR_OUTSIDE_GRANT"


class BadState(VmeshError):
    """A state that cannot be loaded; nothing was changed."""

    code = "ERROR_BAD_STATE"


class HostLimit(VmeshError):
    """The host does not have what was asked for."""


class ImageError(VmeshError):
    """An image that cannot be loaded where it should go."""


class ConfigError(VmeshError):
    """A command line that cannot be served."""


class PeerError(VmeshError):
    """The other side of a connection: refused us, sent something wrong, or is gone."""


class OutsideLimits(PeerError):
    """The other side has said what no message may say (proto/vmesh/v1/limits.proto)."""


class PeerTimeout(PeerError):
    """No answer in time."""


class PeerLost(PeerError):
    """The connection was cut: what is not answered may or may not have arrived."""


class MemoryFailed(PeerError):
    """The memory service has said what it cannot mean: what waits for it cannot go on, nor be taken back."""


class Unforeseen(VmeshError):
    """What nobody foresaw, at the boundary of a loop: a fault of ours, unless the host has run out of something."""


class LifelineEnded(VmeshError):
    """The process that started this one is gone."""


_BY_CODE: dict[str, type[VmeshError]] = {
    kind.code: kind
    for kind in (BadRequest, NotAllowed, StaleEpoch, TooMany, Overlap, Duplicate, OutsideGrant, BadState)
}


def from_message(error: common_pb2.Error) -> VmeshError:
    """The error that a peer's Error packet stands for."""
    from vmesh.v1 import common_pb2

    code = dict(zip(common_pb2.ErrorCode.values(), common_pb2.ErrorCode.keys(), strict=True)).get(error.code, "")
    return _BY_CODE.get(code, PeerError)(error.text, expected=error.expected, got=error.got)


def said(error: BaseException) -> VmeshError:
    """`error` as it crosses a boundary: what is no VmeshError by then was not foreseen where it was raised. A refusal
    of the host says which and of what, anything else also where, for whoever mends it."""
    if isinstance(error, VmeshError):
        return error
    if isinstance(error, OSError) and error.strerror:
        what = f" {os.fsdecode(error.filename)[:_SHOWN]}" if isinstance(error.filename, str | bytes) else ""
        return HostLimit(f"{error.strerror}{':' if what else ''}{what}")
    if isinstance(error, MemoryError):
        return HostLimit("not enough memory")
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    place = f" ({os.path.basename(step.tb_frame.f_code.co_filename)}:{step.tb_lineno})" if step is not None else ""
    return Unforeseen(f"{type(error).__name__}: {str(error)[:_SHOWN]}{place}")
