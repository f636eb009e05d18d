"""QEMU's flags: what they mean, and one line for what cannot be followed."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmesh.cli.flags import page
from vmesh.cli.flags.help import usage
from vmesh.cli.flags.options import OptionError, RunOptions, Serial
from vmesh.cli.flags.parsing import parse
from vmesh.cli.flags.table import FLAGS, Flag
from vmesh.cli.flags.values import hart_count, memory_bytes
from vmesh.cli.monitors import Monitor
from vmesh.endpoint import Endpoint
from vmesh.properties import HelpRequested


def tcp(port: int, *, wait: bool) -> Endpoint:
    return Endpoint(host="127.0.0.1", port=port, wait=wait)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "Image"
    path.write_bytes(b"\0")
    return str(path)


def test_no_flags_boot_the_default_guest_on_the_terminal() -> None:
    options = parse([])
    assert options == RunOptions()
    assert options.boots_default_guest
    assert options.console == Serial("stdio", mux=True)


def test_a_qemu_command_line_is_understood(image: str) -> None:
    line = "-machine virt -m 1G -smp 4 -cpu rv64,zba=off -bios none -append a,b=c -nographic -name guest=x,process=y"
    options = parse([*line.split(), "-kernel", image, "-S", "-no-reboot", "-d", "startup"])
    assert options.memory_bytes == 1 << 30
    assert (options.harts, options.cpu, options.bios, options.append) == (4, "rv64,zba=off", "none", "a,b=c")
    assert options.kernel == Path(image)
    assert (options.name, options.paused, options.reboot) == ("x", True, False)
    assert options.log_items == {"startup"}
    assert not options.boots_default_guest


@pytest.mark.parametrize(
    "text", ["virtio-mmio.force-legacy=false", "driver=virtio-mmio,property=force-legacy,value=off"]
)
def test_the_transport_of_virtio_1_may_be_asked_for(text: str) -> None:
    assert parse(["-global", text]) == RunOptions()


def test_two_dashes_are_as_good_as_one() -> None:
    assert parse(["--smp", "2", "--nographic"]) == parse(["-smp", "2", "-nographic"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", 512 << 20),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("size=64k", 64 << 10),
        ("1.5G", 3 << 29),
        ("1.9G", 2040111104),  # 2040109465.6 bytes, rounded up to 8 KiB
        ("128.", 128 << 20),
        ("0.1", 104 << 10),
        ("16777216B", 16 << 20),
        ("8193b", 16 << 10),
        ("1k", 8 << 10),
        ("0x200", 512 << 20),
        ("0X10M", 16 << 20),
        ("1t", 1 << 40),
    ],
)
def test_memory_sizes(text: str, expected: int) -> None:
    assert memory_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "-1",
            "0",
            "0K",
            "+1",
            " 1",
            "abc",
            "1X",
            "inf",
            "nan",
            "1.5.5G",
            ".5G",
            "512,slots=2,foo=1",
            "512,maxmem=x",
            "²",
            "1_0e9.0",
            "1_0",
            "1e3",
        ),
        *("1.5B", "0x", "0x1.5", "16777216T", "1E", "9" * 5000, "1" * 30 + "M"),
    ],
)
def test_memory_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        memory_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 4), ("cpus=2", 2), ("sockets=2,cores=3", 6), ("4,maxcpus=4", 4), ("8,sockets=2,cores=2,threads=2", 8)],
)
def test_hart_counts(text: str, expected: int) -> None:
    assert hart_count(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "513", "2,maxcpus=1", "2,maxcpus=4", "3,cores=2", "4,foo=1", "²", "1e1"]
)
def test_hart_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        hart_count(text)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-nographic"], Serial("stdio", mux=True)),
        (["-nographic", "-monitor", "none"], Serial("stdio")),
        (["-display", "none"], Serial("null")),
        (["-display", "none", "-nographic"], Serial("stdio", mux=True)),
        (["-serial", "stdio"], Serial("stdio")),
        (["-serial", "mon:stdio"], Serial("stdio", mux=True)),
        (["-serial", "none"], Serial("none")),
        (["-serial", "file:/x"], Serial("file", Path("/x"))),
        (["-serial", "unix:/x"], Serial("socket", endpoint=Endpoint(Path("/x"), server=False))),
        (["-serial", "unix:/x,server=on,wait=off"], Serial("socket", endpoint=Endpoint(Path("/x")))),
        (["-serial", "unix:/x,server"], Serial("socket", endpoint=Endpoint(Path("/x"), wait=True))),
    ],
)
def test_serial_ports(flags: list[str], expected: Serial) -> None:
    assert parse(flags).console == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-qmp", "unix:/x,server=on,wait=off"], Monitor("control", Endpoint(Path("/x")))),
        (["-qmp-pretty", "tcp:localhost:4444,server"], Monitor("control-pretty", tcp(4444, wait=True))),
        (["-qmp", "tcp::4444,server"], Monitor("control", tcp(4444, wait=True))),
        (["-monitor", "unix:/x,server,nowait"], Monitor("readline", Endpoint(Path("/x")))),
        (["-qmp", "stdio", "-display", "none"], Monitor("control")),
        (["-chardev", "stdio,id=c", "-serial", "null", "-mon", "c"], Monitor("readline")),
        (
            ["-chardev", "socket,id=c,path=/x,server=on,wait=off", "-mon", "chardev=c,mode=control"],
            Monitor("control", Endpoint(Path("/x"))),
        ),
        (
            ["-chardev", "socket,id=c,host=localhost,port=1,server=on", "-mon", "c,mode=control,pretty=on"],
            Monitor("control-pretty", tcp(1, wait=True)),
        ),
    ],
)
def test_monitors(flags: list[str], expected: Monitor) -> None:
    assert parse(flags).doors == (expected,)


def test_monitor_elsewhere_leaves_the_terminal_to_the_guest() -> None:
    assert parse(["-monitor", "unix:/x,server"]).console == Serial("stdio")
    assert parse(["-qmp", "unix:/x,server"]).console == Serial("stdio", mux=True)
    assert parse(["-qmp", "none"]).doors == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-frobnicate"], "unknown flag '-frobnicate'"),
        (["-kernal", "x"], "did you mean -kernel"),
        (["-m"], "-m: expected"),
        (["-m", "lots"], "-m lots: expected a size"),
        (["disk.img"], "unexpected argument 'disk.img'"),
        (["-machine", "q35"], "expected virt"),
        (["-machine", "virt,foo=1"], "got 'foo'"),
        (["-accel", "kvm"], "expected tcg"),
        (["-kernel", "/does/not/exist"], "expected a file"),
        (["-kernel", "/"], "a directory"),
        (["-initrd", "/etc/hostname"], "-initrd: expected -kernel"),
        (["-serial", "tcp:localhost:1"], "expected stdio, mon:stdio"),
        (["-serial", "null", "-serial", "null"], "one serial port"),
        (["-serial", "stdio", "-monitor", "stdio"], "mon:stdio"),
        (["-monitor", "telnet::1"], "expected stdio, none, unix:PATH"),
        (["-qmp", "tcp:192.168.0.1:4444,server"], "an address of this host alone"),
        (["-qmp", "tcp:0.0.0.0:4444,server"], "an address of this host alone"),
        (["-qmp", "unix:/x,frob"], "got 'frob'"),
        (["-qmp", "stdio"], "the terminal is taken"),
        (["-mon", "chardev=c"], "there is no 'c'"),
        (["-chardev", "file,id=c,path=/x", "-mon", "c"], "expected a -chardev socket or stdio"),
        (["-chardev", "stdio,id=c", "-mon", "c", "-mon", "c"], "expected one user"),
        (["-mon", "c,mode=other"], "expected mode=readline"),
        (["-chardev", "socket,id=c,host=10.0.0.1,port=1"], "an address of this host alone"),
        (["-display", "gtk"], "expected none"),
        (["-d", "in_asm"], "not traced yet"),
        (["-d", "nonsense"], "expected items of"),
        (["-device", "e1000"], "no device 'e1000'"),
        (["-global", "virtio-mmio.force-legacy=on"], "version 2) only"),
        (["-global", "virtio-blk-device.scsi=off"], "expected virtio-mmio.force-legacy=off"),
        (["-health-limit", "0"], "above 0"),
        (["-health-limit", "nan"], "above 0"),
    ],
)
def test_bad_flag_is_one_line_that_says_what_was_expected(flags: list[str], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(flags)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["-machine", "help"], ["-accel", "help"], ["-d", "help"]])
def test_help_is_no_error(flags: list[str]) -> None:
    with pytest.raises(HelpRequested):
        parse(flags)


def test_help_and_the_manual_have_every_flag(root: Path) -> None:
    manual = (root / "docs" / "cli.md").read_text()
    assert page.renewed(manual) == manual, "python -P -m vmesh.cli.flags.page docs/cli.md"
    for flag in FLAGS:
        for name in flag.names:
            assert name in usage()
            assert f"`{name}" in manual


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.example], ids=lambda flag: flag.names[0])
def test_every_example_can_be_followed(flag: Flag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMESH_SNAPSHOTS", str(tmp_path))
    (tmp_path / "keys").mkdir()
    keys = [f"keys/{name}.pem" for name in ("ca-cert", "server-cert", "server-key")]
    for name in ("Image", "booted.vmsnap", "disk.img", "fw_jump.bin", "initrd.gz", "virt.dtb", *keys):
        (tmp_path / name).write_bytes(bytes(512))
    words = shlex.split(flag.example.replace("/srv", str(tmp_path)))
    assert set(words) & set(flag.names)
    assert parse(words) != RunOptions()


@pytest.mark.parametrize("name", ["-machine", "-smp", "-health-interval", "-health-limit", "-bus-limit", "-m"])
def test_defaults_are_those_that_are_said(name: str) -> None:
    default = next(flag.default for flag in FLAGS if name in flag.names).split(";")[0]
    found = parse([name, default])
    assert found == RunOptions() or (name, found.memory_bytes) == ("-m", 128 << 20)


NAMES = [name for flag in FLAGS for name in flag.names]


@given(st.lists(st.one_of(st.sampled_from(NAMES), st.text(max_size=12)), max_size=8))
def test_any_command_line_is_followed_or_refused(arguments: list[str]) -> None:
    with suppress(HelpRequested, OptionError):  # and nothing else
        parse(arguments)


@pytest.mark.parametrize(
    "flags",
    [
        ("-drive", "file={},format=raw"),
        ("-kernel", "{}"),
        ("-fsdev", "local,id=f,path={},security_model=none"),
        ("-loadvm", "{}"),
    ],
)
def test_a_path_that_no_file_can_have_is_one_line(flags: tuple[str, str]) -> None:
    with pytest.raises(OptionError) as refused:
        parse([flags[0], flags[1].format("/" + "a" * 300)])
    assert "\n" not in str(refused.value)
