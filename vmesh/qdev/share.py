"""`-fsdev` and `-virtfs`: folders of the host that a guest may have. Source: QEMU's manual page for the properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmesh.qdev import names

USAGE = "local,id=NAME,path=FOLDER,security_model=none|mapped-xattr[,readonly=on|off]"
VIRTFS_USAGE = "local,path=FOLDER,mount_tag=TAG,security_model=none|mapped-xattr[,readonly=on|off][,id=NAME]"

_MODELS = {"none": "none", "mapped-xattr": "mapped-xattr", "mapped": "mapped-xattr"}  # `mapped` is QEMU's short form
_TAG_BYTES = 31  # as QEMU (hw/9pfs/9p.h, MAX_TAG_LEN)


@dataclass(frozen=True, slots=True)
class Share:
    """A folder, as -fsdev describes it; `model` says whose the files are: see `security_model` in docs/cli.md."""

    name: str
    folder: Path
    model: str
    read_only: bool

    @property
    def arguments(self) -> list[str]:
        """Of the device's service."""
        return ["--path", str(self.folder), "--security", self.model, *["--read-only"] * self.read_only]


def parse(properties: Mapping[str, str]) -> Share:
    """The folder of an -fsdev. Raises ValueError."""
    return _share(properties, properties.get("id", ""), ("driver", "id"), USAGE)


def parse_virtfs(properties: Mapping[str, str]) -> tuple[Share, str]:
    """The folder of a -virtfs, and the tag that the guest mounts it by. Raises ValueError."""
    tag = check_tag(properties.get("mount_tag", ""))
    return _share(properties, properties.get("id", tag), ("driver", "id", "mount_tag"), VIRTFS_USAGE), tag


def check_tag(tag: str) -> str:
    """Raises ValueError for what is none."""
    if not 0 < len(tag.encode()) <= _TAG_BYTES:
        raise ValueError(f"expected mount_tag=TAG of at most {_TAG_BYTES} bytes, got '{tag}'")
    return tag


def _share(properties: Mapping[str, str], name: str, others: tuple[str, ...], usage: str) -> Share:
    if properties.get("driver") != "local":
        raise ValueError(f"expected {usage}, got '{properties.get('driver', '')}'")
    if unknown := [key for key in properties if key not in (*others, "path", "security_model", "readonly")]:
        raise ValueError(f"no property '{unknown[0]}'; expected {usage}")
    if not names.is_name(name):
        raise ValueError(f"expected {names.USAGE}, got {names.said(name)}")
    if not properties.get("path"):
        raise ValueError("expected path=FOLDER")
    folder = Path(properties["path"]).absolute()
    if not folder.is_dir():
        raise ValueError(f"expected a folder, {folder} is none")
    model = _MODELS.get(properties.get("security_model", ""))
    if model is None:
        raise ValueError(f"expected security_model=none or mapped-xattr, got '{properties.get('security_model', '')}'")
    read_only = properties.get("readonly", "off")
    if read_only not in ("on", "off"):
        raise ValueError(f"expected readonly=on or off, got '{read_only}'")
    return Share(name, folder, model, read_only == "on")
