"""`vmesh migrate`: move a machine, watch it move, and what else there is to say to a migration."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from google.protobuf import json_format

from vmesh.client import GatewayError, MachineClient
from vmesh.errors import VmeshError
from vmesh.machine import MachineError, find
from vmesh.migration import uri
from vmesh.v1 import migration_pb2 as messages
from vmesh.v1.migration_pb2 import MigrationStatus

USAGE = uri.USAGE
_LOOK_SECONDS = 0.05
_ENDED = (messages.MIGRATION_COMPLETED, messages.MIGRATION_FAILED, messages.MIGRATION_CANCELLED)


def rate(text: str) -> int:
    """Bytes a second, with a suffix of K, M or G; 0 for no limit."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper())
    try:
        value = int(text) if shift is None else int(text[:-1]) << shift
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no rate: expected e.g. 100M")
    return value


def migrate(options: argparse.Namespace) -> int:
    """Do what the options say. Returns the exit status; errors are one line on stderr."""
    try:
        with MachineClient(find(options.name)) as client:
            options.name = client.name
            if options.uri is not None:
                uri.parse(options.uri)
                return _move(client, options)
            return _control(client, options)
    except (MachineError, GatewayError, VmeshError) as error:
        print(f"vmesh migrate: {error}", file=sys.stderr)
        return 1


def state_name(state: messages.MigrationState.ValueType) -> str:
    """QEMU's name: "postcopy-active"."""
    return messages.MigrationState.Name(state).removeprefix("MIGRATION_").lower().replace("_", "-")


def _control(client: MachineClient, options: argparse.Namespace) -> int:
    if options.status:
        status = client.query_migrate().status
        if options.json:
            print(json.dumps(json_format.MessageToDict(status, always_print_fields_with_no_presence=True), indent=1))
        else:
            _print(status)
    elif options.cancel:
        client.migrate_cancel()
    elif options.start_postcopy:
        client.migrate_start_postcopy()
    elif options.pause:
        client.migrate_pause()
    elif options.recover:
        uri.parse(options.recover)
        client.migrate_recover(options.recover)
    else:
        uri.parse(options.incoming)
        client.migrate_incoming(options.incoming)
    return 0


def upgrade(name: str, new: str) -> int:
    """Hand a machine over to one that has adopted its memory, and end it. Returns the exit status."""
    try:
        there = find(new)
        with MachineClient(find(name)) as client:
            client.migrate_set(handover=True)
            client.migrate(f"unix:{there.handover}")
            try:
                status = _watch(lambda: client.query_migrate().status)
            except KeyboardInterrupt:
                status = _cancel(client)
            if status.state != messages.MIGRATION_COMPLETED:
                client.migrate_set(handover=False)
                _say_end(name, status)
                return 1
            client.quit()
    except (MachineError, GatewayError, VmeshError) as error:
        print(f"vmesh upgrade: {error}", file=sys.stderr)
        return 1
    print(f"'{new}' goes on as '{name}' was, which stood still for {status.downtime_ms:.0f} ms and has ended")
    return 0


def _move(client: MachineClient, options: argparse.Namespace) -> int:
    settings: dict[str, int | bool] = {"postcopy_ram": options.postcopy is not None, "handover": False}
    if options.bandwidth is not None:
        settings["max_bandwidth"] = options.bandwidth
    if options.downtime is not None:
        settings["downtime_limit_ms"] = options.downtime
    if options.auto_converge:
        settings["auto_converge"] = True
    if not options.resume:
        client.migrate_set(**settings)
    began = time.monotonic()
    client.migrate(options.uri, resume=options.resume)
    if options.detach:
        if options.postcopy is not None:
            client.migrate_start_postcopy()
        return 0

    def look() -> MigrationStatus:
        if options.postcopy is not None and time.monotonic() - began >= options.postcopy:
            options.postcopy = None
            with suppress(GatewayError):  # it has ended already
                client.migrate_start_postcopy()
        return client.query_migrate().status

    try:
        status = _watch(look)
    except KeyboardInterrupt:
        status = _cancel(client)
    _say_end(options.name, status)
    return 0 if status.state == messages.MIGRATION_COMPLETED else 1


def _cancel(client: MachineClient) -> MigrationStatus:
    """Ctrl-C: give it up, unless it cannot be given up any more."""
    try:
        client.migrate_cancel()
    except GatewayError as error:
        print(f"vmesh migrate: {error}", file=sys.stderr)
        return client.query_migrate().status
    while (status := client.query_migrate().status).state not in _ENDED:
        time.sleep(_LOOK_SECONDS)
    return status


def _watch(look: Callable[[], MigrationStatus]) -> MigrationStatus:
    """Until it has ended, or waits to be recovered; with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("round {task.fields[round]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("setup", total=None, round=0)
        while True:
            status = look()
            ram = status.ram
            done = max(0, ram.total - ram.remaining)
            progress.update(
                task,
                description=state_name(status.state),
                total=ram.total or None,
                completed=done,
                round=ram.dirty_sync_count,
            )
            if status.state in (*_ENDED, messages.MIGRATION_POSTCOPY_PAUSED):
                return status
            time.sleep(_LOOK_SECONDS)


def _say_end(name: str, status: MigrationStatus) -> None:
    moved = status.ram.transferred / 1e6
    match status.state:
        case messages.MIGRATION_COMPLETED:
            print(
                f"moved '{name}': {moved:.0f} MB in {status.total_time_ms / 1e3:.2f} s, "
                f"downtime {status.downtime_ms:.0f} ms; it stays paused here, `vmesh stop {name}` ends it"
            )
        case messages.MIGRATION_CANCELLED:
            print("cancelled, the machine goes on", file=sys.stderr)
        case messages.MIGRATION_POSTCOPY_PAUSED:
            print(
                f"vmesh migrate: the connection broke, the guest waits for pages: {status.error}; "
                "recover with `vmesh migrate DESTINATION --recover URI`, then "
                f"`vmesh migrate {name} URI --resume`",
                file=sys.stderr,
            )
        case _:
            print(f"vmesh migrate: {status.error or state_name(status.state)}", file=sys.stderr)


def _print(status: MigrationStatus) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    ram = status.ram
    rows = [
        ("status", state_name(status.state)),
        ("total time", f"{status.total_time_ms} ms"),
        ("setup time", f"{status.setup_time_ms:.0f} ms"),
        ("downtime", f"{status.downtime_ms:.1f} ms"),
        ("expected downtime", f"{status.expected_downtime_ms:.0f} ms"),
        ("transferred", f"{ram.transferred / 1e6:.1f} MB"),
        ("remaining", f"{ram.remaining / 1e6:.1f} MB of {ram.total / 1e6:.1f} MB"),
        ("zero pages", f"{ram.duplicate:,}"),
        ("normal pages", f"{ram.normal:,}"),
        ("rate", f"{ram.mbps:.0f} Mbit/s, {ram.pages_per_second:,.0f} pages/s"),
        ("dirty rounds", f"{ram.dirty_sync_count}, {ram.dirty_pages_rate:,.0f} pages/s dirtied"),
        ("throttled", f"{status.cpu_throttle_percentage} %"),
        ("post-copy requests", f"{ram.postcopy_requests:,}"),
        ("package", f"{status.package_bytes:,} bytes"),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    if status.error:
        table.add_row("error", status.error)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
