"""How a machine is to be supervised."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmesh_services.monitor.supervisor.condition import Actions


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds."""

    actions: Actions = field(default_factory=Actions)
    health_interval: float = 1.0  # between two questions to a service
    health_limit: float = 10.0  # without an answer: it hangs
    start_limit: float = 60.0  # for all services to get ready
    absence_limit: float = 60.0  # attached: for a service that was there to come back
