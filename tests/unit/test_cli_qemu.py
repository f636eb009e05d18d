"""QEMU's flags that ask for what holds anyway are taken; the others have a hint that does not mislead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmesh.board.errors import BoardError
from vmesh.cli.flags.help import usage
from vmesh.cli.flags.options import FirmwareItem, OptionError, RunOptions
from vmesh.cli.flags.parsing import parse
from vmesh.cli.flags.qemu import ANYWAY, HINTS
from vmesh.cli.flags.table import BY_NAME
from vmesh.cli.plan import MachinePlan, plan
from vmesh.machine import MachineDirectory


@pytest.mark.parametrize(
    "line",
    [
        "-nodefaults -no-user-config --nodefaults",
        "-boot c -boot menu=off,strict=on -boot order=c,menu=off",
        "-net none -parallel none -vga none -vnc none -k de",
        "-rtc base=utc -rtc base=utc,clock=host -rtc utc",
        "-msg timestamp=on -sandbox off -overcommit mem-lock=off -overcommit mem-lock=off,cpu-pm=off",
        "-uuid 12345678-1234-1234-1234-123456789abc -watchdog-action reset",
        "-machine virt,aclint=off,aia=none,acpi=off,usb=off,dump-guest-core=off,mem-merge=on",
        "-action panic=none,watchdog=pause",
    ],
)
def test_what_holds_anyway_changes_nothing(line: str) -> None:
    assert parse(line.split()) == RunOptions()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-boot once=d", "what is booted, -kernel and -bios say"),
        ("-rtc base=localtime", "base=utc"),
        ("-sandbox on,obsolete=deny", "no filter of system calls"),
        ("-net nic,model=virtio", "-nic user"),
        ("-uuid x", "expected a UUID"),
        ("-overcommit mem-lock=on", "mem-lock=off"),
        ("-vnc :7", "no display"),
        ("-machine virt,aclint=on", "got 'aclint'"),
        ("-action panic=fly", "got 'panic=fly'"),
        ("-object memory-backend-ram,id=m,size=1G", "RAM is -m"),
        ("-object rng-random,filename=/etc/passwd,id=r", "the host's random numbers"),
        ("-nodefaults -rtc", "-rtc: expected"),
    ],
)
def test_what_does_not_hold_is_refused(line: str, words: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse(line.split())
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", HINTS)
def test_a_flag_that_is_not_there_has_a_hint(name: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse([name, "x"])
    assert str(refused.value) == f"no flag '{name}': {HINTS[name]}"


def test_no_flag_is_in_two_tables() -> None:
    assert not ANYWAY.keys() & HINTS.keys()
    assert not BY_NAME.keys() & (ANYWAY.keys() | HINTS.keys())


@pytest.mark.parametrize("name", ["-frobnicate", "-blah", "-e", "-netdef", "-zzz"])
def test_an_unknown_flag_is_not_taken_for_another(name: str) -> None:
    """One that is similar is named only if it is very."""
    with pytest.raises(OptionError, match="unknown flag") as refused:
        parse([name])
    assert ("did you mean" in str(refused.value)) == (name == "-netdef")


def test_flags_that_stand_for_others(tmp_path: Path) -> None:
    disk = tmp_path / "a,b.img"
    disk.write_bytes(bytes(512))
    by_drive = parse(["-drive", f"file={str(disk).replace(',', ',,')}"])
    assert parse(["-hda", str(disk)]).drives == by_drive.drives
    for flags in (["-cdrom", str(disk)], ["-drive", f"file={str(disk).replace(',', ',,')},media=cdrom"]):
        assert parse(flags).drives[0].read_only
    assert parse(["-no-shutdown"]) == parse(["-action", "shutdown=pause"])
    more = f"{tmp_path}/a,,b.img,cache=directsync,aio=native"
    assert parse(["-drive", f"file={more}"]).drives[0].cache == "writethrough"
    assert parse(["-m", "1G,slots=2,maxmem=4G", "-smp", "2,maxcpus=2"]) == parse(["-m", "1G", "-smp", "2"])
    source = ("-object", "rng-random,filename=/dev/urandom,id=rng0")
    assert parse([*source, "-device", "virtio-rng-device,rng=rng0"]).virtio_devices
    assert parse(["-pidfile", "p.pid"]).pid_file == Path("p.pid").absolute()


def test_the_help_and_the_manual_name_what_is_taken(root: Path) -> None:
    manual = (root / "docs" / "cli.md").read_text()
    for name in ANYWAY:
        assert name in usage()
        assert f"`{name}" in manual


def test_items_of_fw_cfg(tmp_path: Path) -> None:
    (tmp_path / "a,b").write_bytes(b"")
    longest = f"opt/{'n' * 51}"
    flags = [
        *("-fw_cfg", f"name=opt/file,file={tmp_path}/a,,b"),
        *("-fw_cfg", "opt/x,,y,string=1,,2=3"),
        *("-fw_cfg", f"{longest},string=x"),
    ]
    assert parse(flags).firmware_items == (
        FirmwareItem("opt/file", tmp_path / "a,b"),
        FirmwareItem("opt/x,y", text="1,2=3"),
        FirmwareItem(longest, text="x"),
    )


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["opt/x"], "expected a name and exactly one of file=PATH and string=TEXT"),
        (["string=a"], "expected a name"),
        (["opt/x,string=a,file=/dev/null"], "exactly one of"),
        (["opt/x,string="], "none of them empty"),
        (["opt/x,file="], "none of them empty"),
        (["opt/x,gen_id=g"], "no property 'gen_id'"),
        (["opt/x,file=/nonexistent"], "expected a file, there is none of that name"),
        (["opt/x,file=/"], "expected a file, this is a directory"),
        ([f"opt/{'n' * 52},string=x"], "name too long: expected at most 55 bytes, got 56"),
        ([f"opt/{'ü' * 26},string=x"], "name too long: expected at most 55 bytes, got 56"),
        (["opt/\x1b[2Jx,string=x"], "expected a name of printable characters"),
        (["bootorder,string=x"], "the board has an item of this one"),
        (["opt/x,string=a", "opt/x,string=a"], "expected each name once, 'opt/x' has an item"),
        ([f"opt/{n},string=a" for n in range(30)], "expected at most 29 items"),
    ],
)
def test_items_that_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse([word for text in texts for word in ("-fw_cfg", text)])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def planned(tmp_path: Path, *items: str) -> MachinePlan:
    flags = [word for item in items for word in ("-fw_cfg", item)]
    options = parse(["-bios", "none", "-kernel", __file__, "-smp", "2", *flags])
    return plan(options, MachineDirectory(tmp_path))


def test_a_board_has_fw_cfg_if_there_are_items_for_it(tmp_path: Path) -> None:
    (tmp_path / "item").write_bytes(b"\0of a file")
    assert "fw_cfg" not in {service.name for service in planned(tmp_path).services}
    made = planned(tmp_path, f"opt/b,file={tmp_path}/item", "opt/a,string=text")
    (service,) = [service for service in made.services if service.name == "fw_cfg"]
    place = ("--machine", str(tmp_path), "--name", "fw_cfg", "--base", "0x10100000")
    assert service.arguments == (*place, "--hart-count", "2", "--item=opt/b", "--item=opt/a")
    assert (made.files["fw_cfg.0"], made.files["fw_cfg.1"]) == (b"\0of a file", b"text")
    assert made.notes == ()


def test_a_name_outside_of_opt_is_warned_of(tmp_path: Path) -> None:
    (note,) = planned(tmp_path, "etc/x,string=a", "opt/x,string=a").notes
    assert note.startswith("warning: -fw_cfg etc/x: ")
    assert '"opt/"' in note


def test_a_file_that_is_too_large_or_gone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "item"
    path.touch()
    os.truncate(path, 64 << 20)
    assert len(planned(tmp_path, f"opt/x,file={path}").files["fw_cfg.0"]) == 64 << 20
    with pytest.raises(BoardError, match="-fw_cfg opt/x: expected at most 64 MiB, /dev/zero has more"):
        planned(tmp_path, "opt/x,file=/dev/zero")
    options = parse(["-bios", "none", "-kernel", __file__, "-fw_cfg", f"opt/x,file={path}"])
    path.unlink()
    with pytest.raises(BoardError, match=r"-fw_cfg opt/x: cannot read .*: No such file or directory"):
        plan(options, MachineDirectory(tmp_path))
