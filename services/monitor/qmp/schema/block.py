"""Disks (QEMU, qapi/block-core.json)."""

from __future__ import annotations

from vmesh_services.monitor.qmp.types import (
    BOOL,
    INT,
    STR,
    Array,
    Command,
    Enum,
    Event,
    Member,
    Module,
    Struct,
    optional,
)

# Members that QEMU's clients expect; the handlers have the values.
LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
COUNTED = ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "flush_operations", "failed_rd_operations")
NOT_COUNTED = (
    "failed_wr_operations", "failed_flush_operations", "failed_unmap_operations", "unmap_bytes", "unmap_operations",
    "rd_total_time_ns", "wr_total_time_ns", "flush_total_time_ns", "unmap_total_time_ns", "wr_highest_offset",
    "rd_merged", "wr_merged", "unmap_merged", "invalid_rd_operations", "invalid_wr_operations",
    "invalid_flush_operations", "invalid_unmap_operations",
)  # fmt: skip

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
        Member("backing_file_depth", INT, "0: what a qcow2 image stands on is not told"),
        Member("detect_zeroes", Enum("BlockdevDetectZeroesOptions", ("off", "on", "unmap"))),
        *(Member(name, INT, "0: there is no limit") for name in LIMITS),
        Member("write_threshold", INT),
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
    (
        *(Member(name, INT) for name in COUNTED),
        *(Member(name, INT, "not counted: 0") for name in NOT_COUNTED),
        Member("account_invalid", BOOL),
        Member("account_failed", BOOL),
        Member("timed_stats", Array(Struct("BlockDeviceTimedStats"))),
    ),
)
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
                    optional("node-name", STR, "needed here: devices name it"),
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
            "A disk's image could not be read or written, and the guest was told. The same one is told once in 10 s.",
            Struct(
                "BlockIoErrorEvent",
                (
                    Member("device", STR),
                    Member("operation", Enum("IoOperationType", ("read", "write"))),
                    Member("action", Enum("BlockErrorAction", ("ignore", "report", "stop"))),
                    Member("nospace", BOOL),
                    Member("reason", STR),
                ),
            ),
        ),
    ),
)
