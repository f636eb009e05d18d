"""QMP's errors: a class that programs look at, and one line for people (QEMU, qapi/error.json)."""

from __future__ import annotations


class QmpError(Exception):
    """What a command failed with; `kind` is QMP's error class."""

    kind = "GenericError"


class CommandNotFound(QmpError):
    kind = "CommandNotFound"


class DeviceNotFound(QmpError):
    kind = "DeviceNotFound"


class DeviceNotActive(QmpError):
    kind = "DeviceNotActive"
