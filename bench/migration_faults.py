"""Migrations that go wrong at random moments: links cut, streams damaged, processes killed, disks full.

Before the switch the machine must go on at the source; a post-copy whose link breaks must pause, and be mended. The
guest counts in memory, with a lot of data behind it that is compared with what it was. A failure names seed and run;
VMESH_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample
from tests.faults.streams import DATA_BYTES, ENDED, Pair, Proxy, counts, wait_state
from vmesh.client import GatewayError, MachineClient
from vmesh.v1 import migration_pb2

_ROOT = Path(__file__).resolve().parent.parent
_STREAM_BYTES = DATA_BYTES + (1 << 20)
_SLOW = 32 << 20  # bytes a second, where something is to happen meanwhile
_SECONDS = 0.6  # within which it happens
_TARGET_SERVICES = ("migration", "cpu", "memory", "uart0", "rtc")


@dataclass(slots=True)
class _Campaign:
    """A machine that runs, and one that could take it."""

    pair: Pair
    chance: random.Random
    scratch: Path
    number: int = 0
    source_name: str = ""
    target_name: str = ""
    source: MachineClient = field(init=False)
    target: MachineClient = field(init=False)
    outcomes: Counter[str] = field(default_factory=Counter)

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

    # What goes wrong before the switch

    def cut(self) -> None:
        end = self.chance.randrange(_STREAM_BYTES)
        self._through(lambda at, data: data if at < end else None)

    def damage(self) -> None:
        where, bit = self.chance.randrange(_STREAM_BYTES), 1 << self.chance.randrange(8)

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

    def kill_source_migration(self) -> None:
        self._slowly()
        self._kill(self.source_name, "migration")
        self._settle(wait_state(self.source, *ENDED).state)

    def kill_source_device(self) -> None:
        """It is started again, and the machine goes on or moves."""
        self._slowly()
        self._kill(self.source_name, self.chance.choice(("uart0", "rtc")))
        self._settle(wait_state(self.source, *ENDED).state)

    def kill_target_service(self) -> None:
        self._slowly()
        service = self.chance.choice(_TARGET_SERVICES)
        self._kill(self.target_name, service)
        state = wait_state(self.source, *ENDED).state
        if state == migration_pb2.MIGRATION_COMPLETED and service in ("cpu", "memory"):
            self._died_there()
        else:
            self._settle(state)

    def full_disk(self) -> None:
        former = self.scratch / "former.vmsnap"
        former.write_bytes(b"former")
        try:
            self.source.snapshot_save(former)
        except GatewayError as error:
            if "No space left" not in str(error):
                raise BenchError(f"a full disk: {error}") from error
        else:
            raise BenchError("a snapshot was written to a full disk")
        if former.read_bytes() != b"former" or os.listdir(self.scratch) != [former.name]:
            raise BenchError("the former snapshot is not what it was")
        self._alive(self.source, self.source_name)

    # And after it

    def postcopy(self) -> None:
        """The link breaks some times, by a cut or as the user asks for it, and is mended."""
        self.source.migrate_set(postcopy_ram=True, max_postcopy_bandwidth=8 << 20)
        self.target.migrate_set(postcopy_ram=True)
        end = self.chance.randrange(_STREAM_BYTES)
        proxy = Proxy(self.pair.place(), self.pair.listen(self.target), lambda at, data: data if at < end else None)
        self.source.migrate(proxy.uri)
        with suppress(GatewayError):
            self.source.migrate_start_postcopy()
        both = (*ENDED, migration_pb2.MIGRATION_POSTCOPY_PAUSED)
        state = wait_state(self.source, *both).state
        proxy.close()
        while state == migration_pb2.MIGRATION_POSTCOPY_PAUSED:
            self.outcomes["post-copy paused"] += 1
            if wait_state(self.target, *both).state == migration_pb2.MIGRATION_COMPLETED:
                raise BenchError("the destination has all pages, and the source does not know")
            place = self.pair.place()
            self.target.migrate_recover(f"unix:{place}")
            self.source.migrate(f"unix:{place}", resume=True)
            time.sleep(self.chance.uniform(0, 0.3))
            if self.chance.random() < 0.4:
                with suppress(GatewayError):  # it has ended
                    self.chance.choice((self.source, self.target)).migrate_pause()
            state = wait_state(self.source, *both).state
        self._settle(state)

    # What must be so then

    def _slowly(self) -> None:
        self.source.migrate_set(max_bandwidth=_SLOW)
        self.source.migrate(f"unix:{self.pair.listen(self.target)}")
        time.sleep(self.chance.uniform(0, _SECONDS))

    def _kill(self, machine: str, service: str) -> None:
        pid = self.pair.pid(machine, service)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _settle(self, state: migration_pb2.MigrationState.ValueType) -> None:
        """The machine runs in one place, and has its memory; then there is one to go to."""
        if state == migration_pb2.MIGRATION_COMPLETED:
            self.outcomes["moved"] += 1
            wait_state(self.target, *ENDED)
            self._alive(self.target, self.target_name)
            if self.source.status().run_state == "running":
                raise BenchError("the machine runs twice")
            self.pair.stop(self.source_name)
            self.source, self.source_name = self.target, self.target_name
            self.next_target()
        else:
            if self.source.status().run_state == "postmigrate":  # it cannot know whether the guest runs there
                self.outcomes["died at the switch, and resumed at the source"] += 1
                self.pair.stop(self.target_name)
                self.source.resume()
                self.next_target()
            else:
                self.outcomes["went on at the source"] += 1
            self._alive(self.source, self.source_name)
            self._tidy_target()
        self.source.migrate_set(max_bandwidth=0, max_postcopy_bandwidth=0, postcopy_ram=False)

    def _died_there(self) -> None:
        """The guest had moved when the machine that it ran in was killed, which ends any machine: another begins."""
        self.outcomes["moved, then killed with its machine"] += 1
        for name in (self.source_name, self.target_name):
            self.pair.stop(name)
        self.begin()

    def _tidy_target(self) -> None:
        try:
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
            raise BenchError(f"the guest does not go on in {name}")
        if not self.pair.has_its_data(name):
            raise BenchError(f"the guest's memory is another in {name}")


def measure(runs: int) -> Report:
    """So many faults. Raises BenchError for anything that is lost."""
    seed = int(os.environ.get("VMESH_SEED") or random.SystemRandom().randrange(1 << 32))
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    with harness.scratch() as scratch:
        full = _full_folder(scratch)
        pair = Pair(_ROOT)
        campaign = _Campaign(pair, chance, full or scratch)
        faults = [
            campaign.cut, campaign.damage, campaign.cancel, campaign.kill_source_migration, campaign.kill_source_device,
            campaign.kill_target_service, campaign.kill_target_service, campaign.postcopy, campaign.postcopy,
            *([campaign.full_disk] if full else []),
        ]  # fmt: skip
        name = "to start"
        try:
            campaign.begin()
            for number in range(runs):
                fault = chance.choice(faults)
                name = f"run {number}, {fault.__name__}"
                fault()
                done[fault.__name__] += 1
        except (BenchError, GatewayError, AssertionError) as error:
            raise BenchError(f"seed {seed}, {name}: {error}") from error
        finally:
            pair.close()
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
