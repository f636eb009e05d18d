"""QEMU's flags that ask for what holds anyway are taken; the others have a hint that does not mislead."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmesh.cli.flags.help import usage
from vmesh.cli.flags.options import OptionError, RunOptions
from vmesh.cli.flags.parsing import parse
from vmesh.cli.flags.qemu import ANYWAY, HINTS
from vmesh.cli.flags.table import BY_NAME


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
