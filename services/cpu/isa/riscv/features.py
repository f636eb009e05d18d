"""The extensions a hart can have, each a bit of ``core.state.Machine.features``."""

from __future__ import annotations

from ...core.state import Machine
from ...native.lang import at, inline, u64
from .state import Hart

FEATURES = (
    "i", "m", "a", "f", "d", "c", "zicsr", "zifencei", "zicntr", "zihpm", "zicbom", "zicboz", "zihintpause", "zba",
    "zbb", "zbc", "zbs", "sstc",
    "svadu", "svinval", "svpbmt", "sv39", "sv48", "sv57", "zicond",
)  # fmt: skip
FEATURE_BIT = {name: number for number, name in enumerate(FEATURES)}


@inline
def has_feature(hart: Hart, bit: u64) -> bool:
    return (at(Machine, hart.machine).features >> bit) & 1 != 0
