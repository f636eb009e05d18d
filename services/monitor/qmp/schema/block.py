"""Disks (QEMU, qapi/block-core.json)."""

from __future__ import annotations

from services.monitor.qmp.types import BOOL, INT, STR, Array, Command, Enum, Event, Member, Module, Struct, optional

_IMAGE_INFO = Struct(
    "ImageInfo",
    (Member("filename", STR), Member("format", STR), Member("virtual-size", INT), optional("actual-size", INT)),
)
_INSERTED = Struct(
    "BlockDeviceInfo",
    (
        Member("file", STR),
        optional("node-name", STR),
        Member("ro", BOOL),
        Member("drv", STR, "the format"),
        Member("encrypted", BOOL),
        Member(
            "cache", Struct("BlockdevCacheInfo", tuple(Member(n, BOOL) for n in ("writeback", "direct", "no-flush")))
        ),
        Member("image", _IMAGE_INFO),
    ),
)
_BLOCK_INFO = Struct(
    "BlockInfo",
    (
        Member("device", STR),
        Member("qdev", STR, "the device's path in the object tree"),
        Member("type", STR),
        Member("removable", BOOL),
        Member("locked", BOOL),
        optional("inserted", _INSERTED),
    ),
)
_DEVICE_STATS = Struct(
    "BlockDeviceStats",
    tuple(
        Member(name, INT)
        for name in ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations",
                     "failed_rd_operations", "failed_wr_operations", "failed_flush_operations")
    ),
)  # fmt: skip
_BLOCK_STATS = Struct("BlockStats", (Member("device", STR), Member("qdev", STR), Member("stats", _DEVICE_STATS)))
_PROTOCOL = Struct(
    "BlockdevOptionsFile", (Member("driver", Enum("ProtocolDriver", ("file",))), Member("filename", STR))
)
_FORMAT = (Member("file", _PROTOCOL),)

MODULE = Module(
    "Disks",
    commands=(
        Command("query-block", "The disks.", None, Array(_BLOCK_INFO)),
        Command("query-blockstats", "What the disks did since the machine began.", None, Array(_BLOCK_STATS)),
        Command(
            "blockdev-add",
            "Describe a disk image that a device which is added later uses as drive=NAME.",
            Struct(
                "BlockdevOptions",
                (
                    Member("driver", Enum("BlockdevDriver", ("file", "raw", "qcow2"))),
                    Member("node-name", STR),
                    optional("read-only", BOOL),
                    optional("discard", Enum("BlockdevDiscardOptions", ("ignore", "unmap"))),
                ),
                tag="driver",
                variants={
                    "file": Struct("BlockdevOptionsFileOnly", (Member("filename", STR),)),
                    "raw": Struct("BlockdevOptionsRaw", _FORMAT),
                    "qcow2": Struct("BlockdevOptionsQcow2", _FORMAT),
                },
            ),
        ),
        Command(
            "blockdev-del",
            "Forget what `blockdev-add` described.",
            Struct("BlockdevDelArguments", (Member("node-name", STR),)),
        ),
    ),
    events=(
        Event(
            "BLOCK_IO_ERROR",
            "A disk's image could not be read or written.",
            Struct(
                "BlockIoErrorEvent",
                (
                    Member("device", STR),
                    Member("operation", Enum("IoOperationType", ("read", "write"))),
                    Member("action", Enum("BlockErrorAction", ("ignore", "report", "stop"))),
                    Member("reason", STR),
                ),
            ),
        ),
    ),
)
