"""The board, its harts and its memory (QEMU, qapi/machine.json, machine-target.json, misc.json, char.json)."""

from __future__ import annotations

from vmesh_services.monitor.qmp.types import (
    BOOL,
    INT,
    SIZE,
    STR,
    UINT64,
    Array,
    Command,
    Enum,
    Event,
    Member,
    Module,
    Struct,
    optional,
)

_NAME_INFO = Struct("NameInfo", (optional("name", STR),))
_INSTANCE = Struct(
    "CpuInstanceProperties",
    (optional("node-id", INT), optional("socket-id", INT), optional("core-id", INT), optional("thread-id", INT)),
)
_CPU_INFO = Struct(
    "CpuInfoFast",
    (
        Member("cpu-index", INT),
        Member("qom-path", STR),
        Member("thread-id", INT, "the process of the cpu service, which has a thread for each hart"),
        optional("props", _INSTANCE),
        Member("target", Enum("SysEmuTarget", ("riscv64",))),
    ),
)
_MACHINE_INFO = Struct(
    "MachineInfo",
    (
        Member("name", STR),
        optional("alias", STR),
        optional("is-default", BOOL),
        Member("cpu-max", INT),
        Member("hotpluggable-cpus", BOOL),
        Member("numa-mem-supported", BOOL),
        Member("deprecated", BOOL),
        optional("default-cpu-type", STR),
        optional("default-ram-id", STR),
    ),
)
_CHARDEV_INFO = Struct(
    "ChardevInfo",
    (
        Member("label", STR, "the device or the monitor that it belongs to"),
        Member("filename", STR, "what it is connected to"),
        Member("frontend-open", BOOL),
    ),
)
_MEMORY_SIZE = Struct("MemoryInfo", (Member("base-memory", SIZE), optional("plugged-memory", SIZE)))
_BALLOON_INFO = Struct("BalloonInfo", (Member("actual", INT, "bytes of RAM that the guest has"),))

MODULE = Module(
    "Board, harts, memory",
    commands=(
        Command("query-name", "The machine's name.", None, _NAME_INFO),
        Command("query-cpus-fast", "The harts.", None, Array(_CPU_INFO)),
        Command("query-machines", "The boards that there are.", None, Array(_MACHINE_INFO)),
        Command("query-memory-size-summary", "The size of RAM in bytes.", None, _MEMORY_SIZE),
        Command(
            "balloon",
            "Ask the guest's driver to do with so much RAM. It may take its time, or not do it: `query-balloon` tells.",
            Struct("BalloonArguments", (Member("value", INT, "bytes; as much as there is, or more, is all of it"),)),
        ),
        Command("query-balloon", "How much RAM the guest does with.", None, _BALLOON_INFO),
        Command("query-chardev", "What serial devices and monitors are connected to.", None, Array(_CHARDEV_INFO)),
        Command(
            "memsave",
            "Write guest memory into a file of the host; addresses are virtual, as the hart sees them now.",
            Struct(
                "MemsaveArguments",
                (
                    Member("val", UINT64, "the virtual address"),
                    Member("size", SIZE, "bytes"),
                    Member("filename", STR, "is made, for its owner; absolute, or where the machine was started"),
                    optional("cpu-index", INT, "the hart; 0 if not given"),
                ),
            ),
        ),
        Command(
            "pmemsave",
            "Write guest memory into a file of the host; addresses are physical.",
            Struct(
                "PmemsaveArguments",
                (
                    Member("val", UINT64, "the physical address"),
                    Member("size", SIZE, "bytes"),
                    Member("filename", STR, "is made, for its owner; absolute, or where the machine was started"),
                ),
            ),
        ),
    ),
    events=(
        Event(
            "BALLOON_CHANGE",
            "The guest does with more RAM, or less. It is told at once, and then at most once a second.",
            Struct("BalloonChangeEvent", (Member("actual", INT, "bytes of RAM that the guest has"),)),
        ),
    ),
)
