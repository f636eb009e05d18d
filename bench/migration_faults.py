"""Migrations that go wrong at random moments: links cut, streams damaged, processes killed, disks full.

Before the switch the machine must go on at the source; a post-copy must pause, and be mended. Only where the machine
that has the guest loses its cpu, memory or monitor nothing can be had back: it must end with one line. The guest counts
in memory, with a lot of data before it that is compared with what it was.

Each run has a seed, which is printed with what it did: VMESH_SEED begins with that run. The logs of a failed campaign
are kept.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample
from tests.faults.streams import DATA_BYTES, ENDED, Pair, Proxy, counts, smallest_snapshot, wait_state
from tests.waiting import LIMIT
from vmesh.client import GatewayError, MachineClient
from vmesh.machine import MachineDirectory
from vmesh.v1 import migration_pb2

_ROOT = Path(__file__).resolve().parent.parent
_STREAM_BYTES = DATA_BYTES + (1 << 20)
_SLOW = 32 << 20  # bytes a second, where something is to happen meanwhile
_SECONDS = 0.6  # within which it happens
_LOAD_SECONDS = 0.15  # that a snapshot takes to be loaded, about
_SWITCH_SECONDS = 0.04  # the same, where it is to happen while a post-copy is switched over
_MIGRATION = "migration"
_DEVICES = ("uart0", "rtc", "test")
_VITAL = ("cpu", "memory", "monitor")  # whose death ends a machine, as it always does
_PAUSED = migration_pb2.MIGRATION_POSTCOPY_PAUSED


@dataclass(slots=True)
class _Campaign:
    """A machine that runs, and one that could take it."""

    pair: Pair
    scratch: Path
    chance: random.Random = field(default_factory=random.Random)
    number: int = 0
    doomed: str = ""  # a machine that is to end
    source_name: str = ""
    target_name: str = ""
    source: MachineClient = field(init=False)
    target: MachineClient = field(init=False)
    outcomes: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)  # what happened in this run

    def begin(self) -> None:
        self.source_name = self._name()
        self.source = self.pair.start(self.source_name)
        self.next_target()

    def _name(self) -> str:
        self.number += 1
        return f"m{self.number}"

    def next_target(self) -> None:
        self.target_name = self._name()
        self.target = self.pair.start(self.target_name, "-incoming", "defer")

    def _came(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.told.append(outcome)

    # What goes wrong before the switch

    def cut(self) -> None:
        end = self.chance.randrange(_STREAM_BYTES)
        self.told.append(f"after {end} bytes")
        self._through(lambda at, data: data if at < end else None)

    def damage(self) -> None:
        where, bit = self.chance.randrange(_STREAM_BYTES), 1 << self.chance.randrange(8)
        self.told.append(f"byte {where} ^ {bit:#x}")

        def through(at: int, data: bytes) -> bytes:
            if not at <= where < at + len(data):
                return data
            changed = bytearray(data)
            changed[where - at] ^= bit
            return bytes(changed)

        self._through(through)

    def _through(self, through: Callable[[int, bytes], bytes | None]) -> None:
        proxy = Proxy(self.pair.place(), self.pair.listen(self.target), through)
        try:
            self.source.migrate(proxy.uri)
            state = wait_state(self.source, *ENDED).state
        finally:
            proxy.close()
        self._settle(state)

    def cancel(self) -> None:
        self._slowly()
        with suppress(GatewayError):  # it was quicker
            self.source.migrate_cancel()
        self._settle(wait_state(self.source, *ENDED).state)

    def kill_source_service(self) -> None:
        """Its migration service, or a device, which is started again; the machine goes on or moves."""
        self._slowly()
        self._kill("source", (_MIGRATION, *_DEVICES))
        self._settle(wait_state(self.source, *ENDED).state)

    def kill_target_service(self) -> None:
        self._slowly()
        service = self._kill("target", (_MIGRATION, *_DEVICES, *_VITAL))
        state = wait_state(self.source, *ENDED).state
        if state == migration_pb2.MIGRATION_COMPLETED and service in _VITAL:
            self._died(self.target_name, service)
        else:
            self._settle(state)

    def full_disk(self) -> None:
        former = self.scratch / "former.vmsnap"
        former.write_bytes(smallest_snapshot())
        try:
            self.source.snapshot_save(former)
        except GatewayError as error:
            if "No space left" not in str(error):
                raise BenchError(f"a full disk: {error}") from error
        else:
            raise BenchError("a snapshot was written to a full disk")
        if former.read_bytes() != smallest_snapshot() or os.listdir(self.scratch) != [former.name]:
            raise BenchError("the former snapshot is not what it was")
        self._alive(self.source, self.source_name)

    def kill_while_loading(self) -> None:
        """The migration service, with a snapshot half loaded: its next life loads the rest."""
        snapshot = self.pair.logs / "half.vmsnap"
        self.source.snapshot_save(snapshot)
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self.source.snapshot_load, snapshot)
            time.sleep(self.chance.uniform(0, _LOAD_SECONDS))
            self._kill("source", (_MIGRATION,))
            try:
                loading.result(LIMIT)
            except GatewayError as error:  # it had not begun
                self.told.append(f"({error})")
        snapshot.unlink()
        self._came(
            "loaded" if self.source.query_migrate().status.state != migration_pb2.MIGRATION_FAILED else "not loaded"
        )
        self._alive(self.source, self.source_name)

    # And after it

    def postcopy(self) -> None:
        """The link breaks some times, by a cut or as the user asks for it, and is mended."""
        end = self.chance.randrange(_STREAM_BYTES)
        self.told.append(f"cut after {end} bytes")
        proxy = Proxy(self.pair.place(), self.pair.listen(self.target), lambda at, data: data if at < end else None)
        self._switch(proxy.uri, 8 << 20)
        state = wait_state(self.source, *ENDED, _PAUSED).state
        proxy.close()

        def again() -> None:
            time.sleep(self.chance.uniform(0, 0.3))
            if self.chance.random() < 0.4:
                with suppress(GatewayError):  # it has ended
                    self.chance.choice((self.source, self.target)).migrate_pause()

        self._settle(self._mend(state, again))

    def kill_in_postcopy(self) -> None:
        """A service of either side that can be had back: its next life goes on, and the link is mended."""
        self._switch(f"unix:{self.pair.listen(self.target)}", 16 << 20)
        time.sleep(self.chance.uniform(0, self.chance.choice((_SWITCH_SECONDS, _SECONDS))))
        self._kill(self.chance.choice(("source", "target")), (_MIGRATION, _MIGRATION, *_DEVICES))

        def again() -> None:
            if self.chance.random() < 0.3:
                time.sleep(self.chance.uniform(0, 0.2))
                self._kill(self.chance.choice(("source", "target")), (_MIGRATION,))

        self._settle(self._mend(wait_state(self.source, *ENDED, _PAUSED).state, again))

    def end_in_postcopy(self) -> None:
        """The destination ends. Before it was to run the guest this goes on at the source; then it is lost, and the
        source, which has pages that nobody fetches, waits and does not run."""
        self._switch(f"unix:{self.pair.listen(self.target)}", 16 << 20)
        time.sleep(self.chance.uniform(0, self.chance.choice((_SWITCH_SECONDS, _SECONDS))))
        service = self._kill("target", _VITAL)
        status = wait_state(self.source, *ENDED, _PAUSED)
        if status.state != _PAUSED:
            if status.state == migration_pb2.MIGRATION_COMPLETED:
                self._died(self.target_name, service)
            else:
                self._settle(status.state)
            return
        if self.source.status().run_state != "postmigrate" or not status.error:
            raise BenchError("the source of a post-copy whose destination has ended does not wait")
        self._died(self.target_name, service)

    def _switch(self, uri: str, background: int) -> None:
        self.source.migrate_set(postcopy_ram=True, max_postcopy_bandwidth=background)
        self.source.migrate(uri)
        with suppress(GatewayError):
            self.source.migrate_start_postcopy()

    def _mend(
        self, state: migration_pb2.MigrationState.ValueType, again: Callable[[], None]
    ) -> migration_pb2.MigrationState.ValueType:
        """Have a post-copy that is paused go on, until the source knows how it has ended. `again` is called as soon as
        that was asked for."""
        deadline = time.monotonic() + 2 * LIMIT
        while state == _PAUSED:
            if time.monotonic() > deadline:
                raise BenchError(f"the post-copy is not mended: {self.source.query_migrate().status.error}")
            there = wait_state(self.target, *ENDED, _PAUSED).state
            if there == migration_pb2.MIGRATION_COMPLETED:
                self._came("all pages came, and the source does not know")
                return there
            if there != _PAUSED:  # it was never told to run
                self.source.migrate_cancel()
                return wait_state(self.source, *ENDED).state
            self._came("paused")
            place = self.pair.place()
            try:
                self.target.migrate_recover(f"unix:{place}")
                self.source.migrate(f"unix:{place}", resume=True)
                again()
            except GatewayError as error:  # it was killed just now
                self.told.append(f"({error})")
            time.sleep(0.1)  # what was asked for begins
            state = wait_state(self.source, *ENDED, _PAUSED).state
        return state

    # What must be so then

    def _slowly(self) -> None:
        self.source.migrate_set(max_bandwidth=_SLOW)
        self.source.migrate(f"unix:{self.pair.listen(self.target)}")
        time.sleep(self.chance.uniform(0, _SECONDS))

    def _kill(self, side: str, services: Sequence[str]) -> str:
        service = self.chance.choice(services)
        name = self.source_name if side == "source" else self.target_name
        if service == "monitor":
            pid: int | None = MachineDirectory(self.pair.runtime / name).read_record().pid
        else:
            pid = self.pair.pid(name, service)
        states = [_short(client) for client in (self.source, self.target)]
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if service in _VITAL:
            self.doomed = name
        self.told.append(
            f"{service} of the {side} {name} killed at {states[0]}, {states[1]}{'' if pid else ' (is not)'}"
        )
        return service

    def _settle(self, state: migration_pb2.MigrationState.ValueType) -> None:
        """The machine runs in one place, and has its memory; then there is one to go to."""
        if state == migration_pb2.MIGRATION_COMPLETED:
            self._came("moved")
            wait_state(self.target, *ENDED)
            self._alive(self.target, self.target_name)
            if self.source.status().run_state == "running":
                raise BenchError("the machine runs twice")
            self.pair.stop(self.source_name)
            self.source, self.source_name = self.target, self.target_name
            self.next_target()
        else:
            if self.source.status().run_state == "postmigrate":  # it cannot know whether the guest runs there
                self._came("died at the switch, and resumed at the source")
                self.pair.stop(self.target_name)
                self.source.resume()
                self.next_target()
            else:
                self._came("went on at the source")
            self._alive(self.source, self.source_name)
            self._tidy_target()
        self.source.migrate_set(max_bandwidth=0, max_postcopy_bandwidth=0, postcopy_ram=False)

    def _died(self, name: str, service: str) -> None:
        """A machine was killed with the guest in it: it has said so in one line. Another begins."""
        self._came("the machine with the guest was killed")
        status, said = self.pair.wait_end(name)
        if service != "monitor" and (not status or f"service '{service}'" not in said):
            raise BenchError(f"{name} ended with status {status}, its {service} was killed: {said!r}")
        self.pair.stop(self.source_name)
        self.begin()

    def _tidy_target(self) -> None:
        try:
            if self.doomed == self.target_name:
                raise GatewayError("it ends")
            if self.target.query_migrate().status.state not in ENDED:
                with suppress(GatewayError):
                    self.target.migrate_cancel()
            wait_state(self.target, *ENDED)
            if self.target.status().run_state == "inmigrate":
                return
        except (GatewayError, AssertionError):
            pass
        self.pair.stop(self.target_name)
        self.next_target()

    def _alive(self, machine: MachineClient, name: str) -> None:
        if not counts(machine):
            raise BenchError(f"the guest does not go on in {name}: {_short(machine)}")
        if not self.pair.has_its_data(name):
            raise BenchError(f"the guest's memory is another in {name}")


def _short(client: MachineClient) -> str:
    try:
        state = migration_pb2.MigrationState.Name(client.query_migrate().status.state)
        return f"{state.removeprefix('MIGRATION_').lower()}/{client.status().run_state}"
    except GatewayError:
        return "ended"


def measure(runs: int, only: Sequence[str] = ()) -> Report:
    """So many faults, of all kinds or `only` of some. Raises BenchError for anything that is lost."""
    seed = int(os.environ.get("VMESH_SEED") or random.SystemRandom().randrange(1 << 32))
    done: Counter[str] = Counter()
    with harness.scratch() as scratch:
        full = _full_folder(scratch)
        pair = Pair(_ROOT)
        campaign = _Campaign(pair, full or scratch)
        faults = [
            campaign.cut, campaign.damage, campaign.cancel, campaign.kill_source_service, campaign.kill_target_service,
            campaign.kill_target_service, campaign.postcopy, campaign.postcopy, campaign.kill_in_postcopy,
            campaign.kill_in_postcopy, campaign.end_in_postcopy, campaign.kill_while_loading,
            *([campaign.full_disk] if full else []),
        ]  # fmt: skip
        if unknown := set(only) - {each.__name__ for each in faults}:
            raise BenchError(f"no fault '{min(unknown)}'")
        faults = [each for each in faults if not only or each.__name__ in only]
        name, failed = "the start", True
        try:
            campaign.begin()
            for number in range(runs):
                campaign.chance.seed(seed + number)
                campaign.told.clear()
                fault = campaign.chance.choice(faults)
                name = f"run {number}, {fault.__name__}"
                began = time.monotonic()
                fault()
                took = time.monotonic() - began
                print(
                    f"{number} seed {seed + number} {fault.__name__}: {'; '.join(campaign.told)} ({took:.1f} s)",
                    flush=True,
                )
                done[fault.__name__] += 1
            failed = False
        except (BenchError, GatewayError, AssertionError, subprocess.TimeoutExpired) as error:
            what = f"seed {seed}, {name} (seed {seed + sum(done.values())}): {'; '.join(campaign.told)}: {error}"
            raise BenchError(f"{what}; logs in {pair.logs}") from error
        finally:
            pair.close(keep_logs=failed)
            if full:
                subprocess.run(["umount", str(full)], check=True)
    rows = [Row(each.replace("_", " "), "", Sample((float(count),)), digits=0) for each, count in sorted(done.items())]
    rows += [Row(f"of all: {each}", "", Sample((float(n),)), digits=0) for each, n in sorted(campaign.outcomes.items())]
    rows.append(Row("lost", "", Sample((0.0,)), digits=0))
    return Report(f"migrations that go wrong, {runs} runs, seed {seed}", rows)


def _full_folder(scratch: Path) -> Path | None:
    """A file system with room for little; only root can mount one."""
    folder = scratch / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    return folder if os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0 else None
