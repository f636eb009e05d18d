"""CPU models: what `-cpu rv64|max[,feature=on|off...]` says about the harts' ISA.

The names are QEMU's and the RISC-V manuals'. Only what the cpu service implements is known here.

    model = parse("rv64,zba=off,sv57=on")
    model.isa           "rv64imafdc_zicbom_..."   riscv,isa of the device tree
    model.mmu_type      "riscv,sv57"
    model.features      frozenset({"i", "m", ..., "sv57"})
    model.option        "i,m,...,sv57"            what the cpu service takes as --features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmesh.board.errors import CpuModelError

CACHE_BLOCK_BYTES = 64  # of CBO.* (Zicbom) and CBO.ZERO (Zicboz)


@dataclass(frozen=True, slots=True)
class Feature:
    """One extension or address translation mode; `rv64` says whether the model rv64 has it (max has all)."""

    name: str
    meaning: str
    rv64: bool = True
    fixed: bool = False  # cannot be turned off
    needs: tuple[str, ...] = ()


# In the order of the ISA string (RISC-V unprivileged manual, "ISA Extension Naming Conventions").
FEATURES: tuple[Feature, ...] = (
    Feature("i", "base integer instructions", fixed=True),
    Feature("m", "multiplication and division", fixed=True),
    Feature("a", "atomics", fixed=True),
    Feature("f", "single-precision floating point", needs=("zicsr",)),
    Feature("d", "double-precision floating point", needs=("f",)),
    Feature("c", "compressed instructions"),
    Feature("zicbom", "cache-block management"),
    Feature("zicboz", "cache-block zero"),
    Feature("zicntr", "cycle, time and instret counters", needs=("zicsr",)),
    Feature("zicond", "conditional zeroing", rv64=False),
    Feature("zicsr", "control and status registers", fixed=True),
    Feature("zifencei", "instruction-fetch fence", fixed=True),
    Feature("zihintpause", "pause hint"),
    Feature("zba", "address generation"),
    Feature("zbb", "basic bit manipulation"),
    Feature("zbc", "carry-less multiplication"),
    Feature("zbs", "single-bit instructions"),
    Feature("sstc", "supervisor timer compare", needs=("zicntr",)),
    Feature("svadu", "hardware update of accessed and dirty bits"),
    Feature("svinval", "fine-grained translation invalidation", rv64=False),
    Feature("svpbmt", "page-based memory types", rv64=False),
    Feature("sv39", "39-bit virtual addresses", fixed=True),
    Feature("sv48", "48-bit virtual addresses", needs=("sv39",)),
    Feature("sv57", "57-bit virtual addresses", rv64=False, needs=("sv48",)),
)
MODELS: Mapping[str, str] = {
    "rv64": "what Debian's kernel uses: IMAFDC, bit manipulation, Sstc, Sv48",
    "max": "everything that is implemented",
}

# What QEMU's harts can have besides, in 7.2 or later: turned off it is as it is. Some names have a prefix x- at first.
_NOT_THERE_NAMES = """
    e g h v zawrs zfh zfhmin zfa zfbfmin zfinx zdinx zhinx zhinxmin zve32f zve32x zve64d zve64f zve64x zvfh zvfhmin
    zvfbfmin zvfbfwma zvbb zvbc zvkb zvkg zvkn zvknc zvkned zvkng zvknha zvknhb zvks zvksc zvksed zvksg zvksh zvkt
    zbkb zbkc zbkx zk zkn zknd zkne zknh zkr zks zksed zksh zkt zmmul zca zcb zcd zce zcf zcmp zcmt zcmop zimop
    zicbop zicfilp zicfiss zihpm zihintntl zaamo zabha zacas zalrsc zama16b zic64b ztso smaia smcntrpmf
    smepmp smnpm smmpm smrnmi smdbltrp smstateen smcdeleg smcsrind ssaia ssccfg sscofpmf sscsrind ssdbltrp ssnpm
    sspm supm svade svnapot svvptc sdtrig x-epmp x-j x-smaia x-ssaia xventanacondops rvv_ta_all_1s rvv_ma_all_1s
    debug
"""
_NOT_THERE = frozenset(_NOT_THERE_NAMES.split())
_BY_NAME: Mapping[str, Feature] = {feature.name: feature for feature in FEATURES}
_SWITCH: Mapping[str, bool] = dict.fromkeys(("on", "true", "yes", "y"), True) | dict.fromkeys(
    ("off", "false", "no", "n"), False
)


@dataclass(frozen=True, slots=True)
class CpuModel:
    """The ISA of every hart of a machine."""

    name: str
    features: frozenset[str]

    @property
    def extensions(self) -> tuple[str, ...]:
        """riscv,isa-extensions of the device tree: the extensions in the order of the ISA string."""
        return tuple(feature.name for feature in self._ordered if not _is_translation_mode(feature.name))

    @property
    def isa(self) -> str:
        """riscv,isa of the device tree, e.g. rv64imafdc_zicsr."""
        letters = "".join(name for name in self.extensions if len(name) == 1)
        return "_".join(["rv64" + letters, *(name for name in self.extensions if len(name) > 1)])

    @property
    def mmu_type(self) -> str:
        """mmu-type of the device tree: the largest address translation mode."""
        return "riscv," + max(name for name in self.features if _is_translation_mode(name))

    @property
    def option(self) -> str:
        """The features as one word for a command line, in the order of FEATURES."""
        return ",".join(feature.name for feature in self._ordered)

    @property
    def _ordered(self) -> tuple[Feature, ...]:
        return tuple(feature for feature in FEATURES if feature.name in self.features)


def parse(text: str) -> CpuModel:
    """The model that a `-cpu` text describes. Raises CpuModelError, which does not say the text.

    A feature that is turned off takes along those that need it, unless these were asked for; one that is turned on
    brings along what it needs, unless that was turned off.
    """
    name, *switches = text.split(",")
    if name not in MODELS:
        raise CpuModelError(f"expected a model {' or '.join(MODELS)}, got '{name}'")
    asked = dict(asked for switch in switches if (asked := _switch(switch)) is not None)
    features = {feature.name for feature in FEATURES if feature.rv64 or name == "max"}
    features |= {needed for wanted, on in asked.items() if on for needed in _closure(wanted)}
    unwanted = {wanted for wanted, on in asked.items() if not on}
    for feature in FEATURES:
        missing = sorted(_closure(feature.name) & unwanted)
        if missing and asked.get(feature.name):
            raise CpuModelError(f"{feature.name}=on needs {missing[0]}, which is turned off")
        if missing:
            features.discard(feature.name)
    return CpuModel(name, frozenset(features))


def help_text() -> str:
    """What `-cpu help` prints: a line per model and per feature."""
    lines = ["models:", *(f"  {name:<12} {meaning}" for name, meaning in MODELS.items())]
    lines += ["features, each MODEL,feature=on|off (* on in rv64, ! cannot be turned off):"]
    for feature in FEATURES:
        mark = "!" if feature.fixed else "*" if feature.rv64 else " "
        lines.append(f"{mark} {feature.name:<12} {feature.meaning}")
    return "\n".join(lines)


def _switch(switch: str) -> tuple[str, bool] | None:
    """The feature of `name=on|off`; None if it is one that no hart has, turned off. QEMU writes some in capitals."""
    name, _, value = switch.partition("=")
    name = name.lower()
    if name in _NOT_THERE and value in _SWITCH:
        if _SWITCH[value]:
            raise CpuModelError(f"{name} is not implemented; -cpu help lists what is")
        return None
    feature = _BY_NAME.get(name)
    if feature is None:
        import difflib  # every cpu imports this module, for the names

        close = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(_BY_NAME)}"
        raise CpuModelError(f"unknown feature '{name}': {hint}")
    if value not in _SWITCH:
        raise CpuModelError(f"expected {name}=on or {name}=off, got '{switch}'")
    if feature.fixed and not _SWITCH[value]:
        raise CpuModelError(f"{name} cannot be turned off")
    return name, _SWITCH[value]


def _closure(name: str) -> set[str]:
    """`name` and all that it needs."""
    return {name}.union(*(_closure(needed) for needed in _BY_NAME[name].needs))


def _is_translation_mode(name: str) -> bool:
    return name in ("sv39", "sv48", "sv57")
