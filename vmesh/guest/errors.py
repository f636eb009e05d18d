"""What can go wrong with guests; each message is one line for the user."""

from __future__ import annotations


class GuestError(Exception):
    """A guest cannot be fetched, unpacked or built."""
