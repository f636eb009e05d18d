"""The commands of HMP: one table. What QMP has too, QMP's handlers do; here lines become arguments, answers text.

Source: QEMU's manual, "Human Monitor Interface", for names, parameters and what is printed.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

from vmesh import properties
from vmesh.errors import ConfigError
from vmesh.v1.migration_pb2 import MigrationRequest, MigrationStatus
from vmesh_services.monitor.control import Awaited, Control, Parts, Work
from vmesh_services.monitor.hmp import dump, info
from vmesh_services.monitor.hmp.command import Call, Command, LineError, Run, qmp_parts, silent
from vmesh_services.monitor.operations import RequestError
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers import execute as execute_qmp
from vmesh_services.monitor.qmp.handlers import migration


def execute(control: Control, line: str, hart: int = 0) -> object:
    """The text that answers a line, or the Work whose result it is; what is wrong with the line is text too."""
    name, _, rest = line.strip().partition(" ")
    name, slash, form = name.partition("/")
    rest = f"/{form} {rest}" if slash else rest
    if not name:
        return ""
    if name in _REFUSED:
        return f"{name}: {_REFUSED[name]}\n"
    command = _BY_NAME.get(name)
    shown = name
    if name == "info":
        topic, _, rest = rest.strip().partition(" ")
        if not topic:
            return help_text("info")
        command, shown = info.BY_NAME.get(topic), f"info {topic}"
    if command is None:
        close = difflib.get_close_matches(name, _BY_NAME, n=1) if name != "info" else []
        return f"unknown command: '{shown[:80]}'" + (f", did you mean '{close[0]}'?\n" if close else "\n")
    try:
        call = Call(control, hart, command.parse(rest))
    except LineError as error:
        return f'{shown}: {error}\nTry "help {shown}" for more information\n'
    try:
        answer = command.run(call)
    except QmpError as error:
        return f"Error: {error}\n"
    return replace(answer, parts=_told(answer.parts)) if isinstance(answer, Work) else answer


def complete(control: Control, line: str) -> list[str]:
    """The words that could stand where the last one of `line` does."""
    words = line.lstrip().split(" ")
    last = words[-1]
    match words[:-1]:
        case []:
            known: list[str] = [*_BY_NAME, "info"]
        case ["info"]:
            known = list(info.BY_NAME)
        case ["help" | "?"]:
            known = [*_BY_NAME, "info"]
        case ["help" | "?", "info"]:
            known = list(info.BY_NAME)
        case ["device_del"]:
            known = list(control.roster.devices)
        case _:
            known = []
    return sorted(word for word in known if word.startswith(last))


def help_text(topic: str = "") -> str:
    """Usage and help of one command, of `info`'s topics, or of all."""
    name, _, below = topic.partition(" ")
    if name == "info" and not below:
        return "".join(f"info {each.usage} -- {each.help}\n" for each in info.TOPICS)
    if name == "info":
        found = [command] if (command := info.BY_NAME.get(below)) else []
        return "".join(f"info {each.usage} -- {each.help}\n" for each in found) or f"unknown command: '{topic[:80]}'\n"
    if name in _REFUSED:
        return f"{name} -- not there: {_REFUSED[name]}\n"
    if name:
        command = _BY_NAME.get(name)
        return f"{command.usage} -- {command.help}\n" if command else f"unknown command: '{name[:80]}'\n"
    lines = [f"{each.usage} -- {each.help}" for each in COMMANDS]
    lines.append("info [subcommand] -- show various information about the system state")
    return "".join(f"{line}\n" for line in sorted(lines))


def _told(parts: Parts) -> Parts:
    """Errors of what is carried out are text, too."""
    try:
        return (yield from parts)
    except (QmpError, RequestError) as error:
        return f"Error: {error}\n"


def _qmp(name: str, arguments: Callable[[Call], Json] = lambda call: {}) -> Run:
    """A command that is one of QMP's, and prints nothing."""

    def run(call: Call) -> str | Work | Awaited:
        answer = execute_qmp(call.control, name, arguments(call))
        match answer:
            case Work():
                return replace(answer, parts=silent(answer.parts))
            case Awaited():
                return Awaited(answer.future, _error)
        return ""

    return run


def _examine(*, virtual: bool) -> Run:
    return lambda call: dump.examine(call, virtual=virtual)


def _id(call: Call) -> Json:
    return {"id": call.text("id")}


def _error(outcome: object) -> str:
    return f"Error: {outcome}\n" if isinstance(outcome, QmpError) else ""


def _to_end(future: Future[MigrationStatus]) -> Awaited:
    """What prints why it failed, once it has ended."""

    def answer(outcome: object) -> str:
        why = migration.failure(future)
        return f"Error: {why}\n" if why else ""

    return Awaited(future, answer)


def _savevm(call: Call) -> Awaited:
    return _to_end(migration.save(call.control, call.text("name") or time.strftime("vm-%Y%m%d%H%M%S")))


def _loadvm(call: Call) -> Awaited:
    return _to_end(migration.load(call.control, call.text("name")))


def _delvm(call: Call) -> str:
    migration.delete(call.control, call.text("name"))
    return ""


def _migrate(call: Call) -> str | Work | Awaited:
    if call.given("detach") or call.given("resume"):
        return _qmp("migrate", _migrate_arguments)(call)
    return _to_end(call.control.migration.request_to_end(MigrationRequest(outgoing=call.text("uri"))))


def _help(call: Call) -> str:
    return help_text(call.text("name"))


def _cpu(call: Call) -> Work:
    return Work(_choose(call))


def _choose(call: Call) -> Parts:
    index = (yield from call.numbers())["index"]
    return Chosen(call.control.hart(index))


class Chosen(str):
    """What `cpu` answers: no text, and the hart that the session looks from now on."""

    hart: int

    def __new__(cls, hart: int) -> Chosen:
        made = super().__new__(cls, "")
        made.hart = hart
        return made


def _save(name: str) -> Run:
    def run(call: Call) -> Work:
        return Work(_save_parts(call, name))

    return run


def _save_parts(call: Call, name: str) -> Parts:
    numbers = yield from call.numbers()
    arguments: Json = {"val": numbers["addr"], "size": numbers["size"], "filename": call.text("filename")}
    if name == "memsave":
        arguments["cpu-index"] = call.hart
    yield from qmp_parts(call.control, name, arguments)
    return ""


def _balloon(call: Call) -> Work:
    return Work(_balloon_parts(call), exclusive=True)


def _balloon_parts(call: Call) -> Parts:
    megabytes = (yield from call.numbers())["value"]
    yield from qmp_parts(call.control, "balloon", {"value": megabytes << 20})
    return ""


def _device(call: Call) -> Json:
    """`driver,prop=value,...` as QMP takes it."""
    return dict(properties.parse(call.text("device"), "driver"))


def _netdev(call: Call) -> Json:
    return {("type" if key == "driver" else key): value for key, value in _device(call).items()}


def _migrate_arguments(call: Call) -> Json:
    flags = {name: True for name in ("detach", "resume") if call.given(name)}
    return {"uri": call.text("uri"), **flags}


def _capability(call: Call) -> Json:
    if call.text("state") not in ("on", "off"):
        raise QmpError("expected on or off")
    return {"capabilities": [{"capability": call.text("capability"), "state": call.text("state") == "on"}]}


def _parameter(call: Call) -> Json:
    try:
        return {call.text("parameter"): int(call.text("value"), 0)}
    except ValueError:
        raise QmpError(f"Parameter '{call.text('parameter')[:80]}' expects a number") from None


def _log(call: Call) -> str:
    items = call.text("items").split(",")
    known = {"none", "guest_errors", "unimp"}
    if unknown := [item for item in items if item not in known]:
        there = "none            remove all logs\nguest_errors    copy the services' warnings to stderr\n"
        return f"Log items (comma separated), there is no '{unknown[0][:40]}':\n{there}unimp           the same\n"
    call.control.supervisor.mirror_warnings(items != ["none"])
    return ""


def _gdbserver(call: Call) -> str:
    start = call.control.gdbserver
    if start is None:
        raise QmpError("this machine has no gdb server")
    try:
        return f"{start(call.text('device') or 'tcp::1234')}\n"
    except ConfigError as error:
        raise QmpError(str(error)) from error


COMMANDS: tuple[Command, ...] = (
    Command(("help", "?"), "name:S?", "show the help", _help),
    Command(("stop", "s"), "", "stop emulation", _qmp("stop")),
    Command(("cont", "c"), "", "resume emulation", _qmp("cont")),
    Command(("system_reset",), "", "reset the system", _qmp("system_reset")),
    Command(("system_powerdown",), "", "send system power down event", _qmp("system_powerdown")),
    Command(("quit", "q"), "", "end the machine", _qmp("quit")),
    Command(("cpu",), "index:l", "set the default CPU", _cpu),
    Command(("x",), "fmt:/,addr:l", "virtual memory dump starting at 'addr'", _examine(virtual=True)),
    Command(("xp",), "fmt:/,addr:l", "physical memory dump starting at 'addr'", _examine(virtual=False)),
    Command(("print", "p"), "fmt:/,val:l", "print expression value (use $reg for CPU register access)", dump.show),
    Command(
        ("memsave",),
        "addr:l,size:l,filename:s",
        "save to disk virtual memory from 'addr' of size 'size'",
        _save("memsave"),
    ),
    Command(
        ("pmemsave",),
        "addr:l,size:l,filename:s",
        "save to disk physical memory from 'addr' of size 'size'",
        _save("pmemsave"),
    ),
    Command(("balloon",), "value:l", "request VM to change its memory allocation (in MB)", _balloon),
    Command(("device_add",), "device:S", "add device, like -device on the command line", _qmp("device_add", _device)),
    Command(("device_del",), "id:s", "remove device", _qmp("device_del", _id)),
    Command(("netdev_add",), "device:S", "add host network device", _qmp("netdev_add", _netdev)),
    Command(("netdev_del",), "id:s", "remove host network device", _qmp("netdev_del", _id)),
    Command(("savevm",), "name:s?", "save a VM snapshot", _savevm),
    Command(("loadvm",), "name:s", "restore a VM snapshot from its tag", _loadvm),
    Command(("delvm",), "name:s", "delete a VM snapshot from its tag", _delvm),
    Command(
        ("migrate",),
        "detach:-d,resume:-r,uri:s",
        "migrate to URI (-d: without waiting, -r: resume a paused postcopy)",
        _migrate,
    ),
    Command(("migrate_cancel",), "", "cancel the current VM migration", _qmp("migrate_cancel")),
    Command(
        ("migrate_continue",),
        "state:s",
        "continue migration from the given paused state",
        _qmp("migrate-continue", lambda call: {"state": call.text("state")}),
    ),
    Command(
        ("migrate_incoming",),
        "uri:s",
        "continue an incoming migration from an -incoming defer",
        _qmp("migrate-incoming", lambda call: {"uri": call.text("uri")}),
    ),
    Command(
        ("migrate_recover",),
        "uri:s",
        "continue a paused incoming postcopy migration",
        _qmp("migrate-recover", lambda call: {"uri": call.text("uri")}),
    ),
    Command(("migrate_pause",), "", "pause an ongoing migration (postcopy-only)", _qmp("migrate-pause")),
    Command(("migrate_start_postcopy",), "", "switch the migration to postcopy mode", _qmp("migrate-start-postcopy")),
    Command(
        ("migrate_set_capability",),
        "capability:s,state:s",
        "switch a capability on or off",
        _qmp("migrate-set-capabilities", _capability),
    ),
    Command(
        ("migrate_set_parameter",),
        "parameter:s,value:s",
        "set a parameter of migration",
        _qmp("migrate-set-parameters", _parameter),
    ),
    Command(("gdbserver",), "device:s?", "start gdbserver on given device (default 'tcp::1234')", _gdbserver),
    Command(("log",), "items:s", "activate logging of the specified items", _log),
)

# What people may know from QEMU and this machine has no part for.
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("screendump", "mouse_move", "mouse_button", "mouse_set"), "the board has no display and no mouse"),
    **dict.fromkeys(("sendkey",), "the board has no keyboard; type at its console"),
    **dict.fromkeys(("change", "eject"), "the board has no removable media"),
    **dict.fromkeys(("usb_add", "usb_del", "pcie_aer_inject_error"), "the board has no USB and no PCI"),
    **dict.fromkeys(("nmi",), "RISC-V has no NMI"),
    **dict.fromkeys(
        ("set_password", "expire_password", "wavcapture", "stopcapture"), "there is no VNC, no SPICE, no sound"
    ),
}

_BY_NAME: Mapping[str, Command] = {name: command for command in COMMANDS for name in command.names}
