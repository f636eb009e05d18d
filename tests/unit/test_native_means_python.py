"""Programs of the native language do what Python does, or are refused with file and line (tests/models/native_*.py).

`python -P -m bench.fuzz_native --minutes 30` runs more of them.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.models.native_programs import Program, check, foreign, programs

_PROGRAMS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@_PROGRAMS
@given(programs(other=False))
def test_what_is_in_the_language_is_compiled_and_means_what_it_means_in_python(program: Program) -> None:
    check(program)


@_PROGRAMS
@given(programs(other=True))
def test_whatever_is_in_a_program_it_is_refused_or_means_what_it_means_in_python(program: Program) -> None:
    check(program)


@pytest.mark.parametrize("program", foreign().values(), ids=foreign())
def test_each_piece_of_other_python_is_refused_or_means_what_it_means_in_python(program: Program) -> None:
    check(program)
