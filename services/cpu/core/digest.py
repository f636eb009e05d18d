"""BLAKE2b without OpenSSL, which hashlib loads: 3.5 MB in each process, and milliseconds of its start, for nothing."""

try:
    from _blake2 import blake2b
except ImportError:  # another Python than CPython
    from hashlib import blake2b

__all__ = ["blake2b"]
