"""How long things took: a histogram by powers of two microseconds, as counters for HealthReport."""

from __future__ import annotations

from collections.abc import Iterable

_BUCKETS = 40


class Latencies:
    """Counts durations; one thread adds."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._longest = 0

    def add(self, seconds: float) -> None:
        microseconds = int(seconds * 1e6)
        self._counts[min(microseconds.bit_length(), _BUCKETS - 1)] += 1
        self._longest = max(self._longest, microseconds)

    @classmethod
    def together(cls, others: Iterable[Latencies]) -> Latencies:
        made = cls()
        for each in others:
            made._counts = [a + b for a, b in zip(made._counts, each._counts, strict=True)]
            made._longest = max(made._longest, each._longest)
        return made

    def counters(self, name: str) -> dict[str, int]:
        """How many there were; median, 99th percentile (upper ends of their buckets) and the longest, in microseconds;
        and each bucket that is not empty, by its upper end."""
        total = sum(self._counts)
        found = {name: total}
        if total:
            found[f"{name}_p50_us"] = self._at(total, 0.5)
            found[f"{name}_p99_us"] = self._at(total, 0.99)
            found[f"{name}_max_us"] = self._longest
            found |= {f"{name}_below_{1 << n}_us": count for n, count in enumerate(self._counts) if count}
        return found

    def _at(self, total: int, share: float) -> int:
        """The end of the bucket in which that share of all is reached."""
        passed = 0
        for number, count in enumerate(self._counts):
            passed += count
            if passed >= share * total:
                return min(1 << number, max(self._longest, 1))
        return self._longest
