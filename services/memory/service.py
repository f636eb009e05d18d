"""The memory service itself: segments, images, reset, and the requests of memory.proto."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from vmesh import errors, machine, segment
from vmesh.guest_memory import MAX_TRANSFER, LocalGuestMemory, check
from vmesh.service import Runtime, Service
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1 import memory_pb2 as messages
from vmesh.v1.common_pb2 import ROLE_CACHE, ROLE_DEVICE, ROLE_MIGRATION, ROLE_MONITOR, Done
from vmesh.v1.files_pb2 import FilesOffered
from vmesh.v1.packet_pb2 import Packet
from vmesh.wire import Client, is_tcp
from vmesh_services.memory.address_map import AddressMap
from vmesh_services.memory.away import Away
from vmesh_services.memory.layout import ADDRESS_LIMIT, Image, Place, Range, check_disjoint, copy_image, place_images
from vmesh_services.memory.presence import NEEDED_AT_ONCE, Presence

_RAM_FILE = "ram.seg"
_ROM_FILE = "rom.seg"
_FLAGS_FILE = "ram.flags"
_STATE_VERSION = 1
_OTHERS_SECONDS = 2.0
UNREAD = 32  # answers that are made and not read, of one connection: each may be 1 MiB; more wait to be made


@dataclass(frozen=True, slots=True)
class Settings:
    """What memory the machine has; sizes in bytes, addresses guest physical."""

    ram_base: int
    ram_size: int
    rom: Range | None = None
    images: tuple[Image, ...] = ()
    reserved: tuple[Range, ...] = ()
    expected: frozenset[str] = frozenset()
    places: Mapping[str, Place] = field(default_factory=dict)
    absent: bool = False  # RAM has no content: a pager brings it
    cached: bool = False  # the cpu is on another host, with a cache of RAM beside it
    adopt: Path | None = None  # the directory of a machine whose RAM this is, until that has handed itself over


class Memory(Service):
    """Owns the segments. Raises HostLimit, ImageError or ConfigError for settings that cannot be."""

    kind = "memory"
    vital = True

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        runtime.outlive_loss()
        self._met = _meet(runtime.machine.path)
        self._expected = settings.expected
        self._waiting: list[tuple[Client, int]] = []  # MapRequests to be answered when all are attached
        self._grants: dict[bytes, list[messages.Grant]] = {}  # by identity of the connection
        self._dma_bytes = 0

        ram = Range("RAM", settings.ram_base, settings.ram_size)
        memory = [ram] if settings.rom is None else [ram, replace(settings.rom, name="ROM")]
        fixed: list[Range] = []
        for each in memory:
            if each.base % segment.PAGE or each.size % segment.PAGE or not 0 <= each.base < each.end <= ADDRESS_LIMIT:
                pages = f"a multiple of {segment.PAGE} at a multiple of {segment.PAGE}"
                raise errors.ConfigError(f"size of {each.name}", expected=pages, got=f"{each.base:#x}+{each.size:#x}")
        for each in (*memory, *settings.reserved):
            check_disjoint(each, fixed)
            fixed.append(each)
        self._images = place_images(settings.images, memory)
        self._map = AddressMap(fixed, settings.places)
        self._adopt = settings.adopt
        self._segments = [self._create(each) for each in memory]
        self._ram_grants = [messages.Grant(base=ram.base, size=ram.size, writable=True)]
        self._guest = LocalGuestMemory(self._segments, self._ram_grants)
        self._flags = self._map_flags()
        self._presence = Presence(ram.base, self._flags[: ram.size // segment.PAGE], runtime.server, runtime.loop)
        self._away: Away | None = None
        if settings.cached:
            present = self._flags[: ram.size // segment.PAGE]
            self._away = Away(self._segments, present, self._guest, runtime.server, runtime.loop)
        self._load_images(rom_only=settings.absent or settings.adopt is not None)
        if not settings.absent and settings.adopt is None:
            self._set_flags(segment.FLAG_PRESENT)

    def greeted(self, client: Client) -> None:
        if client.role == ROLE_CACHE and self._away is not None:
            self._away.greeted(client)

    def handle(self, client: Client, packet: Packet) -> Message | None:
        if self._away is not None and client.role == ROLE_MIGRATION:
            raise errors.BadRequest("migration", expected="a cpu on the host of RAM", got="one with a cache of it")
        match packet.WhichOneof("body"):
            case "attach":
                return self._attach(client, packet.attach)
            case "expect_life":
                self._map.expect(packet.expect_life.name, packet.expect_life.epoch)
                return Done()
            case "detach":
                self._map.detach(packet.detach.name if client.role == ROLE_MONITOR else client.name)
                self._grants.pop(client.identity, None)
                return Done()
            case "map_request":
                self._waiting.append((client, packet.id))
                self._answer_waiting()
                return None
            case "dma_read":
                self._dma_read(client, packet.dma_read, packet.id)
                return None
            case "dma_write":
                self._dma_write(client, packet.dma_write, packet.id)
                return None
            case "take_files":
                return self._offer_files(client, packet.take_files.names)
            case "need_pages":
                self._need_pages(client, packet.need_pages.addresses, packet.id)
                return None
            case "serve_pages":
                self._presence.serve(client)
                self._runtime.log.info("pager", name=client.name, absent=self._presence.absent)
                return Done()
            case "pages_present":
                self._presence.arrived(client, packet.pages_present.addresses)
                return Done()
            case "mark_pages":
                self._presence.mark(packet.mark_pages.present)
                return Done()
            case "take_pages" if self._away is not None:
                return self._away.take(packet.take_pages)
            case "cached_dma_done" if self._away is not None:
                self._away.answered(packet.cached_dma_done)
                return None
            case "take_pages" | "cached_dma_done":
                raise errors.BadRequest("a cache", expected="memory that was started with --cached", got="other memory")
            case _:
                return super().handle(client, packet)

    def save(self) -> lifecycle.ServiceState:
        return lifecycle.ServiceState(
            type=messages.MemoryState.DESCRIPTOR.full_name,
            version=_STATE_VERSION,
            bytes=self._layout().SerializeToString(),
        )

    def load(self, state: lifecycle.ServiceState, check_only: bool) -> None:
        mine = self._layout()
        if state.type != mine.DESCRIPTOR.full_name or state.version > _STATE_VERSION:
            wanted, got = f"{mine.DESCRIPTOR.full_name} 1", f"{state.type[:80]} {state.version}"
            raise errors.BadState("state of memory", expected=wanted, got=got)
        try:
            theirs = messages.MemoryState.FromString(state.bytes)
        except DecodeError as error:
            raise errors.BadState("state of memory cannot be parsed") from error
        if theirs != mine:
            raise errors.BadState("layout of memory", expected=_describe(mine), got=_describe(theirs))

    def resume(self) -> None:
        self._adopt = None

    def reset(self) -> None:
        """RAM is zero again, takes no host memory, and has the images.

        Raises BadRequest while pages are absent: whoever brings them would write over that; ImageError for images that
        are not what they were. Nothing was changed then.
        """
        if self._adopt is not None:
            raise errors.BadRequest("Reset", expected="RAM that was handed over", got="another machine's")
        for image in self._images:
            image.check()
        if self._away is not None:
            self._away.reset()
        if absent := self._presence.absent:
            raise errors.BadRequest("Reset", expected="all pages to be present", got=f"{absent} that are still to come")
        for each in self._segments:
            segment.clear(self._runtime.machine.path / os.path.basename(each.path))
        self._load_images()
        for array in (segment.FLAG_PRESENT, segment.FLAG_DIRTY):
            self._set_flags(array)

    def orphaned(self) -> None:
        """Nobody else will clean up: remove the machine directory, after the other services have ended.

        It was met at the start: by now the name may be that of a later machine, whose directory is left alone.
        """
        if self._met is None:
            return
        deadline = time.monotonic() + _OTHERS_SECONDS
        # Every process of the machine has inherited the lock: without ours it is free when the others are gone.
        for fd in _open_on(self._met.lock_fd):
            os.close(fd)
        with suppress(OSError):
            while not _lock(self._met.lock_fd) and time.monotonic() < deadline:
                time.sleep(0.02)
            self._met.remove()

    def counters(self) -> dict[str, int]:
        more = self._presence.counters() if self._away is None else self._away.counters()
        return {"devices": len(self._map.devices), "dma_bytes": self._dma_bytes, **more}

    def _create(self, memory: Range) -> messages.Segment:
        directory = self._runtime.machine.path
        path = directory / (_RAM_FILE if memory.name == "RAM" else _ROM_FILE)
        self._make(path, memory.size, writable=memory.name == "RAM")
        made = messages.Segment(
            name=memory.name.lower(),
            path=str(path),
            base=memory.base,
            size=memory.size,
            writable=memory.name == "RAM",
        )
        if made.writable:
            made.flags_stride = segment.flags_stride(memory.size)
            made.flags_path = str(directory / _FLAGS_FILE)
            made.adopted = self._adopt is not None
            self._make(directory / _FLAGS_FILE, segment.FLAG_ARRAYS * made.flags_stride, writable=True)
        return made

    def _make(self, path: Path, size: int, *, writable: bool) -> None:
        if self._adopt is not None and writable:
            segment.adopt(self._adopt / path.name, path, size)
        else:
            segment.create(path, size)

    def _map_flags(self) -> memoryview:
        (ram,) = (each for each in self._segments if each.writable)
        return memoryview(segment.attach(Path(ram.flags_path), writable=True))

    def _load_images(self, *, rom_only: bool = False) -> None:
        for each in self._segments:
            if rom_only and each.writable:
                continue
            memory = Range(each.name, each.base, each.size)
            fd = os.open(each.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                for image in self._images:
                    if memory.contains(Range("", image.address, image.size)):
                        copy_image(image, fd, image.address - each.base)
            finally:
                os.close(fd)

    def _set_flags(self, array: int) -> None:
        for each in self._segments:
            if each.flags_path:
                fd = os.open(each.flags_path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.pwrite(fd, b"\x01" * (each.size // segment.PAGE), array * each.flags_stride)
                finally:
                    os.close(fd)

    def _layout(self) -> messages.MemoryState:
        return messages.MemoryState(
            segments=[
                messages.Segment(name=each.name, base=each.base, size=each.size, writable=each.writable)
                for each in self._segments
            ]
        )

    def _attach(self, client: Client, request: messages.Attach) -> messages.Attached:
        device = request.description
        if device.name != client.name:
            raise errors.BadRequest("Attach", expected=f"the name of its Hello, {client.name}", got=device.name[:80])
        if client.user:
            if not is_tcp(device.endpoint):
                wanted = "tcp://HOST:PORT of a device on another host"
                raise errors.BadRequest("endpoint", expected=wanted, got=repr(device.endpoint[:80]))
            device.doorbell = device.interrupts = ""  # these are of its own host
        self._map.attach(device, again=bool(client.user))
        self._presence.forget(device.name)
        self._runtime.log.info("attached", device=device.name, kind=device.kind, epoch=device.epoch)
        self._answer_waiting()
        if not device.dma:
            self._grants.pop(client.identity, None)
            return messages.Attached()
        self._forget_gone()
        self._grants[client.identity] = self._ram_grants
        elsewhere = client.user or self._away is not None
        segments = [] if elsewhere else [each for each in self._segments if each.writable]
        return messages.Attached(segments=segments, grants=self._ram_grants)

    def _offer_files(self, client: Client, names: Sequence[str]) -> FilesOffered:
        """Descriptors of segments, for a device that may map them and cannot open them."""
        if client.identity not in self._grants or client.user or self._away is not None:
            raise errors.NotAllowed("TakeFiles is for devices of this host with dma, after Attached")
        there = [path for each in self._segments if each.writable for path in (each.path, each.flags_path)]
        paths = {Path(path).name: path for path in there if path}
        if len(set(names)) < len(names):
            raise errors.BadRequest("TakeFiles", expected="each name once")
        if missing := [name for name in names if name not in paths]:
            raise errors.BadRequest("TakeFiles", expected=f"some of {', '.join(paths)}", got=repr(missing[0][:80]))
        return self._runtime.offer_files([Path(paths[name]) for name in names], client)

    def _answer_waiting(self) -> None:
        if not self._waiting or not self._expected <= self._map.devices.keys():
            return
        answer = messages.AddressMap(segments=self._segments, devices=self._map.devices.values())
        for client, packet_id in self._waiting:
            self._runtime.answer(client, packet_id, lambda: answer)
        self._waiting.clear()

    def _dma_read(self, client: Client, request: messages.DmaRead, packet_id: int) -> None:
        self._check_dma(client, request.address, request.size, write=False)
        address, size = request.address, request.size

        def answer(data: bytes) -> None:
            self._runtime.answer(client, packet_id, lambda: messages.DmaDone(data=data))

        def read() -> None:
            self._runtime.answer(client, packet_id, lambda: messages.DmaDone(data=self._guest.read(address, size)))

        if self._away is not None:
            self._away.read(address, size, answer)
            return
        self._presence.need(client, _pages(address, size), read)

    def _dma_write(self, client: Client, request: messages.DmaWrite, packet_id: int) -> None:
        self._check_dma(client, request.address, len(request.data), write=True)
        address, data = request.address, request.data

        def answer() -> None:
            self._runtime.answer(client, packet_id, messages.DmaDone)

        def write() -> None:
            self._guest.write(address, data)
            answer()

        if self._away is not None:
            self._away.write(address, data, answer)
            return
        self._presence.need(client, _pages(address, len(data)), write)

    def _need_pages(self, client: Client, addresses: Sequence[int], packet_id: int) -> None:
        if len(addresses) > NEEDED_AT_ONCE:
            raise errors.BadRequest("NeedPages", expected=f"at most {NEEDED_AT_ONCE} pages", got=str(len(addresses)))
        if client.role == ROLE_DEVICE:
            for address in addresses:
                check(self._grants.get(client.identity, []), address, 1, write=False)
        self._presence.need(client, addresses, lambda: self._runtime.answer(client, packet_id, Done))

    def _check_dma(self, client: Client, address: int, size: int, *, write: bool) -> None:
        if size > MAX_TRANSFER:
            raise errors.BadRequest("DMA", expected=f"at most {MAX_TRANSFER} bytes", got=str(size))
        try:
            check(self._grants.get(client.identity, []), address, size, write)
        except errors.OutsideGrant as error:
            self._runtime.complain(client.name, "DMA outside its grants", str(error))
            raise
        self._dma_bytes += size

    def _forget_gone(self) -> None:
        alive = self._runtime.server.clients
        for identity in [identity for identity in self._grants if identity not in alive]:
            del self._grants[identity]


def _pages(address: int, size: int) -> range:
    """An address in each page of a range."""
    return range(address & -segment.PAGE, address + size, segment.PAGE) if size else range(0)


def _meet(path: Path) -> machine.MachineDirectory | None:
    """The machine in whose directory this service was started; None if it is in another one, of a test for example."""
    with suppress(machine.MachineError):
        return machine.meet(path)
    return None


def _open_on(fd: int) -> list[int]:
    """The other file descriptors of this process that are open on the same file."""
    found = []
    for entry in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if entry != fd and os.path.samestat(os.fstat(entry), os.fstat(fd)):
                found.append(entry)
    return found


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _describe(layout: messages.MemoryState) -> str:
    found = [f"{each.name[:16]} of {segment.amount(each.size)} at {each.base:#x}" for each in layout.segments]
    return ", ".join(found) or "none"
