"""What has the machine instead of its user, if anything does: a migration or a snapshot, and how far it is.

`Migration` writes this down as it goes; what may be done to the machine meanwhile follows from it (run_states).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmesh.migration.outcome import ENDED
from vmesh.v1 import migration_pb2
from vmesh_services.monitor.run_states import Stage

MIGRATION = "migration"  # the service


@dataclass(slots=True)
class Held:
    """The machine stands still for a migration or a snapshot: what it goes back to when that has ended."""

    ran: bool
    run_state: str
    changed: bool = False  # its memory is of one machine, its services' states are of another


@dataclass(slots=True)
class Custody:
    """`run_state` is the machine's, in QEMU's words, where it is more than running or paused; else empty."""

    run_state: str = ""
    status: migration_pb2.MigrationStatus = field(default_factory=migration_pb2.MigrationStatus)
    held: Held | None = None
    hands_over: bool = False  # the migration under way gives the memory that is mapped here away, or the last one has
    stays_paused: bool = False  # when it has come in

    @property
    def under_way(self) -> bool:
        return self.status.state not in ENDED

    @property
    def stage(self) -> Stage:
        """What has the machine."""
        if self.run_state == "inmigrate":
            return Stage.AWAITED
        if self.held is not None:
            return Stage.SWITCHING
        match self.run_state:
            case "restore-vm":
                return Stage.LOADING
            case "internal-error":
                return Stage.SPOILT
            case "postmigrate" if self.hands_over:
                return Stage.HANDED_OVER
            case "postmigrate":
                return Stage.GIVEN if self.under_way else Stage.GONE
        if self.under_way:
            return Stage.ARRIVING if self.status.incoming else Stage.MOVING
        return Stage.NOTHING

    def stay_paused(self) -> None:
        """The user wants the machine to stand still, also when what it stands still for has ended."""
        if self.stage is Stage.AWAITED:
            self.stays_paused = True
        elif self.held is not None:
            self.held.ran = False

    def resumed(self) -> None:
        """The user let the machine go on."""
        self.run_state = ""

    def was_reset(self) -> None:
        """What was half one machine and half another is whole again."""
        if self.run_state == "internal-error":
            self.run_state = ""
