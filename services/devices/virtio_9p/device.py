"""The model of the 9P transport (virtio 1.2, 5.10): one queue of messages, and the name of the share."""

from __future__ import annotations

from google.protobuf.message import Message

from vmesh import errors
from vmesh.service import Runtime
from vmesh.slot import MARKS
from vmesh.v1.devices_pb2 import Virtio9pFid, Virtio9pState
from vmesh.v1.slot_pb2 import Virtio9pRecord
from vmesh.virtio.device import Transport, VirtioDevice
from vmesh.virtio.queue import Chain, Queue, cut, length_of
from vmesh_services.devices.virtio_9p.folder import Folder
from vmesh_services.devices.virtio_9p.ledger import Ledger
from vmesh_services.devices.virtio_9p.server import MAX_MSIZE, Server, check

QUEUE_SIZE = 128
F_MOUNT_TAG = 1 << 0
MAX_TAG = 255  # bytes

# Marks: the number of the request that was begun last, and of the last one that has called `intend`.
_BEGUN, _INTENDED = MARKS - 1, MARKS - 2


class Virtio9p(VirtioDevice):
    """The share `tag` of a folder.

    A request has a number: how many there were, and in the lower 16 bits its position in the queue. By it a successor
    knows whether the first request that it finds is the one that a mark or the ledger's last record is about.
    """

    kind = "virtio-9p"
    state = Virtio9pState
    device_id = 9

    def __init__(
        self,
        runtime: Runtime,
        transport: Transport,
        folder: Folder,
        tag: str,
        *,
        read_only: bool = False,
        most_open: int = 512,
        packed: bool = False,
    ) -> None:
        super().__init__(runtime, transport, queue_sizes=(QUEUE_SIZE,), features=F_MOUNT_TAG, packed=packed)
        self._tag = tag.encode()
        if not 0 < len(self._tag) <= MAX_TAG:
            raise errors.ConfigError("mount tag", expected=f"1 to {MAX_TAG} bytes", got=repr(tag[:80]))
        self._ledger = Ledger(runtime.machine.path / f"{runtime.name}.ledger", fresh=runtime.epoch == 1)
        self._server = Server(folder, read_only=read_only, most_open=most_open, record=self._keep, intend=self._intend)
        self._here = False  # whether the ledger is this life's
        self._first = False  # whether the next request may have been begun by an earlier life
        self._last = Virtio9pRecord()  # the last record of an earlier life
        self._request = 0

    def attached(self) -> None:
        super().attached()
        self._here = True

    def recover(self) -> None:
        msize, fids = 0, dict[int, Virtio9pFid]()
        for record in self._ledger.read():
            if record.anew:
                fids.clear()
            msize = record.msize
            for fid in record.gone:
                fids.pop(fid, None)
            fids.update((fid.fid, fid) for fid in record.fids)
            self._last = record
        if reason := check(msize, fids.values()):
            raise errors.BadState(f"ledger of {self.runtime.name}: {reason}")
        self._server.restore(msize, fids.values())
        self._first = True
        super().recover()

    def config(self) -> bytes:
        return len(self._tag).to_bytes(2, "little") + self._tag

    def request(self, queue: Queue, chain: Chain) -> int:
        begun = self.marks[_BEGUN]
        redo = self._first and begun & 0xFFFF == chain.position
        self._first = False
        self._request = begun if redo else (begun >> 16) + 1 << 16 | chain.position
        if redo and self._last.request == self._request:
            reply = self._last.reply
        else:
            self.marks[_BEGUN] = self._request
            message = b"".join(self.memory.gather(cut(chain.readable, MAX_MSIZE)[0]))
            room = length_of(chain.writable)
            reply = self._server.handle(message, room, redo=redo and self.marks[_INTENDED] == self._request)
        if not reply or len(reply) > length_of(chain.writable):
            return 0
        return self.memory.scatter(cut(chain.writable, len(reply))[0], lambda buffers: _fill(buffers, reply))

    def reset_device(self) -> None:
        self._first = False
        self._server.clear()
        if self._here:
            self._ledger.anew(self._server.state())

    def slot_state(self) -> Message:
        return super().save()

    def save(self) -> Message:
        state = super().save()
        assert isinstance(state, Virtio9pState)
        fids = self._server.state()
        state.msize = fids.msize
        state.fids.extend(fids.fids)
        return state

    def check_device(self, state: Message) -> None:
        assert isinstance(state, Virtio9pState)
        if reason := check(state.msize, state.fids):
            raise errors.BadState(f"virtio-9p: {reason}")

    def load_device(self, state: Message) -> None:
        assert isinstance(state, Virtio9pState)
        if self._here:  # else from the slot, and the ledger has what is missing there
            self._first = False
            self._server.restore(state.msize, state.fids)
            self._ledger.anew(self._server.state())

    def counters(self) -> dict[str, int]:
        return {**super().counters(), "fids": len(self._server.fids), "open_files": self._server.open_files}

    def _keep(self, record: Virtio9pRecord) -> None:
        record.request = self._request
        if record.anew:
            self._ledger.anew(record)
            return
        self._ledger.append(record)
        if self._ledger.grown:
            whole = self._server.state()
            whole.request, whole.reply = record.request, record.reply
            self._ledger.anew(whole)

    def _intend(self) -> None:
        self.marks[_INTENDED] = self._request


def _fill(buffers: list[memoryview], data: bytes) -> int:
    at = 0
    for buffer in buffers:
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)
    return at
