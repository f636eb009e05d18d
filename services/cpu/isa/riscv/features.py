"""The extensions a hart can have, those of the board's CPU models, each a bit of ``core.state.Machine.features``."""

from __future__ import annotations

from vmesh.board import cpu_model

from ...core.state import Machine
from ...native.lang import at, inline, u64
from .state import Hart

FEATURES = tuple(feature.name for feature in cpu_model.FEATURES)
FEATURE_BIT = {name: number for number, name in enumerate(FEATURES)}


@inline
def has_feature(hart: Hart, bit: u64) -> bool:
    return (at(Machine, hart.machine).features >> bit) & 1 != 0
