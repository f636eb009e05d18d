"""The command line of `vmesh run`: flags by the table, and which of them make sense together."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vmesh import properties
from vmesh.cli.flags import qemu
from vmesh.cli.flags.help import usage
from vmesh.cli.flags.options import OptionError, RunOptions
from vmesh.cli.flags.table import BY_NAME, Flag, checks
from vmesh.errors import VmeshError
from vmesh.qdev import virtio

_SIMILAR = 0.75  # of 1: another name than what was meant would mislead


def parse(arguments: Sequence[str]) -> RunOptions:
    """The options of a command line. Raises OptionError, and HelpRequested for --help, `-cpu help` and the like.

    A flag may be written with one dash or two, as QEMU allows. Of a flag given twice the last holds.
    """
    options = RunOptions()
    rest = iter(arguments)
    serials = 0
    for argument in rest:
        if argument in ("-h", "-help", "--help"):
            raise properties.HelpRequested(usage())
        if not argument.startswith("-") or argument == "-":
            raise OptionError(
                f"unexpected argument '{argument}': expected a flag; a disk is -drive file=FILE,format=raw"
            )
        name = argument[1:] if argument.startswith("--") else argument
        flag = BY_NAME.get(name) or _anyway(name)
        if flag is None:
            raise OptionError(_unknown(name))
        value = ""
        if flag.syntax:
            try:
                value = next(rest)
            except StopIteration:
                raise OptionError(f"{name}: expected {flag.syntax} after it") from None
        serials += name == "-serial"
        if serials > 1:
            raise OptionError("-serial: expected once, the virt board has one serial port")
        try:
            options = flag.apply(options, value)
        except (ValueError, VmeshError) as error:
            raise OptionError(f"{name} {value}: {error}") from error
        except OSError as error:  # of a file that it names
            raise OptionError(f"{name} {value}: {error.strerror}") from error
    _check_together(options)
    return options


def _check_together(options: RunOptions) -> None:
    """Raises OptionError for flags that make no sense together."""
    try:
        options.parts()
    except ValueError as error:
        raise OptionError(str(error)) from error
    _check_consoles(options)
    if options.initrd is not None and options.kernel is None:
        raise OptionError("-initrd: expected -kernel with it")
    if options.append is not None and options.kernel is None and not options.boots_default_guest:
        raise OptionError("-append: expected -kernel with it")
    if (
        options.monitor == "stdio"
        and options.serial is not None
        and options.serial.kind == "stdio"
        and not options.serial.mux
    ):
        raise OptionError(
            "-monitor stdio -serial stdio: expected one of them; -serial mon:stdio puts both on the terminal"
        )
    if options.quiet and (not options.boots_default_guest or options.incoming or options.load_snapshot is not None):
        raise OptionError("-quiet: expected the default guest: no -kernel, -bios, -incoming or -loadvm")
    if options.quiet and options.terminal[1].kind != "stdio":
        raise OptionError("-quiet: expected the serial port on this terminal")
    if options.incoming and options.load_snapshot is not None:
        raise OptionError("-incoming -loadvm: expected one of them")
    if options.cpu_apart and (options.incoming or options.load_snapshot is not None):
        raise OptionError("-cpu-apart: expected neither -incoming nor -loadvm, such a machine cannot come in")
    if options.dtb is not None and options.dumpdtb is not None:
        raise OptionError("-dtb -machine dumpdtb=: expected one of them, there is nothing to dump with -dtb")


def _check_consoles(options: RunOptions) -> None:
    names = [name for name, _ in options.chardevs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"-chardev id={twice[0]}: expected each id once")
    used = list(virtio.consoles(options.virtio_devices).values())
    for name in used:
        if name not in names:
            raise OptionError(f"-device {virtio.CONSOLE}: expected chardev=NAME of a -chardev, there is no '{name}'")
        if used.count(name) > 1:
            raise OptionError(f"-chardev id={name}: expected one device for it")
    if tcp := [name for name in used if (end := dict(options.chardevs)[name].endpoint) and not end.path]:
        raise OptionError(f"-chardev id={tcp[0]}: expected a -mon for host= and port=, a console cannot use it")
    _check_monitors(options, used)
    on_terminal = sum(serial.kind == "stdio" for serial in options.consoles.values())
    if on_terminal + sum(monitor.endpoint is None for monitor in options.doors) > 1:
        raise OptionError("stdio: the terminal is taken; -serial null (or -display none) lets go of it")


def _check_monitors(options: RunOptions, used: Sequence[str]) -> None:
    named = dict(options.chardevs)
    seen = set(used)
    for name in (monitor.chardev for monitor in options.monitor_devices if monitor.chardev):
        if name not in named:
            raise OptionError(f"-mon: expected chardev=NAME of a -chardev, there is no '{name}'")
        if name in seen:
            raise OptionError(f"-chardev id={name}: expected one user for it")
        if named[name].kind not in ("stdio", "socket"):
            raise OptionError(f"-mon chardev={name}: expected a -chardev socket or stdio")
        seen.add(name)


def _anyway(name: str) -> Flag | None:
    """A flag of QEMU's that asks for what holds anyway."""
    flag = qemu.ANYWAY.get(name)
    return Flag((name,), flag.expected, "", checks(flag.check)) if flag is not None else None


def _unknown(name: str) -> str:
    if hint := qemu.HINTS.get(name):
        return f"no flag '{name}': {hint}"
    close = difflib.get_close_matches(name, BY_NAME, n=2, cutoff=_SIMILAR)
    hint = f"did you mean {' or '.join(close)}?" if close else "vmesh run --help lists the flags"
    return f"unknown flag '{name}': {hint}"
