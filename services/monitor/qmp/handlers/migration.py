"""Migration and snapshots: QMP's words for what the supervisor's `Migration` does.

A snapshot is a job, as QEMU's is: the command begins it, JOB_STATUS_CHANGE and query-jobs tell how it goes.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path

from vmesh.errors import ConfigError, VmeshError
from vmesh.migration import snapshots
from vmesh.v1 import gateway_pb2
from vmesh.v1.migration_pb2 import MigrationRequest, MigrationStatus
from vmesh_services.monitor.control import Awaited, Control, Job
from vmesh_services.monitor.migration import state_name
from vmesh_services.monitor.operations import RequestError
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.handlers.registry import handles

_MAX_JOBS = 64
# By QMP's names, where they are not those of migration.proto with dashes.
_PARAMETERS = {"downtime-limit": "downtime_limit_ms"}
_RAM = (
    "transferred", "remaining", "total", "duplicate", "normal", "mbps", "dirty_sync_count", "postcopy_requests",
    "page_size", "precopy_bytes", "downtime_bytes", "postcopy_bytes",
)  # fmt: skip


@handles("migrate")
def _migrate(control: Control, arguments: Json) -> object:
    uri = str(arguments["uri"])
    return _asked(control, MigrationRequest(resume=uri) if arguments.get("resume") else MigrationRequest(outgoing=uri))


@handles("migrate-incoming")
def _migrate_incoming(control: Control, arguments: Json) -> object:
    return _asked(control, MigrationRequest(incoming=str(arguments["uri"])))


@handles("migrate-recover")
def _migrate_recover(control: Control, arguments: Json) -> object:
    return _asked(control, MigrationRequest(recover=str(arguments["uri"])))


@handles("migrate_cancel")
def _migrate_cancel(control: Control, arguments: Json) -> object:
    if not control.migration.under_way:
        return {}
    request = MigrationRequest()
    request.cancel.SetInParent()
    return _asked(control, request)


@handles("migrate-start-postcopy")
def _migrate_start_postcopy(control: Control, arguments: Json) -> object:
    request = MigrationRequest()
    request.start_postcopy.SetInParent()
    return _asked(control, request)


@handles("migrate-pause")
def _migrate_pause(control: Control, arguments: Json) -> object:
    request = MigrationRequest()
    request.pause.SetInParent()
    return _asked(control, request)


@handles("migrate-continue")
def _migrate_continue(control: Control, arguments: Json) -> object:
    raise QmpError("Migration is not in expected state: it never waits here (there is no pause-before-switchover)")


@handles("migrate-set-capabilities")
def _migrate_set_capabilities(control: Control, arguments: Json) -> object:
    settings = gateway_pb2.MigrateSettings()
    given = arguments["capabilities"]
    assert isinstance(given, list)
    for each in given:
        name = str(each["capability"]).replace("-", "_")
        if name not in settings.capabilities.DESCRIPTOR.fields_by_name:
            if each["state"]:
                raise QmpError(f"Capability '{each['capability']}' is not there")
            continue
        settings.names.append(name)
        setattr(settings.capabilities, name, bool(each["state"]))
    return _set(control, settings)


@handles("query-migrate-capabilities")
def _query_migrate_capabilities(control: Control, arguments: Json) -> object:
    capabilities = control.migration.capabilities
    return [
        {"capability": field.name.replace("_", "-"), "state": getattr(capabilities, field.name)}
        for field in capabilities.DESCRIPTOR.fields
    ]


@handles("migrate-set-parameters")
def _migrate_set_parameters(control: Control, arguments: Json) -> object:
    settings = gateway_pb2.MigrateSettings()
    for key, value in arguments.items():
        if key == "mode":
            key, value = "handover", value == "cpr-transfer"
        name = _PARAMETERS.get(key, key.replace("-", "_"))
        if name not in settings.parameters.DESCRIPTOR.fields_by_name:
            raise QmpError(f"Parameter '{key}' is not there")
        settings.names.append(name)
        try:
            setattr(settings.parameters, name, value)
        except ValueError:
            raise QmpError(f"Parameter '{key}' is too large") from None
    return _set(control, settings)


@handles("query-migrate-parameters")
def _query_migrate_parameters(control: Control, arguments: Json) -> object:
    parameters = control.migration.parameters
    names = {ours: theirs for theirs, ours in _PARAMETERS.items()}
    found: Json = {
        names.get(field.name, field.name.replace("_", "-")): getattr(parameters, field.name)
        for field in parameters.DESCRIPTOR.fields
    }
    return {"mode": "cpr-transfer" if found.pop("handover") else "normal", **found}


@handles("query-migrate")
def _query_migrate(control: Control, arguments: Json) -> object:
    return migration_info(control.migration.status)


def migration_info(status: MigrationStatus) -> Json:
    """QEMU's MigrationInfo; {} where nothing has ever migrated."""
    name = state_name(status.state)
    if name == "none" or status.snapshot:
        return {}
    found: Json = {"status": name, "total-time": status.total_time_ms}
    if name == "completed":
        found["downtime"] = round(status.downtime_ms)
    elif name in ("active", "postcopy-active", "setup"):
        found["expected-downtime"] = round(status.expected_downtime_ms)
    found["setup-time"] = round(status.setup_time_ms)
    if status.HasField("ram"):
        ram = status.ram
        found["ram"] = {key.replace("_", "-") if key != "mbps" else key: getattr(ram, key) for key in _RAM}
        found["ram"] |= {  # type: ignore[operator]
            "normal-bytes": ram.normal * ram.page_size,
            "dirty-pages-rate": round(ram.dirty_pages_rate),
            "pages-per-second": round(ram.pages_per_second),
        }
    if status.cpu_throttle_percentage:
        found["cpu-throttle-percentage"] = status.cpu_throttle_percentage
    if status.error:
        found["error-desc"] = status.error
    return found


def snapshot_path(tag: str) -> Path:
    """The file of a snapshot. Raises QmpError."""
    try:
        return snapshots.path_of(tag)
    except ConfigError as error:
        raise QmpError(str(error)) from error


def save(control: Control, tag: str) -> Future[MigrationStatus]:
    """Begin to save; the future has the status of the end. Raises QmpError."""
    return _to_end(control, MigrationRequest(save=str(snapshot_path(tag))))


def load(control: Control, tag: str) -> Future[MigrationStatus]:
    """Begin to load; the future has the status of the end. Raises QmpError."""
    return _to_end(control, MigrationRequest(load=str(snapshot_path(tag))))


def _to_end(control: Control, request: MigrationRequest) -> Future[MigrationStatus]:
    return control.migration.request_to_end(request)


def delete(control: Control, tag: str) -> None:
    """Forget a snapshot. Raises QmpError."""
    try:
        snapshots.delete(snapshot_path(tag))
    except VmeshError as error:
        raise QmpError(str(error)) from error


@handles("snapshot-save")
def _snapshot_save(control: Control, arguments: Json) -> object:
    return _job(control, arguments, "snapshot-save", MigrationRequest(save=_path(arguments)))


@handles("snapshot-load")
def _snapshot_load(control: Control, arguments: Json) -> object:
    return _job(control, arguments, "snapshot-load", MigrationRequest(load=_path(arguments)))


@handles("snapshot-delete")
def _snapshot_delete(control: Control, arguments: Json) -> object:
    _check_job(control, arguments)
    delete(control, str(arguments["tag"]))
    _become(control, _begin(control, arguments, "snapshot-delete"), "concluded")
    return {}


def _path(arguments: Json) -> str:
    return str(snapshot_path(str(arguments["tag"])))


def _job(control: Control, arguments: Json, kind: str, request: MigrationRequest) -> Json:
    """What can be wrong with the arguments is known by now: a job that was begun has an end."""
    job = _begin(control, arguments, kind)
    _to_end(control, request).add_done_callback(partial(_ended, control, job))
    return {}


def _check_job(control: Control, arguments: Json) -> None:
    """Raises QmpError if no job can be begun by that name."""
    name = str(arguments["job-id"])
    if name in control.jobs:
        raise QmpError(f"Job ID '{name[:80]}' already in use")
    if len(control.jobs) >= _MAX_JOBS:
        raise QmpError(f"at most {_MAX_JOBS} jobs: job-dismiss forgets those that are concluded")


def _begin(control: Control, arguments: Json, kind: str) -> Job:
    _check_job(control, arguments)
    name = str(arguments["job-id"])
    job = control.jobs[name] = Job(name, kind)
    for status in ("created", "running"):
        _become(control, job, status)
    return job


def _ended(control: Control, job: Job, future: Future[MigrationStatus]) -> None:
    job.error = failure(future)
    _become(control, job, "aborting" if job.error else "waiting")
    _become(control, job, "concluded")


def failure(future: Future[MigrationStatus]) -> str:
    """Why what has ended has failed; empty if it has not."""
    if error := future.exception():
        return str(error)
    status = future.result()
    return "" if state_name(status.state) == "completed" else status.error or state_name(status.state)


def _become(control: Control, job: Job, status: str) -> None:
    job.status = status
    control.supervisor.events.publish("JOB_STATUS_CHANGE", {"id": job.name, "status": status})


@handles("query-jobs")
def _query_jobs(control: Control, arguments: Json) -> object:
    return [
        {
            "id": job.name,
            "type": job.kind,
            "status": job.status,
            "current-progress": int(job.status == "concluded"),
            "total-progress": 1,
            **({"error": job.error} if job.error else {}),
        }
        for job in control.jobs.values()
    ]


@handles("job-dismiss")
def _job_dismiss(control: Control, arguments: Json) -> object:
    name = str(arguments["id"])
    if name not in control.jobs:
        raise QmpError("Job not found")
    if control.jobs[name].status != "concluded":
        raise QmpError(f"Job '{name}' in state '{control.jobs[name].status}' cannot accept command verb 'dismiss'")
    _become(control, control.jobs.pop(name), "null")
    return {}


def _asked(control: Control, request: MigrationRequest) -> Awaited:
    future = control.migration.request(request)
    return Awaited(future, lambda outcome: outcome if isinstance(outcome, QmpError) else {})


def _set(control: Control, settings: gateway_pb2.MigrateSettings) -> Json:
    try:
        control.migration.set(settings)
    except RequestError as error:
        raise QmpError(str(error)) from error
    return {}
