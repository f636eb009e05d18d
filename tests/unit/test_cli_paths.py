"""Paths with commas, blanks, colons, equals signs and umlauts, from every flag that has one to the service that opens
it: a comma of a value is written twice, and one that the user did not write (the working directory's) does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from vmesh import chardev, endpoint, properties, remote
from vmesh.cli.flags.parsing import parse
from vmesh.cli.plan import MachinePlan, monitor_command, plan
from vmesh.endpoint import Listener
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.machine import MachineDirectory
from vmesh.migration import uri
from vmesh.netdev import options as netdev
from vmesh.qdev import hotplug
from vmesh_services.monitor import doors
from vmesh_services.monitor.keeper import command_argument, console_argument

ODD = "a,b c:d=e é,,f"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / ODD
    made.mkdir()
    (made / "disk").write_bytes(bytes(1 << 20))
    return made


@pytest.fixture(params=["absolute", "relative"])
def written(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the folder is written in a flag, with a slash behind it; nothing where it is the working directory."""
    if request.param == "relative":
        monkeypatch.chdir(folder)
        return ""
    return f"{folder}/".replace(",", ",,")


def planned(tmp_path: Path, *flags: str) -> tuple[MachinePlan, list[tuple[str, str]]]:
    """The machine of these flags, and the monitor's options with their values."""
    (tmp_path / "kernel").write_bytes(bytes(4096))
    machine = MachineDirectory(tmp_path / "machine")
    machine.path.mkdir()
    asked = parse(["-bios", "none", "-kernel", str(tmp_path / "kernel"), *flags])
    made = plan(asked, machine)
    return made, list(pairwise(monitor_command(made, asked, machine).arguments))


def value(words: list[tuple[str, str]], option: str) -> str:
    return next(second for first, second in words if first == option)


def open_console(argument: str) -> None:
    """As the keeper does it."""
    _, specification = console_argument(argument)
    chardev.make(specification, Loop(), Log("x", Path("/dev/null")), lambda: 0, lambda data: None).start()


def open_door(argument: str) -> None:
    Listener(doors.parse(argument).where)


def open_gdb(argument: str) -> None:
    Listener(endpoint.parse(argument))


SERVER = "server=on,wait=off"
CONSOLE = ("-device", "virtio-serial-device", "-device", "virtconsole,chardev=c")


@pytest.mark.parametrize(
    ("flags", "option", "opens"),
    [
        (("-serial", f"unix:{{}}s,{SERVER}"), "--console", open_console),
        (("-serial", "null", "-chardev", f"socket,id=c,path={{}}s,{SERVER}", *CONSOLE), "--console", open_console),
        (("-serial", "null", "-chardev", "file,id=c,path={}s", *CONSOLE), "--console", open_console),
        (("-qmp", f"unix:{{}}s,{SERVER}"), "--door", open_door),
        (("-qmp-pretty", f"unix:{{}}s,{SERVER}"), "--door", open_door),
        (("-monitor", f"unix:{{}}s,{SERVER}"), "--door", open_door),
        (("-chardev", f"socket,id=c,path={{}}s,{SERVER}", "-mon", "c,mode=control"), "--door", open_door),
        (("-gdb", f"unix:{{}}s,{SERVER}"), "--gdb", open_gdb),
    ],
    ids=lambda each: each[-2] if isinstance(each, tuple) else "",
)
def test_sockets_and_files_are_where_the_flag_says(
    flags: tuple[str, ...], option: str, opens: Callable[[str], None], folder: Path, written: str, tmp_path: Path
) -> None:
    _, words = planned(tmp_path, *(flag.format(written) for flag in flags))
    consoles = [argument for first, argument in words if first == option]
    opens(consoles[-1])
    assert {path.name for path in folder.iterdir()} == {"disk", "s"}
    assert {path.name for path in tmp_path.iterdir()} == {ODD, "kernel", "machine"}


@pytest.mark.parametrize("written", ["absolute"], indirect=True)
@pytest.mark.parametrize("flag", ["-serial file:{}/s", "-incoming unix:{}/s", "-D {}/s"])
def test_what_has_no_options_behind_it_takes_a_path_as_it_is(
    flag: str, folder: Path, written: str, tmp_path: Path
) -> None:
    name, _, text = flag.format(folder).partition(" ")
    asked = parse(["-display", "none", name, text])
    _, words = planned(tmp_path, name, text)
    match name:
        case "-serial":
            open_console(value(words, "--console"))
            assert (folder / "s").is_file()
        case "-incoming":
            assert uri.parse(value(words, "--incoming")) == uri.Unix(folder / "s")
        case _:
            assert asked.log_file == folder / "s"


def test_devices_get_the_paths_of_what_they_stand_on(folder: Path, written: str, tmp_path: Path) -> None:
    share = written.rstrip("/") or "."
    made, words = planned(
        tmp_path,
        *("-drive", f"file={written}disk,format=raw"),
        *("-virtfs", f"local,path={share},mount_tag=t,security_model=none"),
        *("-nic", f"stream,addr.type=unix,addr.path={written}s"),
    )
    # As the monitor has it: through its command line.
    services = [command_argument(text) for option, text in words if option == "--service"]
    assert services == list(made.services)
    found = {each.kind: list(pairwise(each.arguments)) for each in services}
    assert value(found["virtio-blk"], "--file") == str(folder / "disk")
    assert value(found["virtio-9p"], "--path") == str(folder)
    assert netdev.parse(value(found["virtio-net"], "--netdev")) == netdev.Stream(str(folder / "s"))


def test_device_of_a_running_machine_is_described_with_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert properties.parse(hotplug.absolute("file=disk,id=d"), "file") == {"file": str(folder / "disk"), "id": "d"}


def test_keys_of_gateway_and_migration(folder: Path) -> None:
    keys = str(folder).replace(",", ",,")
    assert remote.parse(f"tcp:[::1]:1,tls-creds={keys}").folder == folder
    assert remote.parse(remote.parse(f"tcp::1,tls-creds={keys}").text).folder == folder
    place = uri.parse(f"tcp:h:1,tls-creds={keys}")
    assert isinstance(place, uri.Tcp)
    assert place.keys == folder
