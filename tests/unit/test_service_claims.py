"""Services that nobody supervises: there is one of each, and the second says so before it touches anything."""

from __future__ import annotations

import os

import pytest

from vmesh import errors, service
from vmesh.machine import MachineDirectory
from vmesh.service import Runtime
from vmesh_services.monitor.__main__ import main as monitor
from vmesh_services.monitor.keeper.__main__ import main as keeper


def runtime(made: MachineDirectory, *words: str) -> Runtime:
    return Runtime(service.parser("rtc", None).parse_args(["--machine", str(made.path), *words]))


def test_the_second_of_a_service_is_refused(made: MachineDirectory) -> None:
    first = runtime(made)
    left = {path.name: path.stat() for path in made.path.iterdir() if path.name != "log"}
    with pytest.raises(errors.ConfigError, match="machine 'm' has a service 'rtc' already, which runs"):
        runtime(made)
    assert {path.name: path.stat() for path in made.path.iterdir() if path.name != "log"} == left
    other = runtime(made, "--name", "other")
    other.close()
    first.close()
    second = runtime(made)
    assert (first.epoch, second.epoch) == (1, 2)
    second.close()


def test_the_lives_of_a_supervised_service_are_their_supervisors(made: MachineDirectory) -> None:
    reader, writer = os.pipe()
    first = runtime(made, "--lifeline", str(reader))
    second = runtime(made, "--lifeline", str(reader), "--epoch", "2")
    assert second.epoch == 2
    for each in (first, second):
        each.close()
    os.close(reader)
    os.close(writer)


def test_the_second_monitor_and_keeper(made: MachineDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    former = os.umask(0o077)
    place = ["--machine", str(made.path)]
    for name, start in (("monitor", monitor), ("keeper", keeper)):
        claimed = made.claim(name)
        more = (
            ["--attached", "--service", "rtc goldfish-rtc vmesh_services.devices.goldfish_rtc"]
            if name == "monitor"
            else []
        )
        assert start([*place, *more]) != 0
        assert capfd.readouterr().err == f"{name}: machine 'm' has a service '{name}' already, which runs\n"
        os.close(claimed)
    os.umask(former)


def test_an_end_is_called_what_it_is(made: MachineDirectory) -> None:
    for left, said in ((True, "another service is in this one's place"), (False, "the machine is gone")):
        running = runtime(made)
        running._bound = made.socket("rtc").stat()
        made.socket("rtc").unlink()
        if left:
            made.socket("rtc").touch()
        running._watch_socket()
        assert said in made.log.read_text()
        running.close()
