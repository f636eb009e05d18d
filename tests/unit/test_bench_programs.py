"""bench/programs: the programs compile, and what a boot prints is read, checked and compared as it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from bench import programs
from bench.harness import BenchError, Run
from bench.programs import PASSES, PROGRAMS, Boot, Pass
from tests.unit.test_guest_initramfs import unpack
from vmesh.guest import initramfs

_OBJECT = (*programs._COMPILE, "-c")  # to link, ziglang would first make its C library, for minutes where it never did


def test_every_program_has_its_source() -> None:
    sources = {path.stem for path in (Path(programs.__file__).with_name("programs")).glob("*.c")}
    assert sources - {"main"} == set(PROGRAMS)


@pytest.mark.slow
def test_every_source_compiles_for_the_guest_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_COMPILE", _OBJECT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for source in sorted(Path(programs.__file__).with_name("programs").glob("*.c")):
        path = programs.compiled(source.stem, [source])
        with path.open("rb") as file:
            elf = ELFFile(file)
            assert (elf["e_machine"], elf["e_type"], elf.elfclass) == ("EM_RISCV", "ET_REL", 64)
        made = path.stat().st_mtime_ns
        assert programs.compiled(source.stem, [source]) == path
        assert path.stat().st_mtime_ns == made


@pytest.mark.slow
def test_build_says_what_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_COMPILE", _OBJECT)
    (tmp_path / "broken.c").write_text("int main(void) { return missing; }\n")
    monkeypatch.setattr(programs, "_SOURCES", tmp_path)
    with pytest.raises(BenchError, match="undeclared identifier"):
        programs.build()


def test_with_programs_appends_an_archive_of_its_own(tmp_path: Path) -> None:
    binary = tmp_path / "programs"
    binary.write_bytes(b"binary")
    first = initramfs.build(b"busybox")

    both = programs.with_programs(first, binary)

    assert both.startswith(first)
    assert len(first) % 4 == 0  # where Linux looks for the next archive
    assert unpack(both[len(first) :])["bin/programs"][:2] == (0o100755, b"binary")


def _run(lines: Mapping[str, int], host_seconds: float = 2.0) -> Run:
    text = "[    0.1] kernel\r\nprograms begin 1000000000\r\n"
    for name, count in lines.items():
        text += "".join(f"program {name} {number} 500000000 00000000000000ff\r\n" for number in range(count))
    text += "programs end 3000000000\r\n"
    return Run(0.0, 9.0, {"begin": 4.0, "end": 4.0 + host_seconds}, text.encode())


def test_read_finds_every_pass_and_both_clocks() -> None:
    boot = programs.read(_run({"fib": PASSES, "lz": PASSES}), PASSES, ["fib", "lz"])
    assert boot == Boot(dict.fromkeys(("fib", "lz"), [Pass(0.5, "00000000000000ff")] * PASSES), 2.0, 2.0)


@pytest.mark.parametrize("lines", [{"fib": PASSES - 1}, {}, {"fib": PASSES, "lz": PASSES}])
def test_read_refuses_passes_that_are_missing_or_were_not_asked_for(lines: Mapping[str, int]) -> None:
    with pytest.raises(BenchError, match="passes of fib"):
        programs.read(_run(lines), PASSES, ["fib"])


def test_read_expects_a_job_as_often_as_it_is_named() -> None:
    run = _run({"fib:2": 6})
    assert len(programs.read(run, 3, ["fib:2", "fib:2"]).passes["fib:2"]) == 6
    with pytest.raises(BenchError, match="3 passes of fib:2"):
        programs.read(run, 3, ["fib:2"])


@pytest.mark.parametrize("host_seconds", [1.0, 3.0])
def test_a_clock_that_is_wrong_is_noticed(host_seconds: float) -> None:
    programs.check_clock(programs.read(_run({"fib": PASSES}), PASSES, ["fib"]))
    with pytest.raises(BenchError, match="clock"):
        programs.check_clock(programs.read(_run({"fib": PASSES}, host_seconds), PASSES, ["fib"]))


def _boots(*seconds: float, checksum: str = "1") -> list[Boot]:
    return [Boot({"fib": [Pass(each, checksum)] * PASSES}, 1.0, 1.0) for each in seconds]


@pytest.mark.parametrize("odd", ["ours", "theirs"])
def test_another_result_is_noticed_on_either_side(odd: str) -> None:
    same, mixed = _boots(1.0, 1.0), [*_boots(1.0), *_boots(1.0, checksum="2")]
    programs.check_checksums("fib", same, same)
    with pytest.raises(BenchError, match="fib"):
        programs.check_checksums("fib", *((mixed, same) if odd == "ours" else (same, mixed)))


def test_a_result_that_depends_on_the_number_of_instances_is_noticed() -> None:
    boot = Boot({"fib:1": [Pass(1.0, "1")], "fib:2": [Pass(1.0, "2")]}, 1.0, 1.0)
    with pytest.raises(BenchError, match="fib"):
        programs.check_checksums("fib", [boot], [boot])


@pytest.mark.parametrize(("our_seconds", "verdict"), [(1.0, "yes"), (4.0, "NO")])
def test_ratio_is_their_time_over_ours(our_seconds: float, verdict: str) -> None:
    rows = programs.report(["fib"], _boots(our_seconds, 9.0, our_seconds), _boots(2.0, 2.0, 0.1)).rows
    ratio = 2.0 / our_seconds
    assert rows[0].ratio == pytest.approx(ratio)
    assert [row.ours.median for row in rows[1:4]] == pytest.approx([ratio] * 3)  # mean, least, mean of the first passes
    assert rows[4].ours.median == pytest.approx(0.1 / our_seconds)  # of the fastest
    assert rows[1].bar.endswith(verdict)
    assert rows[2].bar.endswith(verdict)


def test_unknown_program_is_refused_by_name() -> None:
    with pytest.raises(BenchError, match="'fob'"):
        programs.measure(1, only=["fib", "fob"])
