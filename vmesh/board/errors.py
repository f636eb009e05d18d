"""What can be wrong with a machine as it was described; each message is one line for the user."""

from __future__ import annotations


class BoardError(Exception):
    """The machine cannot be built as asked."""


class CpuModelError(BoardError):
    """A `-cpu` text that names no model, an unknown feature, or features that do not go together."""


class ImageError(BoardError):
    """A firmware, kernel, initrd or device tree that cannot be read, does not fit, or lies over another."""
