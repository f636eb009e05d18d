"""Disks."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vmesh import plain
from vmesh.qdev import virtio
from vmesh_services.monitor.control import Control, Parts, Work, counters
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers.devices import flag
from vmesh_services.monitor.qmp.handlers.registry import handles
from vmesh_services.monitor.qmp.schema.block import LIMITS, NOT_COUNTED

KIND = "virtio-blk"
_QCOW2_SIZE = slice(24, 32)  # of the header: the size of the disk, big-endian (QEMU, docs/interop/qcow2)


def disks(control: Control) -> list[str]:
    """The names of the disks' services."""
    return [service.command.name for service in control.devices() if service.command.kind == KIND]


@handles("query-block")
def _query_block(control: Control, arguments: Json) -> object:
    return [_block_info(control, name) for name in disks(control)]


def _block_info(control: Control, name: str) -> Json:
    options = control.options(name)
    file, cache = options.get("file", ""), options.get("cache", "writeback")
    inserted: Json = {
        "file": file,
        "node-name": name,
        "ro": "read-only" in options,
        "drv": options.get("format", "raw"),
        "encrypted": False,
        "cache": {"writeback": cache != "writethrough", "direct": False, "no-flush": cache == "unsafe"},
        "image": _image(file, options.get("format", "raw")),
        "backing_file_depth": 0,
        "detect_zeroes": "off",
        **dict.fromkeys(LIMITS, 0),
        "write_threshold": 0,
    }
    return {
        "device": name,
        "qdev": f"/machine/peripheral/{name}",
        "type": "unknown",
        "removable": False,
        "locked": False,
        "inserted": inserted,
    }


def _image(file: str, format_: str) -> Json:
    """ImageInfo; a disk behind a server has no size that is known here, and gives 0."""
    size, actual = 0, 0
    with suppress(OSError), open(plain.open_file(Path(file), os.O_RDONLY, disk=True), "rb") as image:
        status = os.fstat(image.fileno())
        actual = status.st_blocks * 512
        size = int.from_bytes(image.read(32)[_QCOW2_SIZE]) if format_ == "qcow2" else image.seek(0, os.SEEK_END)
    return {"filename": file, "format": format_, "virtual-size": size, "actual-size": actual}


@handles("query-blockstats")
def _query_blockstats(control: Control, arguments: Json) -> object:
    return Work(_blockstats(control))


def _blockstats(control: Control) -> Parts:
    found = []
    for name in disks(control):
        counted = yield from counters(name)
        stats = {
            "rd_bytes": counted.get("bytes_read", 0),
            "wr_bytes": counted.get("bytes_written", 0),
            "rd_operations": counted.get("reads", 0),
            "wr_operations": counted.get("writes", 0),
            "flush_operations": counted.get("flushes", 0),
            "failed_rd_operations": counted.get("errors", 0),
            **dict.fromkeys(NOT_COUNTED, 0),
            "account_invalid": False,
            "account_failed": True,
            "timed_stats": [],
        }
        found.append({"device": name, "qdev": f"/machine/peripheral/{name}", "stats": stats})
    return found


@handles("blockdev-add")
def _blockdev_add(control: Control, arguments: Json) -> object:
    name, driver = str(arguments.get("node-name", "")), str(arguments["driver"])
    if not name:
        raise QmpError("'node-name' must be specified for the root node")
    if name in control.drives or name in control.roster.devices:
        raise QmpError(f"Duplicate nodes with node-name='{name[:80]}'")
    protocol = arguments.get("file")
    file = protocol["filename"] if isinstance(protocol, dict) else arguments["filename"]
    properties: Json = {
        "file": file,
        "format": "qcow2" if driver == "qcow2" else "raw",
        "if": "none",
        "id": name,
        "readonly": bool(arguments.get("read-only")),
        "discard": str(arguments.get("discard", "ignore")),
    }
    first, *rest = properties
    text = flag(f"{first}={properties[first]}", {key: properties[key] for key in rest})
    try:
        virtio.parse_drive(
            {key: value if isinstance(value, str) else "on" if value else "off" for key, value in properties.items()}
        )
    except ValueError as error:
        raise QmpError(f"Could not open '{file}': {error}") from error
    control.keep(control.drives, name, text)
    return {}


@handles("blockdev-del")
def _blockdev_del(control: Control, arguments: Json) -> object:
    name = str(arguments["node-name"])
    if control.drives.pop(name, None) is None:
        raise QmpError(f"Failed to find node with node-name='{name[:80]}'")
    return {}
