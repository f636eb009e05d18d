"""The one description of each flag of `vmesh run`: its names, the syntax of its value, meaning, default, an example.

Source: QEMU's manual page qemu-system-riscv64(1) for names and meanings. What is accepted here means the same there;
what vmesh has no counterpart for is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmesh.board import virt
from vmesh.cli import gdb, monitors
from vmesh.cli.flags import changes, values
from vmesh.cli.flags.options import RunOptions
from vmesh.qdev import added, external, net, share, virtio

Apply = Callable[[RunOptions, str], RunOptions]


@dataclass(frozen=True, slots=True)
class Flag:
    """`syntax` is that of its value, empty for a flag without one; `apply` gives the options with the flag followed.
    `meaning` and the rest are plain sentences, in which backticks are around what is typed. `more` is where the manual
    goes on: a page of docs/, or a section of docs/cli.md."""

    names: tuple[str, ...]
    syntax: str
    meaning: str
    apply: Apply
    default: str = ""
    example: str = ""
    more: str = ""


def sets(option: str, read: Callable[[str], Any]) -> Apply:
    """The option becomes what the flag's value means."""
    return lambda options, text: replace(options, **{option: read(text)})


def turns(option: str, value: Any) -> Apply:
    """The option becomes this."""
    return lambda options, _text: replace(options, **{option: value})


def checks(read: Callable[[str], object]) -> Apply:
    """Nothing changes, if the value is one that holds anyway."""

    def check(options: RunOptions, text: str) -> RunOptions:
        read(text)
        return options

    return check


FLAGS: tuple[Flag, ...] = (
    Flag(
        ("-machine", "-M"), "virt[,dumpdtb=FILE]", "The board. `dumpdtb` writes its device tree to FILE and ends.",
        changes.machine, default="virt", example="-machine virt,dumpdtb=virt.dtb",
    ),
    Flag(
        ("-accel",), "tcg[,translate=on|off][,cache=on|off]",
        "Whether hot code is compiled, and kept on disk for later runs.",
        changes.accel, default="both on", example="-accel tcg,cache=off",
    ),
    Flag(
        ("-cpu",), "MODEL[,ext=on|off]", "The hart's model and extensions; `-cpu help` lists them.",
        sets("cpu", values.cpu), default="rv64", example="-cpu rv64,v=off",
    ),
    Flag(
        ("-smp",), "[cpus=]N", f"The number of harts, 1 to {virt.MAX_HARTS}.",
        sets("harts", values.hart_count), default="1", example="-smp 4",
    ),
    Flag(
        ("-m",), "[size=]SIZE", "RAM in MiB, or with a suffix K, M, G.",
        sets("memory_bytes", values.memory_bytes), default="128M; 512M for the default guest", example="-m 1G",
    ),
    Flag(
        ("-bios",), "FILE|default|none", "The firmware; `default` is OpenSBI's.",
        sets("bios", values.firmware), example="-bios fw_jump.bin",
    ),
    Flag(
        ("-kernel",), "FILE", "The kernel: a Linux Image, an ELF file or a raw image.",
        sets("kernel", values.file), example="-kernel Image",
    ),
    Flag(
        ("-initrd",), "FILE", "The initial RAM disk.",
        sets("initrd", values.file), example="-kernel Image -initrd initrd.gz",
    ),
    Flag(("-append",), "TEXT", "The kernel's command line.", sets("append", str), example='-append "root=/dev/vda ro"'),
    Flag(
        ("-dtb",), "FILE", "A device tree to use instead of the board's own.",
        sets("dtb", values.file), example="-dtb virt.dtb",
    ),
    Flag(
        ("-fw_cfg",), "[name=]NAME,file=PATH|string=TEXT",
        "An item of fw_cfg, which the guest reads by its name: what is in PATH when the machine starts, or TEXT. Names "
        "of your own begin with `opt/`. The board has the device if there is such an item.",
        changes.fw_cfg, example="-fw_cfg opt/org.example/role,string=worker", more="guest.md",
    ),
    Flag(
        ("-quiet",), "",
        "Of the default guest, show only what its commands write; what is piped in is a script for its shell.",
        turns("quiet", True), more="#input-that-is-no-terminal",
    ),
    Flag(
        ("-nographic",), "", "Serial port and monitor prompt on this terminal; as there is no display, the default.",
        turns("nographic", True),
    ),
    Flag(
        ("-display",), "none", "No display; without `-nographic` and `-serial`, the serial port then goes nowhere.",
        sets("display", values.display),
    ),
    Flag(
        ("-serial",), "DEV",
        "Where the serial port goes: `stdio` (Ctrl-C ends the machine), `mon:stdio` (Ctrl-C goes to the guest, Ctrl-A "
        "keys work), `null`, `none`, `pty`, `file:PATH`, `unix:PATH[,server=on][,wait=off]`.",
        sets("serial", values.serial), default="mon:stdio", example="-serial file:console.log",
    ),
    Flag(
        ("-monitor",), "DEV",
        f"The monitor prompt (HMP): {monitors.USAGE}. On the terminal it is behind Ctrl-A c; elsewhere, the terminal "
        "has no Ctrl-A keys, and Ctrl-C ends the machine.",
        changes.monitor, default="stdio", example="-monitor unix:/tmp/hmp,server=on,wait=off", more="monitor.md",
    ),
    Flag(
        ("-qmp",), "DEV", f"Speak QMP: {monitors.USAGE}.",
        changes.qmp, example="-qmp unix:/tmp/qmp,server=on,wait=off", more="monitor.md",
    ),
    Flag(
        ("-qmp-pretty",), "DEV", "As `-qmp`, with answers in lines for people.", changes.qmp_pretty, more="monitor.md"
    ),
    Flag(
        ("-mon",), "[chardev=]NAME[,mode=readline|control][,pretty=on|off]",
        "A monitor on a `-chardev socket` or `stdio`: HMP, or with `mode=control` QMP.",
        changes.mon, example="-chardev socket,id=q,path=/tmp/qmp,server=on,wait=off -mon q,mode=control",
        more="monitor.md",
    ),
    Flag(
        ("-name",), "NAME", "The machine's name for `vmesh ps` and the like.",
        sets("name", values.name), default="a random one", example="-name build",
    ),
    Flag(
        ("-S",), "", "Do not start the harts; `vmesh resume NAME` or `cont` at the monitor prompt does.",
        turns("paused", True),
    ),
    Flag(
        ("-incoming",), "URI|defer|handover:NAME",
        "Wait for a machine to migrate here: `tcp:HOST:PORT[,tls-creds=FOLDER]` or `unix:PATH`; `defer`: until "
        "`vmesh migrate --incoming` says where; `handover:NAME`: for a machine of this host and its RAM "
        "(`vmesh upgrade`).",
        sets("incoming", values.incoming), example="-incoming unix:/tmp/here", more="migration.md",
    ),
    Flag(
        ("-loadvm",), "TAG|FILE", "Begin with a snapshot (`vmesh snapshot save`).",
        sets("load_snapshot", values.snapshot), example="-loadvm booted", more="migration.md",
    ),
    Flag(
        ("-gdb",), "DEV", f"Let gdb connect, with `-S` before the guest starts: {gdb.USAGE}.",
        sets("gdb", gdb.parse), example="-S -gdb unix:/tmp/gdb", more="gdb.md",
    ),
    Flag(("-s",), "", f"The same as `-gdb {gdb.DEFAULT}`.", turns("gdb", gdb.parse(gdb.DEFAULT)), more="gdb.md"),
    Flag(
        ("-gateway",), "tcp:HOST:PORT,tls-creds=FOLDER",
        "Let clients with keys control the machine over TCP, by mutual TLS, beside its Unix socket. FOLDER has "
        "`ca-cert.pem`, `server-cert.pem` and `server-key.pem`.",
        sets("gateway", values.gateway), example="-gateway tcp:0.0.0.0:7700,tls-creds=keys", more="gateway.md",
    ),
    Flag(
        ("-metrics",), "[HOST]:PORT", "Answer Prometheus over HTTP at a port of the loopback interface.",
        sets("metrics", values.metrics), example="-metrics :9100", more="observability.md",
    ),
    Flag(
        ("-no-reboot",), "", "End when the guest asks for a reset: `-action reboot=shutdown`.", turns("reboot", False)
    ),
    Flag(
        ("-action",), "EVENT=ACTION,...",
        "What follows when the guest resets (`reboot=reset|shutdown`), powers off (`shutdown=poweroff|pause`), or a "
        "device's process dies again and again, or guest memory is lost (`device-failure=pause|exit-failure`).",
        changes.action, default="the first of each", example="-action shutdown=pause", more="devices.md",
    ),
    Flag(
        ("-no-shutdown",), "", "The same as `-action shutdown=pause`.",
        lambda options, _: changes.action(options, "shutdown=pause"),
    ),
    Flag(
        ("-pidfile",), "FILE", "Write the number of this process into FILE, which ends with it.",
        sets("pid_file", values.path), example="-pidfile vm.pid",
    ),
    Flag(
        ("-d",), "ITEMS",
        f"Say these on stderr, comma separated; `-d help` tells more of them: {', '.join(values.LOG_ITEMS)}.",
        changes.log_items, example="-d startup,guest_errors",
    ),
    Flag(
        ("-D",), "FILE", "Keep the machine's log, every line of every service, in FILE.",
        sets("log_file", values.path), example="-D vm.log",
    ),
    Flag(
        ("-drive",), "file=FILE[,PROP=VALUE]", f"Add a disk: `{virtio.DRIVE_USAGE}`.",
        added.drive, example="-drive file=disk.img,format=raw", more="#disks",
    ),
    Flag(("-hda", "-hdb", "-hdc", "-hdd"), "FILE", "The same as `-drive file=FILE`.", added.disk, more="#disks"),
    Flag(("-cdrom",), "FILE", "The same as `-drive file=FILE,readonly=on`.", added.cdrom, more="#disks"),
    Flag(
        ("-netdev",), "KIND[,PROP=VALUE]", f"What a network card is plugged into: {net.NETDEV_USAGE}.",
        added.netdev, example="-netdev user,id=n -device virtio-net-device,netdev=n", more="#networks",
    ),
    Flag(
        ("-nic",), "KIND[,PROP=VALUE]",
        f"`-netdev` and `-device {net.DRIVER}` in one, with `mac=ADDRESS` if wanted; `none` for no card.",
        added.nic, example="-nic user,hostfwd=tcp::2222-:22", more="#networks",
    ),
    Flag(
        ("-global",), "virtio-mmio.force-legacy=off",
        "Taken, as guests' instructions for QEMU have it: the virtio transport is never the legacy one.",
        checks(values.never_legacy),
    ),
    Flag(
        ("-object",), "rng-random|rng-builtin,id=NAME",
        "Taken for `-device virtio-rng-device,rng=NAME`, whose bytes are the host's anyway.",
        added.source, example="-object rng-random,id=r -device virtio-rng-device,rng=r",
    ),
    Flag(
        ("-snapshot",), "",
        "Write to temporary files, in `$TMPDIR` or `/var/tmp`, instead of the disks' images.", turns("snapshot", True),
        more="#disks",
    ),
    Flag(
        ("-chardev",), "BACKEND,id=NAME[,...]",
        f"What a `-device {virtio.CONSOLE_USAGE}` or a `-mon` is connected to: `stdio[,mux=on]`, "
        "`socket,path=PATH[,server=on][,wait=off]`, `file,path=PATH`, `pty` or `null`; a `-mon` to "
        "`socket,host=127.0.0.1,port=PORT[,server=on][,wait=off]` too.",
        changes.chardev, example="-chardev pty,id=c", more="#consoles",
    ),
    Flag(
        ("-virtfs",), "local,path=FOLDER[,...]", f"Share a folder with the guest: `{share.VIRTFS_USAGE}`.",
        added.virtfs, example="-virtfs local,path=/srv,mount_tag=srv,security_model=none", more="#shared-folders",
    ),
    Flag(
        ("-fsdev",), "local,id=NAME[,...]", f"A folder for `-device virtio-9p-device,fsdev=NAME`: `{share.USAGE}`.",
        added.fsdev, more="#shared-folders",
    ),
    Flag(
        ("-device",), "DRIVER[,PROP=VALUE]",
        f"Add a device (`-device help` lists them); with `{external.USAGE}`: a program of your own. Its command gets "
        "`--machine`, `--name`, `--epoch`, `--lifeline`, `--base` and `--irq`; without one the machine waits until it "
        "is started by hand.",
        added.device, example="-device virtio-rng-device", more="devices.md",
    ),
    Flag(
        ("-perfmap",), "",
        "Write `/tmp/perf-PID.map`: `perf report` then names the interpreter's handlers and the guest's regions.",
        turns("perf_map", True),
    ),
    Flag(
        ("-print-commands",), "", "Print the command line of each process of the machine and end.",
        turns("print_commands", True),
    ),
    Flag(
        ("-health-interval",), "SECONDS", "How often each service is asked whether it is well.",
        sets("health_interval", values.seconds), default="1",
    ),
    Flag(
        ("-health-limit",), "SECONDS", "How long a service may owe the answer before it counts as hung.",
        sets("health_limit", values.seconds), default="10",
    ),
    Flag(
        ("-cpu-apart",), "",
        "The cpu may be on another host than RAM: a service `cache` beside it takes the pages that it uses.",
        turns("cpu_apart", True), more="architecture.md",
    ),
    Flag(
        ("-bus-limit",), "SECONDS",
        "How long a hart waits for a device that gives no sign of life before it gets an access fault; the machine "
        "ends if the device is on another host.",
        sets("bus_limit", values.seconds), default="20",
    ),
)  # fmt: skip

BY_NAME: Mapping[str, Flag] = {name: flag for flag in FLAGS for name in flag.names}
