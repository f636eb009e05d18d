"""The messages of 9P2000.L as bytes: one table, from which requests are read and replies are written.

Source: diod's protocol.md; for the numbers of the messages Linux, include/net/9p/9p.h. All integers are little endian.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

HEADER = struct.Struct("<IBH")  # size of the whole message, its number, tag
RLERROR = 7
ERROR_SIZE = HEADER.size + 4
DATA_OVERHEAD = HEADER.size + 4  # of Rread and Rreaddir, in front of the data
MAX_WALK = 16  # names in a Twalk
NO_TAG = 0xFFFF
NO_FID = 0xFFFF_FFFF
QID_DIRECTORY, QID_SYMLINK, QID_FILE = 0x80, 0x02, 0x00

QID = struct.Struct("<BIQ")
_INTEGERS = {letter: struct.Struct("<" + letter) for letter in "BHIQ"}


class Qid(NamedTuple):
    """What the guest knows a file by: QID_*, a number that changes with the content, and one that never does."""

    kind: int
    version: int
    path: int


Value = int | bytes | list[bytes] | Qid | list[Qid]


@dataclass(frozen=True, slots=True)
class Form:
    """A request, and its reply, which has the next number. The fields are a letter each:

    B, H, I, Q an integer of 1, 2, 4 or 8 bytes; s a string with a length of two bytes; d data with one of four;
    n names, and l qids, with a count of two; q a qid; z what is left, which means nothing.
    """

    name: str
    request: str
    reply: str


FORMS: Mapping[int, Form] = {
    8: Form("statfs", "I", "IIQQQQQQI"),
    12: Form("lopen", "II", "qI"),
    14: Form("lcreate", "IsIII", "qI"),
    16: Form("symlink", "IssI", "q"),
    18: Form("mknod", "IsIIII", "q"),
    20: Form("rename", "IIs", ""),
    22: Form("readlink", "I", "s"),
    24: Form("getattr", "IQ", "QqIII" + "Q" * 15),
    26: Form("setattr", "IIIIIQQQQQ", ""),
    30: Form("xattrwalk", "IIs", "Q"),
    32: Form("xattrcreate", "IsQI", ""),
    40: Form("readdir", "IQI", "d"),
    50: Form("fsync", "Iz", ""),  # old clients leave datasync away
    52: Form("lock", "IBIQQIs", "B"),
    54: Form("getlock", "IBQQIs", "BQQIs"),
    70: Form("link", "IIs", ""),
    72: Form("mkdir", "IsII", "q"),
    74: Form("renameat", "IsIs", ""),
    76: Form("unlinkat", "IsI", ""),
    100: Form("version", "Is", "Is"),
    102: Form("auth", "IssI", "q"),
    104: Form("attach", "IIssI", "q"),
    108: Form("flush", "H", ""),
    110: Form("walk", "IIn", "l"),
    116: Form("read", "IQI", "d"),
    118: Form("write", "IQd", "I"),
    120: Form("clunk", "I", ""),
    122: Form("remove", "I", ""),
}


class Malformed(OSError):
    """Not a message: the error that answers it is EINVAL, or EOPNOTSUPP if nobody knows its number."""


def parse(message: bytes) -> tuple[int, list[Value]]:
    """Number and fields of a request. Raises Malformed."""
    size, number, _ = HEADER.unpack_from(message)
    form = FORMS.get(number)
    if form is None:
        raise Malformed(errno.EOPNOTSUPP, f"message {number}")
    if size != len(message):
        raise Malformed(errno.EINVAL, f"a message of {len(message)} bytes that says {size}")
    values: list[Value] = []
    at = HEADER.size
    try:
        for letter in form.request:
            if letter == "z":
                return number, values
            if letter == "s":
                value, at = _bytes(message, at, "H")
            elif letter == "d":
                value, at = _bytes(message, at, "I")
            elif letter == "n":
                (count,) = _INTEGERS["H"].unpack_from(message, at)
                if count > MAX_WALK:
                    raise Malformed(errno.EINVAL, f"{count} names")
                names = []
                at += 2
                for _ in range(count):
                    name, at = _bytes(message, at, "H")
                    names.append(name)
                values.append(names)
                continue
            else:
                integer = _INTEGERS[letter]
                values += integer.unpack_from(message, at)
                at += integer.size
                continue
            values.append(value)
    except struct.error:
        raise Malformed(errno.EINVAL, f"a {form.name} that ends too early") from None
    if at != size:
        raise Malformed(errno.EINVAL, f"a {form.name} of {size} bytes, of which {at} mean something")
    return number, values


def reply(number: int, tag: int, *values: Value) -> bytes:
    """The message that answers the request `number`."""
    parts = []
    for letter, value in zip(FORMS[number].reply, values, strict=True):
        if isinstance(value, Qid):
            parts.append(QID.pack(*value))
        elif isinstance(value, int):
            parts.append(_INTEGERS[letter].pack(value))
        elif isinstance(value, bytes):
            parts += (_INTEGERS["H" if letter == "s" else "I"].pack(len(value)), value)
        else:
            parts.append(_INTEGERS["H"].pack(len(value)))
            parts += [QID.pack(*each) for each in value if isinstance(each, Qid)]
    return _message(number + 1, tag, b"".join(parts))


def error(tag: int, code: int) -> bytes:
    """Rlerror, with an errno of Linux."""
    return _message(RLERROR, tag, _INTEGERS["I"].pack(code))


def _message(number: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), number, tag) + body


def _bytes(message: bytes, at: int, length: str) -> tuple[bytes, int]:
    integer = _INTEGERS[length]
    (size,) = integer.unpack_from(message, at)
    start = at + integer.size
    if size > len(message) - start:
        raise struct.error
    return message[start : start + size], start + size
