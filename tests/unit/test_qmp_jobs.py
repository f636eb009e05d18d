"""Jobs of QMP: one that was begun has an end, and one that cannot be begun does nothing."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.models.hostile_streams import Side
from vmesh_services.migration.snapshot import Save
from vmesh_services.monitor.control import Control
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers import execute


@pytest.fixture
def control() -> Control:
    """Of a machine where all that is asked for stays under way."""
    migration = SimpleNamespace(request_to_end=lambda request: Future())
    events = SimpleNamespace(publish=lambda name, data: None)
    return Control(cast(Any, SimpleNamespace(events=events)), cast(Any, migration), cast(Any, None), {})


def job(control: Control, kind: str, tag: str) -> None:
    disk = {} if kind == "snapshot-delete" else {"vmstate": "disk0"}
    execute(control, kind, {"job-id": "job0", "tag": tag, "devices": [], **disk})


@pytest.mark.parametrize("kind", ["snapshot-save", "snapshot-load", "snapshot-delete"])
def test_a_tag_that_is_none_leaves_no_job(control: Control, kind: str) -> None:
    with pytest.raises(QmpError, match="a tag of letters"):
        job(control, kind, "my snapshot")
    assert execute(control, "query-jobs", {}) == []


def test_a_name_that_is_taken_deletes_nothing(control: Control, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    Save(Side(tmp_path / "side").context(), str(path)).run()
    job(control, "snapshot-save", "tag")
    with pytest.raises(QmpError, match="already in use"):
        job(control, "snapshot-delete", str(path))
    assert path.exists()
