"""The PLIC by the book (RISC-V Platform-Level Interrupt Controller specification 1.0), with sets and loops."""

from __future__ import annotations

from dataclasses import dataclass, field

SOURCES = 96
PRIORITY, PENDING, ENABLE, CONTEXT = 0, 0x1000, 0x2000, 0x20_0000


@dataclass
class PlicModel:
    """``contexts`` targets; sources are level-triggered and start low."""

    contexts: int
    priority: dict[int, int] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    #: Sources whose gateway waits for a completion, and those whose line is high.
    in_service: set[int] = field(default_factory=set)
    high: set[int] = field(default_factory=set)
    enabled: set[tuple[int, int]] = field(default_factory=set)
    threshold: dict[int, int] = field(default_factory=dict)

    def set_level(self, source: int, level: bool) -> None:
        """A gateway forwards one request; a request once made stays, whatever the line does."""
        if level:
            self.high.add(source)
            if source not in self.in_service:
                self.pending.add(source)
        else:
            self.high.discard(source)

    def candidates(self, context: int, above: int) -> list[int]:
        """Sources of a priority above ``above`` that are pending and enabled, the first to be served first."""
        found = [
            source
            for source in self.pending
            if (context, source) in self.enabled and self.priority.get(source, 0) > above
        ]
        return sorted(found, key=lambda source: (-self.priority.get(source, 0), source))

    def notified(self, context: int) -> bool:
        """Whether the context's external interrupt is pending: the threshold masks priorities up to it."""
        return bool(self.candidates(context, self.threshold.get(context, 0)))

    def claim(self, context: int) -> int:
        """Not affected by the threshold; priority 0 never interrupts."""
        best = self.candidates(context, 0)[:1]
        for source in best:
            self.pending.discard(source)
            self.in_service.add(source)
        return best[0] if best else 0

    def complete(self, context: int, source: int) -> None:
        """Ignored unless the source is enabled for the context."""
        if (context, source) in self.enabled:
            self.in_service.discard(source)
            if source in self.high:
                self.pending.add(source)

    def read(self, offset: int) -> int:
        if offset < PENDING:
            return self.priority.get(offset // 4, 0)
        if offset < ENABLE:
            return sum(1 << i for i in range(32) if (offset - PENDING) * 8 + i in self.pending)
        if offset < CONTEXT:
            context, word = divmod(offset - ENABLE, 0x80)
            return sum(1 << i for i in range(32) if (context, word * 8 + i) in self.enabled)
        context, register = divmod(offset - CONTEXT, 0x1000)
        if context >= self.contexts:
            return 0
        if register == 0:
            return self.threshold.get(context, 0)
        return self.claim(context) if register == 4 else 0

    def write(self, offset: int, value: int) -> None:
        if offset < PENDING:
            source = offset // 4
            if 0 < source < SOURCES:
                self.priority[source] = value & 7
        elif offset < ENABLE:
            pass
        elif offset < CONTEXT:
            context, word = divmod(offset - ENABLE, 0x80)
            for i in range(32):
                source = word * 8 + i
                if context < self.contexts and 0 < source < SOURCES:
                    (self.enabled.add if value >> i & 1 else self.enabled.discard)((context, source))
        else:
            context, register = divmod(offset - CONTEXT, 0x1000)
            if context < self.contexts and register == 0:
                self.threshold[context] = value & 7
            elif context < self.contexts and register == 4:
                self.complete(context, value)
