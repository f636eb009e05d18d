"""QMP's schema: it is whole, it describes itself, and what does not fit is refused with QEMU's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmesh_services.monitor.hmp import over_qmp  # noqa: F401
from vmesh_services.monitor.qmp.check import check_arguments
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers import HANDLERS
from vmesh_services.monitor.qmp.introspect import schema_info
from vmesh_services.monitor.qmp.page import page
from vmesh_services.monitor.qmp.schema import SCHEMA
from vmesh_services.monitor.qmp.types import type_name

ISSUE = """
    query-version query-commands query-qmp-schema query-events query-status query-name query-cpus-fast query-machines
    query-chardev query-block query-blockstats query-memory-size-summary query-migrate migrate stop cont system_reset
    system_powerdown quit device_add device_del blockdev-add netdev_add qom-list qom-get device-list-properties
    human-monitor-command memsave pmemsave snapshot-save snapshot-load snapshot-delete set-action
"""


def test_schema_has_every_command_that_was_asked_for() -> None:
    assert set(ISSUE.split()) <= SCHEMA.commands.keys()


def test_every_command_has_a_handler_and_no_handler_is_without_a_command() -> None:
    assert HANDLERS.keys() == SCHEMA.commands.keys()


def test_names_are_unique_and_ours_are_marked() -> None:
    names = [command.name for module in SCHEMA.modules for command in module.commands]
    assert len(names) == len(set(names))
    types: dict[str, object] = {}
    for each in SCHEMA.types():
        assert types.setdefault(type_name(each), each) == each


def test_introspection_refers_to_nothing_that_is_not_there() -> None:
    info = schema_info(SCHEMA)
    known = {entity["name"] for entity in info if entity["meta-type"] not in ("command", "event")}
    used = set()
    for entity in info:
        used |= {entity[key] for key in ("arg-type", "ret-type", "element-type") if key in entity}
        for part in ("members", "variants"):
            used |= {each["type"] for each in entity.get(part, []) if "type" in each}  # type: ignore[attr-defined]
    assert used <= known
    assert len(info) == len({(entity["name"], entity["meta-type"]) for entity in info})


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("query-status", {"x": 1}, "Parameter 'x' is unexpected"),
        ("memsave", {"val": "a", "size": 1, "filename": "f"}, "Invalid parameter type for 'val', expected: integer"),
        ("memsave", {"val": -1, "size": 1, "filename": "f"}, "Parameter 'val' expects uint64"),
        ("memsave", {"val": True, "size": 1, "filename": "f"}, "Invalid parameter type for 'val', expected: integer"),
        ("memsave", {"val": 1, "size": 1}, "Parameter 'filename' is missing"),
        ("balloon", {}, "Parameter 'value' is missing"),
        ("balloon", {"value": "1G"}, "Invalid parameter type for 'value', expected: integer"),
        ("set-action", {"reboot": "zz"}, "Parameter 'reboot' does not accept value 'zz'"),
        ("snapshot-save", {"job-id": "a", "tag": "b", "vmstate": "", "devices": [1]}, "'devices[0]', expected: string"),
        ("blockdev-add", {"driver": "raw", "node-name": "a"}, "Parameter 'file' is missing"),
        ("blockdev-add", {"driver": "raw", "node-name": "a", "file": {"driver": "file"}}, "'file.filename' is missing"),
        ("blockdev-add", {"driver": "file", "node-name": "a", "filename": "x", "file": {}}, "'file' is unexpected"),
    ],
)
def test_arguments_that_do_not_fit(name: str, arguments: dict[str, object], error: str) -> None:
    with pytest.raises(QmpError, match=error.replace("[", r"\[")):
        check_arguments(arguments, SCHEMA.commands[name].arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("device_add", {"driver": "virtio-rng-device", "id": "a", "anything": 1}),
        ("blockdev-add", {"driver": "file", "node-name": "a", "filename": "x"}),
        ("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": {"driver": "file", "filename": "x"}}),
        ("query-status", {}),
    ],
)
def test_arguments_that_fit(name: str, arguments: dict[str, object]) -> None:
    check_arguments(arguments, SCHEMA.commands[name].arguments)


def test_the_page_is_current(root: Path) -> None:
    assert (root / "docs" / "qmp.md").read_text() == page(), (
        "python -P -m vmesh_services.monitor.qmp.page > docs/qmp.md"
    )
