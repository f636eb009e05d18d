"""`-cpu` texts: models, features, what they need, and what is refused."""

from __future__ import annotations

import pytest

from vmesh.board.cpu_model import FEATURES, parse
from vmesh.board.errors import CpuModelError


def test_parse_rv64_has_the_extensions_of_its_isa_string() -> None:
    model = parse("rv64")

    assert model.isa == (
        "rv64imafdc_zicbom_zicboz_zicntr_zicsr_zifencei_zihintpause_zba_zbb_zbc_zbs_sstc_svadu"
    )  # fmt: skip
    assert model.extensions[:7] == ("i", "m", "a", "f", "d", "c", "zicbom")
    assert model.mmu_type == "riscv,sv48"


def test_parse_max_has_everything() -> None:
    assert parse("max").features == {feature.name for feature in FEATURES}
    assert parse("max").mmu_type == "riscv,sv57"


@pytest.mark.parametrize("value", ["off", "false", "no"])
def test_parse_feature_off_is_gone_from_isa_and_option(value: str) -> None:
    model = parse(f"rv64,zba={value}")

    assert "zba" not in model.isa
    assert "zba" not in model.option.split(",")
    assert "zbb" in model.option.split(",")


def test_parse_feature_off_takes_along_what_needs_it() -> None:
    assert parse("rv64,f=off").isa.startswith("rv64imac_")
    assert parse("max,sv48=off").mmu_type == "riscv,sv39"
    assert "sstc" not in parse("rv64,zicntr=off").features


def test_parse_feature_on_brings_along_what_it_needs() -> None:
    assert parse("rv64,sv57=on").features >= {"sv39", "sv48", "sv57"}


def test_parse_last_of_two_switches_holds() -> None:
    assert "zba" in parse("rv64,zba=off,zba=on").features


def test_option_lists_every_feature_once_in_order() -> None:
    assert parse("max").option.split(",") == [feature.name for feature in FEATURES]


@pytest.mark.parametrize("name", ["v", "h", "sscofpmf", "svnapot", "zfh", "Zawrs", "smaia", "x-epmp"])
def test_parse_what_is_not_there_can_be_turned_off(name: str) -> None:
    assert parse(f"rv64,{name}=off") == parse(f"rv64,{name}=false,{name}=no") == parse("rv64")
    with pytest.raises(CpuModelError, match="not implemented"):
        parse(f"rv64,{name}=on")


def test_parse_names_are_qemu_s_in_capitals_too() -> None:
    assert parse("rv64,Zihintpause=n") == parse("rv64,zihintpause=off")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cortex-a57", "expected a model rv64 or max, got 'cortex-a57'"),
        ("", "expected a model rv64 or max, got ''"),
        ("rv64,zbz=on", "unknown feature 'zbz'"),
        ("rv64,vext=on", "unknown feature 'vext'"),
        ("rv64,zbz=off", "unknown feature 'zbz'"),
        ("rv64,zba", "expected zba=on or zba=off"),
        ("rv64,zba=maybe", "expected zba=on or zba=off"),
        ("rv64,i=off", "i cannot be turned off"),
        ("rv64,d=on,f=off", "d=on needs f"),
        ("rv64,sv57=on,sv48=off", "sv57=on needs sv48"),
    ],
)
def test_parse_bad_text_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(CpuModelError) as caught:
        parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
