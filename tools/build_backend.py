"""The build backend (PEP 517, PEP 660): setuptools', with what it packs made before: the protobuf code, and the link to
services/ by the name of the package, which a source distribution has not, as it would be a second copy.

`make setup` (an editable install), `pip install .` and `pip wheel .` all come here. A source distribution has no
generated code: what is built of it generates its own.
"""

import shutil

from generate_proto import ROOT
from generate_proto import main as generate_proto
from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]


def _prepare() -> None:
    generate_proto()
    link = ROOT / "vmesh_services"
    if not (link / "__init__.py").is_file():  # it is not there, or was unpacked as a file
        link.unlink(missing_ok=True)
        link.symlink_to("services")


def build_wheel(directory: str, settings: dict[str, str] | None = None, metadata: str | None = None) -> str:
    _prepare()
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # setuptools packs what a former build left there, too
    return build_meta.build_wheel(directory, settings, metadata)


def build_editable(directory: str, settings: dict[str, str] | None = None, metadata: str | None = None) -> str:
    _prepare()
    return build_meta.build_editable(directory, settings, metadata)
