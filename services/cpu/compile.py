"""`python -P -m vmesh_services.cpu.compile`: compiles the cpu's native code, which the first machine would do."""

from __future__ import annotations

from .controllers.virt import NATIVE
from .core.image import ISA, load_core
from .isa.interface import load

if __name__ == "__main__":
    load_core(load(ISA), NATIVE)
