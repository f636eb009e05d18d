"""Devices in QEMU's words (qdev): what -device, -drive, -netdev and -fsdev say, on a command line, in QMP and in HMP.

`added.Added` is what they ask for; parts of a board come of it (vmesh/board/parts.py).
"""
