"""QMP as QEMU's own client speaks it (PyPI: qemu.qmp), and beside QEMU: the same commands, shapes and errors."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.waiting import LIMIT, wait_for
from vmesh.spawn import python
from vmesh_services.monitor.qmp.schema import SCHEMA

Answer = dict[str, Any]


class Door:
    """A QMP client that sees every message as it is."""

    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + LIMIT
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                assert time.monotonic() < deadline, f"nobody listens at {path}"
                time.sleep(0.02)
        self._socket.settimeout(LIMIT)
        self._lines = self._socket.makefile("rb")
        self.events: list[Answer] = []
        self.greeting = json.loads(self._lines.readline())

    def send(self, raw: bytes) -> Answer:
        self._socket.sendall(raw)
        while True:
            answer: Answer = json.loads(self._lines.readline())
            if "event" not in answer:
                return answer
            self.events.append(answer)

    def ask(self, command: str, **arguments: object) -> Answer:
        return self.send(json.dumps({"execute": command, "arguments": _dashed(arguments)}).encode())

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def _dashed(arguments: dict[str, object]) -> dict[str, object]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


class Machine:
    """`vmesh run`, with QMP at `qmp` and its own directory in `path`."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.runtime = Path(tempfile.mkdtemp(prefix="vmesh-qmp-"))
        self.qmp = self.runtime / "m.sock"
        self.path = self.runtime / "m"
        self.environment = {
            **os.environ,
            "VMESH_RUNTIME": str(self.runtime),
            "VMESH_SNAPSHOTS": str(self.runtime / "s"),
        }
        command = python("vmesh.cli", "run", "-name", "m", "-display", "none", "-smp", "2", *flags)
        command += ["-qmp", f"unix:{self.qmp},server=on,wait=off"]
        self.process = subprocess.Popen(
            command, cwd=root, env=self.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def door(self) -> Door:
        door = Door(self.qmp)
        assert door.ask("qmp_capabilities") == {"return": {}}
        deadline = time.monotonic() + LIMIT
        while json.loads((self.path / "machine.json").read_text())["state"] == "starting":
            assert time.monotonic() < deadline, "the machine does not start"
            time.sleep(0.05)
        return door

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.runtime, ignore_errors=True)


@pytest.fixture(scope="module")
def machine(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    disk = tmp_path_factory.mktemp("disk") / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    made = Machine(root, "-drive", f"file={disk},format=raw,id=d0")
    try:
        yield made
    finally:
        made.close()


# Every command, with arguments, and the class of the error where one is expected.
CALLS: list[tuple[str, dict[str, object], str]] = [
    ("query-version", {}, ""),
    ("query-commands", {}, ""),
    ("query-events", {}, ""),
    ("query-qmp-schema", {}, ""),
    ("query-status", {}, ""),
    ("query-name", {}, ""),
    ("query-cpus-fast", {}, ""),
    ("query-machines", {}, ""),
    ("query-memory-size-summary", {}, ""),
    ("query-chardev", {}, ""),
    ("query-balloon", {}, "DeviceNotActive"),
    ("balloon", {"value": 1 << 26}, "DeviceNotActive"),
    ("query-block", {}, ""),
    ("query-blockstats", {}, ""),
    ("query-migrate", {}, ""),
    ("query-migrate-capabilities", {}, ""),
    ("query-migrate-parameters", {}, ""),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}, ""),
    ("migrate-set-parameters", {"downtime-limit": 500}, ""),
    ("migrate_cancel", {}, ""),
    ("migrate", {"uri": "bogus"}, "GenericError"),
    ("migrate-incoming", {"uri": "bogus"}, "GenericError"),
    ("migrate-recover", {"uri": "bogus"}, "GenericError"),
    ("migrate-continue", {"state": "pre-switchover"}, "GenericError"),
    ("migrate-pause", {}, "GenericError"),
    ("migrate-start-postcopy", {}, "GenericError"),
    ("stop", {}, ""),
    ("stop", {}, ""),
    ("cont", {}, ""),
    ("set-action", {"reboot": "reset", "shutdown": "poweroff", "panic": "none", "watchdog": "none"}, ""),
    ("set-action", {"shutdown": "explode"}, "GenericError"),
    ("system_powerdown", {}, ""),
    ("system_reset", {}, ""),
    ("qom-list", {"path": "/machine"}, ""),
    ("qom-list", {"path": "/nowhere"}, "DeviceNotFound"),
    ("qom-get", {"path": "/machine", "property": "type"}, ""),
    ("qom-get", {"path": "/machine", "property": "flop"}, "GenericError"),
    ("device-list-properties", {"typename": "virtio-blk-device"}, ""),
    ("device-list-properties", {"typename": "flop"}, "DeviceNotFound"),
    ("human-monitor-command", {"command-line": "info status"}, ""),
    ("human-monitor-command", {"command-line": "info status", "cpu-index": 99}, "GenericError"),
    ("memsave", {"val": 0, "size": 4, "filename": "/nowhere/a"}, "GenericError"),
    ("pmemsave", {"val": 0x8000_0000, "size": 4, "filename": "/nowhere/a"}, "GenericError"),
    ("blockdev-add", {"driver": "raw", "node-name": "n"}, "GenericError"),
    ("blockdev-del", {"node-name": "flop"}, "GenericError"),
    ("netdev_del", {"id": "flop"}, "DeviceNotFound"),
    ("netdev_add", {"id": "n", "type": "flop"}, "GenericError"),
    ("device_add", {"driver": "flop"}, "GenericError"),
    ("device_del", {"id": "flop"}, "DeviceNotFound"),
    ("query-jobs", {}, ""),
    ("job-dismiss", {"id": "flop"}, "GenericError"),
    ("flop", {}, "CommandNotFound"),
]
OURS_ALONE: list[tuple[str, dict[str, object], str]] = [
    ("__org.vmesh_complete", {"line": "info st"}, ""),
    ("device_add", {"driver": "virtio-rng-device", "id": "rng1"}, ""),
    ("device_add", {"driver": "virtio-rng-device", "id": "rng1"}, "GenericError"),
    ("device_del", {"id": "rng1"}, ""),
    ("snapshot-save", {"job-id": "j", "tag": "t", "vmstate": "", "devices": []}, ""),
    ("snapshot-save", {"job-id": "j", "tag": "t", "vmstate": "", "devices": []}, "GenericError"),
    ("snapshot-delete", {"job-id": "k", "tag": "flop", "devices": []}, "GenericError"),
    ("snapshot-load", {"job-id": "j", "tag": "t", "vmstate": "", "devices": []}, "GenericError"),
    ("qmp_capabilities", {}, "CommandNotFound"),
]


def test_calls_are_of_every_command_but_quit() -> None:
    assert {name for name, _, _ in CALLS + OURS_ALONE} >= SCHEMA.commands.keys() - {"quit"}


async def jobs_of(client: QMPClient) -> list[Any]:
    found = await client.execute("query-jobs")
    assert isinstance(found, list)
    return found


def test_library_every_command(machine: Machine) -> None:
    machine.door().close()

    async def talk() -> list[str]:
        client = QMPClient("vmesh")
        await client.connect(str(machine.qmp))
        problems = []
        for name, arguments, expected in CALLS + OURS_ALONE:
            got = ""
            try:
                await client.execute(name, arguments)
            except ExecuteError as error:
                got = error.error_class
            if got != expected:
                problems.append(f"{name} {arguments}: expected {expected or 'a result'}, got {got or 'a result'}")
        while any(job["status"] != "concluded" for job in await jobs_of(client)):
            await asyncio.sleep(0.05)
        await client.execute("cont")
        await client.disconnect()
        return problems

    assert asyncio.run(asyncio.wait_for(talk(), LIMIT)) == []


def test_library_gets_events(machine: Machine) -> None:
    machine.door().close()

    async def talk() -> list[object]:
        client = QMPClient("vmesh")
        await client.connect(str(machine.qmp))
        names = []
        with client.listener(("STOP", "RESUME", "RESET", "POWERDOWN")) as listener:
            for command in ("stop", "cont", "system_reset", "system_powerdown"):
                await client.execute(command)
                names.append((await listener.get())["event"])
        await client.disconnect()
        return names

    assert asyncio.run(asyncio.wait_for(talk(), LIMIT)) == ["STOP", "RESUME", "RESET", "POWERDOWN"]


def test_shell(machine: Machine) -> None:
    machine.door().close()
    shell = Path(sys.executable).with_name("qmp-shell")
    typed = "query-status\nqom-get path=/machine property=type\nflop\n"
    done = subprocess.run(
        [shell, str(machine.qmp)], input=typed, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert '"status": "running"' in done.stdout, done.stderr
    assert "virt-machine" in done.stdout
    assert "CommandNotFound" in done.stdout


def test_memory_is_saved(machine: Machine, tmp_path: Path) -> None:
    door = machine.door()
    physical, virtual = tmp_path / "p", tmp_path / "v"
    assert door.ask("pmemsave", val=0x1000, size=16, filename=str(physical)) == {"return": {}}
    assert physical.read_bytes()[:4] == bytes.fromhex("97020000")  # auipc t0, 0: how the board's ROM begins
    assert physical.stat().st_mode & 0o077 == 0
    pc = door.ask("human-monitor-command", command_line="print/x $pc")["return"].strip()
    door.ask("stop")
    pc = door.ask("human-monitor-command", command_line="print/x $pc")["return"].strip()
    assert door.ask("memsave", val=int(pc, 16), size=8, filename=str(virtual)) == {"return": {}}
    shown = door.ask("human-monitor-command", command_line=f"x/8xb {pc}")["return"]
    door.ask("cont")
    assert bytes(int(byte, 16) for byte in shown.split(":")[1].split()) == virtual.read_bytes()
    assert "Invalid addr" in door.ask("pmemsave", val=0x1000, size=1 << 40, filename=str(physical))["error"]["desc"]
    door.close()


def test_snapshot_is_a_job(machine: Machine) -> None:
    door = machine.door()
    for command in ("snapshot-save", "snapshot-load"):
        assert door.ask(command, job_id=command, tag="u", vmstate="", devices=[]) == {"return": {}}
        deadline = time.monotonic() + LIMIT
        while (job := _job(door, command))["status"] != "concluded":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "error" not in job, job
        assert door.ask("job-dismiss", id=command) == {"return": {}}
    assert door.ask("query-status")["return"]["running"]
    assert door.ask("snapshot-delete", job_id="d", tag="u", devices=[]) == {"return": {}}
    seen = [event["data"]["status"] for event in door.events if event["event"] == "JOB_STATUS_CHANGE"]
    assert seen[:3] == ["created", "running", "waiting"]
    door.close()


def _job(door: Door, name: str) -> Answer:
    (found,) = [job for job in door.ask("query-jobs")["return"] if job["id"] == name]
    return dict(found)


def test_a_guest_that_powers_off_may_stay(root: Path, tmp_path: Path) -> None:
    firmware = tmp_path / "off.bin"  # lui t0, 0x100; lui t1, 0x5; addi t1, t1, 0x555; sw t1, (t0); j .
    firmware.write_bytes(struct.pack("<5I", 0x001002B7, 0x00005337, 0x55530313, 0x0062A023, 0x0000006F))
    machine = Machine(root, "-S", "-bios", str(firmware))
    try:
        door = machine.door()
        assert door.ask("set-action", shutdown="pause") == {"return": {}}
        door.ask("cont")
        wait_for(lambda: door.ask("query-status")["return"]["status"] == "shutdown", "the guest to power off")
        assert not door.ask("query-status")["return"]["running"]
        told = [event["data"] for event in door.events if event["event"] == "SHUTDOWN"]
        assert told == [{"guest": True, "reason": "guest-shutdown"}]
        assert door.ask("cont")["error"]["desc"] == "Resetting the Virtual Machine is required"
        assert door.ask("quit") == {"return": {}}
        assert machine.process.wait(LIMIT) == 0
    finally:
        machine.close()


def test_a_device_goes_once(machine: Machine) -> None:
    door = machine.door()
    assert door.ask("device_add", driver="virtio-rng-device", id="once") == {"return": {}}
    assert door.ask("device_del", id="once") == {"return": {}}

    def gone() -> list[Answer]:
        door.ask("query-status")
        return [event["data"] for event in door.events if event["event"] == "DEVICE_DELETED"]

    wait_for(lambda: bool(gone()), "DEVICE_DELETED")
    assert door.ask("device_del", id="once")["error"]["class"] == "DeviceNotFound"
    assert gone() == [{"device": "once", "path": "/machine/peripheral/once"}]
    door.close()


def test_gdbserver_by_hmp(machine: Machine) -> None:
    door = machine.door()
    place = machine.runtime / "gdb"

    def hmp(line: str) -> str:
        return str(door.ask("human-monitor-command", command_line=line)["return"])

    assert str(place) in hmp(f"gdbserver unix:{place}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LIMIT)
        client.connect(str(place))
        client.sendall(b"$qSupported#37")
        heard = b""
        while b"PacketSize=" not in heard:
            heard += client.recv(4096)
        client.sendall(b"+$D#44")
        while b"$OK#9a" not in heard:
            heard += client.recv(4096)
    assert "Disabled" in hmp("gdbserver none")
    wait_for(lambda: bool(door.ask("query-status")["return"]["running"]), "the guest to go on")
    assert not place.exists()
    door.close()


@pytest.fixture(scope="module")
def qemu(peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    path = Path(tempfile.mkdtemp(prefix="vmesh-qemu-")) / "q"
    command = [peer("qemu-system-riscv64"), "-M", "virt", "-smp", "2", "-display", "none", "-serial", "null"]
    process = subprocess.Popen([*command, "-bios", "none", "-qmp", f"unix:{path},server=on,wait=off"])
    try:
        yield Door(path)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(path.parent)


@pytest.mark.peer
def test_beside_qemu(machine: Machine, qemu: Door) -> None:
    """Greeting, answers and errors have QEMU's shape: its own schema finds no fault with them."""
    ours = Door(machine.qmp)
    assert _shape(ours.greeting) == _shape(qemu.greeting) | {"QMP.capabilities"}
    early = [door.ask("query-status") for door in (ours, qemu)]
    assert early[0] == early[1]
    for door in (ours, qemu):
        assert door.ask("qmp_capabilities") == {"return": {}}
    schema = {(entity["name"]): entity for entity in qemu.ask("query-qmp-schema")["return"]}
    problems = []
    for name, arguments, expected in CALLS:
        if name == "migrate-set-capabilities":  # events of migration are off by default with both
            continue
        mine, theirs = ours.ask(name, **arguments), qemu.ask(name, **arguments)
        got = [answer["error"]["class"] if "error" in answer else "" for answer in (mine, theirs)]
        if got[0] != got[1] and name not in DIFFER:
            problems.append(f"{name} {arguments}: {got[0] or 'a result'}, QEMU {got[1] or 'a result'}: {theirs}")
        elif not expected and name in schema:
            problems += _misfits(schema, schema[name]["ret-type"], mine["return"], name)
    assert not problems, "\n".join(problems)
    shapes = [{event["event"]: _shape(event) for event in door.events} for door in (ours, qemu)]
    assert shapes[0].keys() == shapes[1].keys() - {"NIC_RX_FILTER_CHANGED"}
    assert all(shapes[0][name] == shapes[1][name] for name in shapes[0])
    ours.close()


# Of a QEMU that is newer than the peer: since 8.2.
NEWER = {("migrate-set-parameters", "mode")}

# Where QEMU answers otherwise, for a reason.
DIFFER = {
    "query-events",  # QEMU has it no more, and introspection instead
    "migrate-pause", "migrate-start-postcopy", "device-list-properties", "qom-get", "migrate-set-parameters",
}  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize(
    "raw",
    [
        b'{"execute":"query-status","exec-oob":"x"}',
        b'{"exec-oob":"query-status"}',
        b'{"execute":5}',
        b"[]",
        b"{}",
        b'{"foo":1}',
        b"hello\n",
        b'{"execute":"query-status","arguments":{"x":1}}',
        b'{"execute":"query-status","arguments":1}',
        b'{"execute":"nope","id":[1]}',
        b'{"execute":"query-status" "id":1}',
        b'{"execute":"memsave","arguments":{"val":"a"}}',
        b'{"execute":"memsave","arguments":{"val":1.5,"size":1,"filename":"f"}}',
        b'{"execute":"query-status","id":{"a":[1,null,"x"]}}',
        b"[" * 1100 + b"]" * 1100 + b"\n",
    ],
)
def test_bad_input_beside_qemu(machine: Machine, qemu: Door, raw: bytes) -> None:
    ours = machine.door()
    with suppress(KeyError):
        qemu.ask("qmp_capabilities")
    mine, theirs = ours.send(raw), qemu.send(raw)
    assert mine.keys() == theirs.keys()
    if "error" in theirs:
        assert mine["error"]["class"] == theirs["error"]["class"], (mine, theirs)
    assert mine.get("id") == theirs.get("id")
    # Both go on: QEMU may have more errors to tell of the same text first.
    for door in (ours, qemu):
        answer = door.send(b'\xff{"execute":"query-name","id":"last"}')
        while answer.get("id") != "last":
            answer = door.send(b"")
        assert "return" in answer
    ours.close()


@pytest.mark.peer
def test_arguments_beside_qemu(qemu: Door) -> None:
    """What our schema asks for is what QEMU's does, and we ask for nothing that QEMU does not know."""
    with suppress(KeyError):
        qemu.ask("qmp_capabilities")
    schema = {entity["name"]: entity for entity in qemu.ask("query-qmp-schema")["return"]}
    problems = []
    for command in SCHEMA.commands.values():
        if command.name.startswith("__") or command.arguments is None:
            continue
        theirs = schema[schema[command.name]["arg-type"]]
        known = {member["name"]: "default" in member for member in theirs["members"]}
        for member in command.arguments.members:
            if (command.name, member.name) in NEWER:
                continue
            if member.name not in known and "ours" not in member.doc:
                problems.append(f"{command.name}: QEMU has no {member.name}")
            elif known.get(member.name, True) != member.optional:
                problems.append(f"{command.name}.{member.name}: optional in one only")
        missing = known.keys() - {member.name for member in command.arguments.members}
        if required := [name for name in missing if not known[name]]:
            problems.append(f"{command.name}: QEMU requires {required}")
    assert problems == []


def _shape(value: object, path: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {path}
    return {each for name, below in value.items() for each in _shape(below, f"{path}.{name}".lstrip("."))}


def _misfits(schema: dict[str, Answer], type_: str, value: object, path: str) -> list[str]:
    """What in `value` QEMU's schema would not have."""
    entity = schema[type_]
    match entity["meta-type"]:
        case "builtin":
            kinds: dict[str, tuple[type, ...]] = {
                "string": (str,), "int": (int,), "number": (int, float), "boolean": (bool,),
            }  # fmt: skip
            fits = isinstance(value, kinds.get(entity["json-type"], (object,)))
            return [] if fits else [f"{path}: {value!r} is no {entity['json-type']}"]
        case "enum":
            return [] if value in entity["values"] else [f"{path}: {value!r} is none of {entity['values']}"]
        case "array":
            assert isinstance(value, list)
            return [each for below in value for each in _misfits(schema, entity["element-type"], below, f"{path}[]")]
        case "object":
            assert isinstance(value, dict)
            members = {member["name"]: member for member in entity["members"]}
            tag = entity.get("tag")
            for variant in entity.get("variants", []):
                if tag and value.get(tag) == variant["case"]:
                    members |= {member["name"]: member for member in schema[variant["type"]]["members"]}
            found = [
                f"{path}.{name} is missing"
                for name, each in members.items()
                if "default" not in each and name not in value
            ]
            for name, below in value.items():
                if name in members:
                    found += _misfits(schema, members[name]["type"], below, f"{path}.{name}")
                elif (path, name) not in EXTRA:
                    found.append(f"{path}.{name} is unknown to QEMU")
            return found
    return []


# What we say on top.
EXTRA = {("query-migrate-parameters", name) for name in ("max-package-bytes", "zstd-level", "mode")}
