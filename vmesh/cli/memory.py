"""`vmesh memory NAME ADDRESS LENGTH`: guest memory as a hexadecimal dump, as JSON or into a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from vmesh.client import GatewayError, MachineClient, connect
from vmesh.machine import MachineError

_PIECE = 1 << 20  # bytes of one question
_SHOWN = 1 << 20  # bytes that are printed at most
_COLUMNS = 16


def memory(options: argparse.Namespace) -> int:
    """Returns the exit status: 1 also if memory ends before LENGTH."""
    address, length = options.address, options.length
    if options.output is None and length > _SHOWN:
        print(f"vmesh memory: expected at most {_SHOWN} bytes without -o FILE, got {length}", file=sys.stderr)
        return 2
    try:
        with connect(options.name) as client:
            found = 0
            if options.output is not None:
                with options.output.open("wb") as file:
                    for piece in _pieces(client, options):
                        file.write(piece)
                        found += len(piece)
            else:
                data = b"".join(_pieces(client, options))
                found = len(data)
                if options.json:
                    print(json.dumps({"address": address, "physical": options.physical, "data": data.hex()}))
                else:
                    print("\n".join(dump(address, data)))
    except (MachineError, GatewayError) as error:
        hint = " (--physical takes a physical one)" if "a virtual address" in str(error) else ""
        print(f"vmesh memory: {error}{hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vmesh memory: {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    if found < length:
        kind = "physical" if options.physical else "virtual"
        print(f"vmesh memory: there is no memory at the {kind} address {address + found:#x}", file=sys.stderr)
        return 1
    return 0


def _pieces(client: MachineClient, options: argparse.Namespace) -> Iterator[bytes]:
    """Until LENGTH, or where memory ends."""
    done = 0
    while done < options.length:
        wanted = min(_PIECE, options.length - done)
        try:
            data = client.read_memory(options.address + done, wanted, hart=options.hart, physical=options.physical)
        except GatewayError:
            if not done:
                raise
            return
        yield data
        done += len(data)
        if len(data) < wanted:
            return


def dump(address: int, data: bytes) -> Iterator[str]:
    """Lines of 16 bytes with the characters that they are."""
    for place in range(0, len(data), _COLUMNS):
        row = data[place : place + _COLUMNS]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{address + place:016x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{text}|"
