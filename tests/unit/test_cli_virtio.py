"""-drive, -snapshot and -device virtio-*: which device gets which slot, what it is told, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmesh.board import commands
from vmesh.cli.flags.options import OptionError, Serial
from vmesh.cli.flags.parsing import parse
from vmesh.endpoint import Endpoint


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    return path


def services(*flags: str) -> dict[int, tuple[str, list[str]]]:
    """Name and arguments by slot."""
    options = parse(flags)
    made = options.parts()
    return {slot: (part.name, list(commands.device(part, Path("M")).arguments)) for slot, part in made.items()}


def test_slots_are_taken_from_the_last_on_and_devices_come_before_drives(disk: Path) -> None:
    made = services(
        *("-drive", f"file={disk},format=raw,if=virtio,readonly=on"),
        *("-drive", f"file={disk},format=raw,if=none,id=d,readonly=on"),
        *("-device", "virtio-rng-device,bus=virtio-mmio-bus.6"),
        *("-device", "virtio-blk-device,drive=d,id=mine"),
    )
    assert {slot: name for slot, (name, _) in made.items()} == {6: "rng0", 7: "mine", 5: "blk0"}
    arguments = made[5][1]
    assert arguments[:8] == ["--machine", "M", "--name", "blk0", "--base", "0x10006000", "--irq", "6"]


@pytest.mark.parametrize("interface", ["", ",if=none"])
@pytest.mark.parametrize("first", ["drive", "device"])
def test_a_drive_that_a_device_names_gets_no_other(disk: Path, interface: str, first: str) -> None:
    drive = ("-drive", f"file={disk},format=raw,id=hd0{interface}")
    device = ("-device", "virtio-blk-device,drive=hd0")
    assert list(services(*drive, *device) if first == "drive" else services(*device, *drive)) == [7]


def test_what_a_disk_is_told(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    made = services(
        *("-drive", f"file={disk},format=raw,if=none,id=d,snapshot=on,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-device,drive=d,serial=one two,num-queues=4,packed=on"),
    )
    words = " ".join(made[7][1][8:])
    assert words == (
        f"--file {disk} --format raw --cache unsafe --num-queues 4 --discard unmap "
        "--snapshot /elsewhere --serial one two --packed"
    )


@pytest.mark.parametrize(
    ("flags", "properties", "temporary"),
    [
        ([], "", False),
        (["-snapshot"], "", True),
        (["-snapshot"], ",snapshot=off", False),
        ([], ",snapshot=on", True),
        (["-snapshot"], ",readonly=on", False),
    ],
)
def test_snapshot(disk: Path, flags: list[str], properties: str, temporary: bool) -> None:
    made = services(*flags, "-drive", f"file={disk},format=raw{properties}")
    assert ("--snapshot" in made[7][1]) == temporary


def test_a_comma_in_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    path.write_bytes(bytes(512))
    assert str(path) in services("-drive", f"file={tmp_path}/a,,b,format=raw")[7][1]


def test_a_disk_that_a_server_has() -> None:
    assert services("-drive", "file=nbd://host:99/disk")[7][1][8:12] == [
        "--file",
        "nbd://host:99/disk",
        "--format",
        "raw",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-drive", "format=raw"], "expected file=FILE"),
        (["-drive", "file=/does/not/exist"], "expected an image file"),
        (["-drive", "file=DISK,format=vmdk"], "expected format=raw or qcow2, got 'vmdk'"),
        (["-drive", "file=nbd:unix:/s,format=qcow2"], "what an NBD server gives"),
        (["-drive", "file=DISK,if=ide"], "expected if=virtio or none, got 'ide'"),
        (
            ["-drive", "file=DISK,cache=no"],
            "or directsync or unsafe, got 'no'",
        ),
        (["-drive", "file=DISK,bps=1"], "no property 'bps'"),
        (["-drive", "file=DISK,id=1x"], "expected id=NAME"),
        (["-drive", "file=DISK,id=d", "-drive", "file=DISK,id=d"], "-drive id=d: expected each id once"),
        (["-device", "virtio-blk-device"], "expected drive=NAME"),
        (["-device", "virtio-blk-device,drive=x"], "there is no 'x'"),
        (
            ["-drive", "file=DISK,if=virtio,id=d", "-device", "virtio-blk-device,drive=d"],
            "drive 'd': expected one device",
        ),
        (["-drive", "file=DISK,id=d", *["-device", "virtio-blk-device,drive=d"] * 2], "drive 'd': expected one device"),
        (["-device", "virtio-blk-pci,drive=x"], "the board has no PCI"),
        (["-device", "virtio-rng-device,rng=r"], "of an -object, there is no 'r'"),
        (["-device", "virtio-rng-device,bus=pci.0"], "expected bus=virtio-mmio-bus.0"),
        (["-device", "virtio-rng-device,bus="], "expected bus=virtio-mmio-bus.0"),
        (["-device", "virtio-rng-device,id=cpu"], "none of monitor"),
        (["-device", "virtio-rng-device,id=qmp"], "none of monitor"),
        (["-device", "virtio-rng-device,bus=virtio-mmio-bus.2"] * 2, "expected one device on it"),
        (["-device", "virtio-rng-device,id=r"] * 2, "-device id=r: expected each id once"),
        (["-device", "virtio-balloon-device"] * 2, "expected one, which is the machine's balloon"),
        (["-device", "virtio-balloon-device,drive=d"], "no property 'drive'"),
        (["-device", "virtio-rng-device"] * 9, "expected at most 8 virtio devices"),
        (["-drive", "file=DISK,if=none,id=d", "-device", f"virtio-blk-device,drive=d,serial={'x' * 21}"], "20 bytes"),
        (["-drive", "file=DISK,if=none,id=d", "-device", "virtio-blk-device,drive=d,num-queues=0"], "1 to 16"),
    ],
)
def test_what_is_refused(disk: Path, flags: list[str], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse([flag.replace("DISK", str(disk)) for flag in flags])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_image_of_another_format_is_not_taken_for_a_raw_one(disk: Path) -> None:
    disk.write_bytes(b"QFI\xfb" + bytes(1020))
    with pytest.raises(OptionError, match="this says it is qcow2"):
        parse(["-drive", f"file={disk}"])
    assert services("-drive", f"file={disk},format=raw")


def test_a_shared_folder(tmp_path: Path) -> None:
    local = f"local,path={tmp_path},security_model"
    made = services(
        *("-virtfs", f"{local}=mapped,mount_tag=host,readonly=on"),
        *("-fsdev", f"{local}=none,id=f"),
        *("-device", "virtio-9p-device,fsdev=f,mount_tag=other"),
    )
    assert " ".join(made[7][1][8:]) == f"--path {tmp_path} --security mapped-xattr --read-only --tag host"
    assert " ".join(made[6][1][8:]) == f"--path {tmp_path} --security none --tag other"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-virtfs", "local,path=/,mount_tag=t"), "expected security_model="),
        (("-virtfs", "local,path=/,security_model=none"), "expected mount_tag="),
        (("-virtfs", f"local,path=/,security_model=none,mount_tag={'t' * 32}"), "at most 31 bytes"),
        (("-virtfs", "proxy,path=/,mount_tag=t,security_model=none"), "expected local"),
        (("-virtfs", "local,path=/nothing,mount_tag=t,security_model=none"), "/nothing is none"),
        (("-virtfs", "local,path=/,mount_tag=t,security_model=passthrough"), "none or mapped-xattr"),
        (("-virtfs", "local,path=/,mount_tag=t,security_model=none,fmode=0600"), "no property 'fmode'"),
        (("-fsdev", "local,path=/,security_model=none"), "expected id="),
        (("-device", "virtio-9p-device,fsdev=f,mount_tag=t"), "expected fsdev=NAME"),
        (("-fsdev", "local,id=f,path=/,security_model=none", "-device", "virtio-9p-device,fsdev=f"), "mount_tag="),
    ],
)
def test_shares_that_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse(flags)


SERIAL = ("-device", "virtio-serial-device")


def test_a_console() -> None:
    flags = ("-chardev", "socket,id=c,path=/tmp/c,server=on,wait=off", *SERIAL, "-device", "virtconsole,chardev=c")
    assert services(*flags)[7] == ("console0", [*services(*flags)[7][1][:8], "--chardev", "kept"])
    options = parse(flags)
    assert options.consoles["console0"] == Serial("socket", endpoint=Endpoint(Path("/tmp/c")))
    assert options.terminal == ("uart0", Serial("stdio", mux=True))


def test_a_console_on_the_terminal_and_one_elsewhere() -> None:
    options = parse(
        (
            *("-serial", "null", "-chardev", "stdio,id=c,mux=on,signal=off", "-chardev", "file,id=f,path=/tmp/f"),
            *("-device", "virtio-serial-device,id=one", "-device", "virtio-serial-device,id=two"),
            *("-device", "virtconsole,chardev=c,bus=two.0", "-device", "virtconsole,chardev=f"),
        )
    )
    assert options.terminal == ("two", Serial("stdio", mux=True))
    assert options.consoles["one"] == Serial("file", Path("/tmp/f"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (SERIAL, "expected a -device virtconsole"),
        (("-device", "virtconsole,chardev=c"), "expected a -device virtio-serial-device before it"),
        ((*SERIAL, "-device", "virtconsole,chardev=c"), "there is no 'c'"),
        ((*SERIAL, "-device", "virtconsole"), "expected chardev=NAME"),
        ((*SERIAL, "-device", "virtconsole,chardev=c,is=1"), "no property 'is'"),
        (("-chardev", "null,id=c", "-chardev", "null,id=c"), "each id once"),
        (("-chardev", "null,id=c", *2 * (*SERIAL, "-device", "virtconsole,chardev=c")), "one device for it"),
        (("-chardev", "stdio,id=c", *SERIAL, "-device", "virtconsole,chardev=c"), "the terminal is taken"),
        (("-chardev", "stdio"), "expected id=NAME"),
        (("-chardev", "socket,id=c,host=h,port=1"), "expected an address of this host alone"),
        (("-chardev", "file,id=c"), "path=PATH"),
        (("-chardev", "pty,id=c,path=/tmp/c"), "expected no path"),
        (("-chardev", "udp,id=c"), "expected stdio, socket"),
        (("-chardev", "stdio,id=c,mux=on,signal=on"), "signal=off with mux=on"),
    ],
)
def test_consoles_that_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse(flags)
