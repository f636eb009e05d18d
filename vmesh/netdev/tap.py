"""`tap`: a network interface of the host, whose other end is the card.

With `offload` the virtio-net header goes through as it is: the host's kernel knows it (IFF_VNET_HDR in Linux
Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h), and takes and gives frames without checksums and
larger than the wire's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from vmesh import errors
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.port import HEADER_BYTES, MAX_FRAME, Frame, Port

_DEVICE = "/dev/net/tun"
# include/uapi/linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F = {1 << 1: 0x01, 1 << 7: 0x02, 1 << 8: 0x04}  # by features GUEST_CSUM, GUEST_TSO4, GUEST_TSO6
_REQUEST = struct.Struct("16sH22x")  # struct ifreq of netdevice(7)
_FRAMES = 64  # of one turn
_RETRY_SECONDS = 1.0
_TIMER = "netdev"


class TapNetdev:
    """An interface by its name; one that is not there is made, and goes with this process."""

    def __init__(self, asked: options.Tap, loop: Loop, log: Log, port: Port) -> None:
        self.offload = asked.offload
        self._asked = asked
        self._loop = loop
        self._log = log
        self._port = port
        self._fd = -1
        self._refused: memoryview | None = None  # the frame that the card has not taken
        self._waiting = False
        self._buffer = memoryview(bytearray(HEADER_BYTES + MAX_FRAME))
        self._features = 0
        self.rejected = 0

    def start(self) -> None:
        fd = -1
        try:
            fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if self.offload else 0)
            fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(self._asked.name.encode(), flags))
            if self.offload:
                fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
                _set_offload(fd, self._features)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise errors.ConfigError(f"tap {self._asked.name}: {error.strerror}") from error
        self._fd = fd
        self._watch()
        self._port.link(True)

    def send(self, frames: Sequence[Frame]) -> int:
        if self._fd < 0:
            return len(frames)
        for number, frame in enumerate(frames):
            try:
                os.writev(self._fd, frame if len(frame) <= 64 else [b"".join(frame)])
            except BlockingIOError:
                self._waiting = True
                self._watch()
                return number
            except OSError as error:
                if error.errno == errno.EBADFD:  # the interface was removed
                    self._end()
                    return len(frames)
                self.rejected += 1  # a header that makes no sense (EINVAL), an interface that is down (EIO): lost
        return len(frames)

    def resume(self) -> None:
        refused, self._refused = self._refused, None
        if refused is not None and self._offer(refused):
            self._watch()

    def set_offload(self, features: int) -> None:
        self._features = features
        if self._fd >= 0 and self.offload:
            try:
                _set_offload(self._fd, features)
            except OSError:  # the interface was removed
                self._end()

    def close(self) -> None:
        self._loop.cancel(_TIMER)
        if self._fd >= 0:
            self._loop.watch(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._refused = None
        self._waiting = False

    def _end(self) -> None:
        self.close()
        self._log.warning("netdev", reason=f"the interface {self._asked.name} is gone")
        self._port.link(False)
        self._loop.call_in(_TIMER, _RETRY_SECONDS, self._again)

    def _again(self) -> None:
        try:
            self.start()
        except errors.ConfigError:
            self._loop.call_in(_TIMER, _RETRY_SECONDS, self._again)

    def _readable(self) -> None:
        for _ in range(_FRAMES):
            if self._fd < 0:
                return
            try:
                count = os.readv(self._fd, [self._buffer])
            except BlockingIOError:
                return
            except OSError:
                self._end()
                return
            if not self._offer(self._buffer[:count]):
                self._watch()
                return

    def _offer(self, frame: memoryview) -> bool:
        if self._port.receive([frame]):
            return True
        self._refused = frame
        return False

    def _writable(self) -> None:
        self._waiting = False
        self._watch()
        self._port.writable()

    def _watch(self) -> None:
        read = None if self._refused is not None else self._readable
        self._loop.watch(self._fd, read=read, write=self._writable if self._waiting else None)


def _set_offload(fd: int, features: int) -> None:
    """Raises OSError."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, sum(flag for bit, flag in _TUN_F.items() if features & bit))
