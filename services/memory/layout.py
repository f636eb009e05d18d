"""Ranges of guest physical addresses, the images that go into them, and how both are written on the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmesh import errors
from vmesh.service import number, size

ADDRESS_LIMIT = 1 << 64
_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """`size` bytes from `base`; `name` says in errors whose they are."""

    name: str
    base: int
    size: int

    @property
    def end(self) -> int:
        return self.base + self.size

    def contains(self, other: Range) -> bool:
        return self.base <= other.base and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.name} at {self.base:#x}+{self.size:#x}"


@dataclass(frozen=True, slots=True)
class Image:
    """Raw bytes of a file, `size` of them from `offset` (-1: to the end), to be put at `address`."""

    address: int
    path: Path
    offset: int = 0
    size: int = -1


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """`size` bytes from `offset` of an open file, whatever has its name by now, to be put at `address`: at each reset
    the same ones."""

    address: int
    path: Path
    offset: int
    size: int
    file: int
    stamp: tuple[int, int]  # of the file: its size, and when it was modified, in ns

    def check(self) -> None:
        """Raises ImageError if the file was written to since it was opened."""
        if _stamp(self.file) != self.stamp:
            raise errors.ImageError(
                f"image {self.path} was changed since the machine began; end the machine and run it again"
            )


@dataclass(frozen=True, slots=True)
class Place:
    """What a device from outside has to be: of this kind (empty: any), in this range, on this interrupt (0: none)."""

    kind: str
    range: Range
    irq: int


def image_argument(text: str) -> Image:
    """`ADDRESS=PATH[@OFFSET:SIZE]`."""
    address, separator, rest = text.partition("=")
    # The last `@`, and only with numbers behind it: a path may have one too.
    part = re.fullmatch(r"(.+)@(\w+):(\w+)", rest)
    if not separator or not rest:
        raise argparse.ArgumentTypeError(f"'{text}' is no image: expected ADDRESS=PATH[@OFFSET:SIZE]")
    if part is None:
        return Image(number(address), Path(rest))
    return Image(number(address), Path(part[1]), number(part[2]), number(part[3]))


def range_argument(text: str) -> Range:
    """`BASE:SIZE`."""
    base, separator, length = text.partition(":")
    if not separator:
        raise argparse.ArgumentTypeError(f"'{text}' is no range: expected BASE:SIZE")
    return Range("", number(base), size(length))


def reservation_argument(text: str) -> Range:
    """`NAME=BASE:SIZE`."""
    name, separator, rest = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is no reservation: expected NAME=BASE:SIZE")
    found = range_argument(rest)
    return Range(name, found.base, found.size)


def place_argument(text: str) -> Place:
    """`NAME=[KIND]@BASE:SIZE/IRQ`."""
    parts = re.fullmatch(r"([^=@]+)=([^=@]*)@(\w+):(\w+)/(\w+)", text)
    if parts is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no place: expected NAME=[KIND]@BASE:SIZE/IRQ")
    return Place(parts[2], Range(parts[1], number(parts[3]), size(parts[4])), number(parts[5]))


def check_disjoint(added: Range, others: Iterable[Range]) -> None:
    """Raises Overlap, naming both, if `added` touches one of `others`."""
    for other in others:
        if added.base < other.end and other.base < added.end:
            raise errors.Overlap(f"{added} overlaps {other}")


def place_images(images: Sequence[Image], memory: Sequence[Range]) -> list[PlacedImage]:
    """The images with their sizes known and their files open.

    Raises ImageError for one that cannot be read, does not fit into one range of `memory`, or overlaps another.
    """
    placed: list[PlacedImage] = []
    ranges: list[Range] = []
    for image in images:
        try:
            file = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.ImageError(f"image {image.path}: {error.strerror}") from error
        stamp = length, _ = _stamp(file)
        count = length - image.offset if image.size < 0 else image.size
        if image.offset < 0 or count < 0 or image.offset + count > length:
            wanted = f"{count} bytes from {image.offset}"
            raise errors.ImageError(f"image {image.path}: {wanted} are not in it, it has {length} bytes")
        if count == 0:
            os.close(file)
            continue
        target = Range(f"image {image.path}", image.address, count)
        if not any(each.contains(target) for each in memory):
            there = ", ".join(map(str, memory))
            raise errors.ImageError(f"{target} does not fit into memory", expected=f"inside {there}")
        try:
            check_disjoint(target, ranges)
        except errors.Overlap as error:
            raise errors.ImageError(error.text) from None
        ranges.append(target)
        placed.append(PlacedImage(image.address, image.path, image.offset, count, file, stamp))
    return placed


def copy_image(image: PlacedImage, target: int, position: int) -> None:
    """Copy an image into the file `target` at `position`, without mapping either.

    Raises ImageError if the file can no longer be read or the host has no more memory.
    """
    try:
        done = 0
        while done < image.size:
            piece = os.pread(image.file, min(_COPY_BYTES, image.size - done), image.offset + done)
            if not piece:
                raise errors.ImageError(f"image {image.path} became shorter: {done} of {image.size} bytes read")
            written = 0
            while written < len(piece):
                written += os.pwrite(target, memoryview(piece)[written:], position + done + written)
            done += len(piece)
    except OSError as error:
        raise errors.ImageError(f"image {image.path}: {error.strerror}") from error


def _stamp(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns
