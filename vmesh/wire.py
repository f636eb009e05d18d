"""Packets over ZeroMQ: framing, the Hello handshake, the listening side (`Server`) and the dialling side (`Peer`).

The rules are those of proto/vmesh/v1/common.proto and packet.proto. Everything here is
synchronous and belongs to one thread.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError, Message

from vmesh import connection_events, errors, limits
from vmesh.curve import Keys
from vmesh.log import Log
from vmesh.processes import Processes
from vmesh.strangers import EVENT, Strangers
from vmesh.v1 import common_pb2 as common
from vmesh.v1.common_pb2 import Hello, Refused, Role, Welcome
from vmesh.v1.packet_pb2 import Packet

MAJOR = 1
MINOR = 1
MAX_PACKET_BYTES = 16 << 20
MAX_STATE_BYTES = MAX_PACKET_BYTES - (64 << 10)  # of one service, which travels in a packet with what is around it
MAX_DEVICE_BYTES = 1 << 20  # from a device to a hart or the irqchip: longer, and the connection is cut unread
# From memory to a device, which asks for at most 1 MiB at once; and how many of them may wait to be read.
MAX_ANSWER_BYTES = (1 << 20) + (64 << 10)
_ANSWERS = 128
MAX_HARTS = 4096

_MAX_CLIENTS = 1024
_MAX_OF_DEVICE = 16  # of one device to a service, which needs one, and has some of former lives
_HELD_SECONDS = 10.0  # for the monitor to tell of a process that it has started
# Above any window of single-access batches, so that a peer that keeps to its credits never loses a message.
QUEUE_MESSAGES = 4096
_RECONNECT_MS = 4  # services start at the same time: whoever binds last is met this soon
LINGER_MS = 200  # for the last answer of a service that ends
_RECEIVE_BUDGET = 64

# Over TCP the other side may be gone without a word. A pause of a few seconds is none: TCP brings what was sent.
_TCP_OPTIONS = {
    zmq.HEARTBEAT_IVL: 2000,
    zmq.HEARTBEAT_TIMEOUT: 6000,
    zmq.HEARTBEAT_TTL: 8000,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 500,
}
_TCP = re.compile(r"tcp://(\[[0-9a-fA-F:.%]+\]|[^:\[\]/\s]+):(\d{1,5})")
_HEEDED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
_UNIX_PEER = "localhost:"  # how ZeroMQ names those who come by a Unix socket

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_FIELD_OF = {
    field.message_type.full_name: field.name
    for field in Packet.DESCRIPTOR.oneofs_by_name["body"].fields
    if field.message_type is not None
}

_LIFECYCLE = ("pause", "drain", "save", "load", "resume", "reset", "shutdown", "health", "hand_over")
_DEBUG = (
    "read_memory", "write_memory", "describe_registers", "read_registers", "write_registers", "set_breakpoints",
    "run_harts",
)  # fmt: skip
_CPU = ("hart_registers_request", "cpu_status_request", "add_device", "remove_device", "catch_up")
ALLOWED: dict[str, frozenset[Role.ValueType]] = {
    **{name: frozenset({common.ROLE_HART}) for name in ("access_batch", "take_accesses")},
    "guest_time": frozenset({common.ROLE_IRQCHIP}),
    **{name: frozenset({common.ROLE_DEVICE}) for name in ("attach", "dma_read", "dma_write", "take_files")},
    "expect_life": frozenset({common.ROLE_MONITOR}),
    "detach": frozenset({common.ROLE_DEVICE, common.ROLE_MONITOR}),
    "map_request": frozenset({common.ROLE_CPU, common.ROLE_MIGRATION, common.ROLE_MONITOR, common.ROLE_CACHE}),
    "need_pages": frozenset({common.ROLE_CPU, common.ROLE_DEVICE}),
    **{name: frozenset({common.ROLE_MIGRATION}) for name in ("serve_pages", "pages_present", "mark_pages")},
    **{name: frozenset({common.ROLE_CACHE}) for name in ("take_pages", "cached_dma_done")},
    **{name: frozenset({common.ROLE_MONITOR}) for name in _LIFECYCLE},
    **{name: frozenset({common.ROLE_MONITOR}) for name in (*_CPU, *_DEBUG)},
    **{name: frozenset({common.ROLE_MONITOR}) for name in ("migration_request", "machine_answer")},
    "shoot_down": frozenset({common.ROLE_MIGRATION}),
    "throttle": frozenset({common.ROLE_MIGRATION, common.ROLE_MONITOR}),
    **{name: frozenset({common.ROLE_MONITOR}) for name in ("set_property", "trace_control", "trace_take", "processes")},
}


def make(body: Message, packet_id: int = 0) -> Packet:
    """The packet that carries `body`."""
    packet = Packet(id=packet_id)
    field: Message = getattr(packet, _FIELD_OF[body.DESCRIPTOR.full_name])
    field.CopyFrom(body)
    field.SetInParent()  # a body without fields set is still the body
    return packet


def parse(frame: bytes) -> Packet:
    """Raises BadRequest for what is no packet."""
    try:
        return Packet.FromString(frame)
    except DecodeError:
        raise errors.BadRequest("cannot parse", expected="a vmesh.v1.Packet", got=f"{len(frame)} bytes") from None


def body_of(packet: Packet) -> Message | None:
    """What the packet carries, or None."""
    name = packet.WhichOneof("body")
    return None if name is None else getattr(packet, name)


def hello(role: Role.ValueType, name: str, *, machine: str = "", hart: int = 0) -> Hello:
    """The Hello of this version."""
    return Hello(major=MAJOR, minor=MINOR, role=role, name=name, machine=machine, hart=hart)


def endpoint(path: Path) -> str:
    """The ZeroMQ address of a socket in a machine directory."""
    return f"ipc://{path}"


def is_tcp(address: str) -> bool:
    """Whether this is `tcp://HOST:PORT`."""
    found = _TCP.fullmatch(address)
    return found is not None and 0 < int(found[2]) < 65536


def set_tcp_options(socket: zmq.Socket[bytes], address: str) -> None:
    """For connections that `socket` binds or connects from now on."""
    for option, value in _TCP_OPTIONS.items():
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.IPV6, int("[" in address))


# Who may say so: the names that keys stand for, and processes. All others are devices.
_NAME_OF_ROLE: dict[int, str] = {
    common.ROLE_MONITOR: "monitor",
    common.ROLE_CPU: "cpu",
    common.ROLE_IRQCHIP: "cpu",
    common.ROLE_HART: "cpu",
    common.ROLE_MIGRATION: "migration",
    common.ROLE_CACHE: "cache",
}
_NO_DEVICES = frozenset({*_NAME_OF_ROLE.values(), "memory"})


def may_say(user: str, role: Role.ValueType, name: str) -> bool:
    """Whether the key, or the process, of `user` stands for this role and name in a Hello."""
    owner = _NAME_OF_ROLE.get(role)
    return name == user and (user not in _NO_DEVICES if owner is None else user == owner)


@dataclass(slots=True, frozen=True)
class _Held:
    """A Hello of a process that the monitor has yet to tell of, until then or a time of the monotonic clock."""

    packet: Packet
    process: int
    until: float


@dataclass(slots=True, eq=False)
class Client:
    """A connection that has said Hello. `user` is the name that its key stands for, empty on this host's sockets, whose
    kernel says which `process` has connected."""

    identity: bytes
    role: Role.ValueType
    name: str
    hart: int
    user: str = ""
    connection: int = 0
    process: int = 0


class Server:
    """The ROUTER that a service binds. It answers Hello itself, refuses what is not allowed, and hands on the rest.

    `greet` makes the Welcome for a new client (major, minor and name are filled in here), or raises a VmeshError to
    refuse it; `greeted` is called when the Welcome is on its way, `broken` when a client has said what no message may
    say (vmesh/limits.py). `counters` counts what was refused, by cause. With `keys` it listens at `address` too, over
    TCP, and answers their holders only: `authenticate` goes before. Of each client at most `unread` messages wait to be
    read, in this process; `answer` sends an answer now or when there is room. With `monitor`, the process that is the
    monitor, each role on this host's socket is for the process that has it (vmesh/processes.py), and a Hello of one of
    which the monitor has not told yet is held for a while. Raises ConfigError if a socket cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        path: Path,
        name: str,
        log: Log,
        greet: Callable[[Client], Welcome],
        greeted: Callable[[Client], None],
        *,
        address: str = "",
        keys: Keys | None = None,
        broken: Callable[[Client, str], None] = lambda client, how: None,
        answer: Callable[[Client, int, Callable[[], Message]], None] | None = None,
        unread: int = QUEUE_MESSAGES,
        monitor: int = 0,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.clients: dict[bytes, Client] = {}
        self._name = name
        self._machine = path.parent.name
        self._greet = greet
        self._greeted = greeted
        self._broken = broken
        self._answer = answer or (lambda client, packet_id, make: self.send(client, make(), packet_id))
        self._processes = Processes(monitor) if monitor else None
        self._held: dict[bytes, _Held] = {}
        self._log = log
        self._strangers: Strangers | None = None
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_PACKET_BYTES)
        self.socket.setsockopt(zmq.SNDHWM, unread)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        former = os.umask(0o077)
        try:
            path.unlink(missing_ok=True)  # of an earlier life
            self.socket.bind(endpoint(path))
        except (OSError, zmq.ZMQError) as error:
            self.socket.close(0)
            raise errors.ConfigError(f"cannot listen on {path}: {error.strerror}") from error
        finally:
            os.umask(former)
        if address:
            self._listen(address, keys)

    def _listen(self, address: str, keys: Keys | None) -> None:
        """What was set on the socket by now holds for the Unix socket, what is set here for TCP only."""
        try:
            if not is_tcp(address):
                raise errors.ConfigError("address to listen at", expected="tcp://HOST:PORT", got=repr(address[:200]))
            if keys is None:
                text = f"{address}: whoever reaches it could be any service of the machine"
                raise errors.ConfigError(text, expected="keys (--keys FOLDER)")
            set_tcp_options(self.socket, address)
            keys.guard(self.socket)
            self._strangers = Strangers(self.socket, int(address.rpartition(":")[2]), self.counters)
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise errors.ConfigError(f"cannot listen at {address}: {error.strerror}") from error
        except errors.ConfigError:
            self.close()
            raise

    def receive(self) -> tuple[Client, Packet] | None:
        """The next request that this client may make, or None if there is none now."""
        if self._held:
            self._let_go()
        for _ in range(_RECEIVE_BUDGET):
            try:
                identity = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            user: str | None = ""
            process = 0
            connection = -1
            if self._strangers or identity not in self.clients:
                whole = self.socket.recv(zmq.NOBLOCK, copy=False)
                frame, user, process = whole.bytes, _user(whole), _process(whole)
                connection = whole.get(zmq.SRCFD)
            else:
                frame = self.socket.recv(zmq.NOBLOCK)
            if self.socket.rcvmore:
                self.socket.recv_multipart(zmq.NOBLOCK)
                self._refuse(identity, 0, "frames", "one frame", "several")
                continue
            if user is None:
                self.note_refusal("no key", "from somewhere without a key")
                continue
            try:
                packet = Packet.FromString(frame)
            except DecodeError:
                self._refuse(identity, 0, "unparsable", "a vmesh.v1.Packet", f"{len(frame)} bytes that are none")
                continue
            kind = packet.WhichOneof("body")
            client = self.clients.get(identity)
            if client is not None and client.user != user:
                # Somebody else has the number of a connection that is gone.
                del self.clients[identity]
                client = None
            if kind == "hello":
                self._hello(identity, packet, user, process or (client.process if client else 0))
                if self._strangers and user and identity in self.clients:
                    self._strangers.let_in(connection)
            elif kind is None:
                continue
            elif client is None:
                self._refuse(identity, packet.id, "no hello", "Hello first", kind)
            elif wrong := limits.broken(getattr(packet, kind)):
                self.fail(client, packet.id, f"{kind} outside its limits", errors.BadRequest(f"{kind}.{wrong}"))
                self._broken(client, f"{kind}.{wrong}")
            elif client.role not in ALLOWED.get(kind, ()):
                role = Role.Name(client.role)
                if kind in ALLOWED:
                    refusal: errors.VmeshError = errors.NotAllowed(f"{kind} is not for {role}")
                else:
                    refusal = errors.BadRequest(f"{kind} is not a request")
                self.fail(client, packet.id, f"{kind} by {role}", refusal)
            elif kind == "processes":
                self.tell(packet.processes.processes)
            else:
                return client, packet
        return None

    def send(self, client: Client, body: Message, packet_id: int = 0) -> bool:
        """Whether the body went out: not if the client is gone (it is then forgotten) or does not read its socket."""
        return self.send_packet(client.identity, make(body, packet_id))

    def send_packet(self, identity: bytes, packet: Packet) -> bool:
        """As `send`, for a packet that is made already."""
        frame = packet.SerializeToString()
        try:
            try:
                self.socket.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
            except zmq.Again:
                # A send looks only every few milliseconds at what the other side has read; this look is at once.
                self.socket.getsockopt(zmq.EVENTS)
                self.socket.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self.counters["unsendable"] += 1
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self.clients.pop(identity, None)
            return False
        return True

    def fail(self, client: Client, packet_id: int, cause: str, error: errors.VmeshError) -> None:
        """Refuse a request: count it, log it, answer Error. `cause` is from a bounded set."""
        self.note_refusal(cause, f"from {client.name}: {error}")
        if packet_id:
            self._answer(client, packet_id, error.message)

    def note_refusal(self, cause: str, text: str) -> None:
        """Count a refusal, and log it."""
        self.counters["refused"] += 1
        count = self.counters[f"refused: {cause}"] = self.counters[f"refused: {cause}"] + 1
        self._log.warning("refused", cause=cause, count=count, text=text)

    def tell(self, processes: Mapping[str, int]) -> None:
        """Which process is which service from now on, as the monitor says (0: one that is started by hand): whoever is
        none any more is forgotten, and those are answered that have waited for this."""
        if self._processes is None:
            return
        self._processes.tell(processes)
        for client in list(self.clients.values()):
            if not client.user and not self._may_be(client.role, client.name, client.process):
                del self.clients[client.identity]
        for identity, held in list(self._held.items()):
            if self._may_be(held.packet.hello.role, held.packet.hello.name, held.process) is not None:
                self._hello(identity, held.packet, "", held.process)

    def close(self) -> None:
        self.socket.close()
        if self._strangers:
            self._strangers.end()

    def _hello(self, identity: bytes, packet: Packet, user: str, process: int) -> None:
        said = packet.hello
        self.clients.pop(identity, None)
        self._held.pop(identity, None)
        if said.major != MAJOR:
            reason = f"{self._name} speaks protocol {MAJOR}.{MINOR}, the peer {said.major}.{said.minor}"
            wanted, got = f"protocol {MAJOR}.x", f"protocol {said.major}.{said.minor}"
            self._refuse(identity, packet.id, "version", wanted, got, reason)
        elif said.role == common.ROLE_UNSPECIFIED or said.role not in Role.values():
            self._refuse(identity, packet.id, "role", "a Role of common.proto", str(int(said.role)))
        elif not _NAME.fullmatch(said.name):
            self._refuse(identity, packet.id, "name", "1 to 64 of [A-Za-z0-9._-]", repr(said.name[:80]))
        elif said.machine not in ("", self._machine):
            self._refuse(identity, packet.id, "machine", f"machine {self._machine}", repr(said.machine[:80]))
        elif said.hart >= MAX_HARTS:
            self._refuse(identity, packet.id, "hart", f"a hart below {MAX_HARTS}", str(said.hart))
        elif wrong := limits.broken(said):
            self._refuse(identity, packet.id, "limits", "a Hello within its limits", wrong)
        elif not user and (known := self._may_be(said.role, said.name, process)) is not True:
            if known is None:
                self._hold(identity, packet, process)
            else:
                self._refuse_process(identity, packet, process)
        elif user and not may_say(user, said.role, said.name):
            got = f"{Role.Name(said.role)} {said.name}"
            self._refuse(identity, packet.id, "key", f"what the key of {user} stands for", got)
        elif (most := self._most(said)) and not self._sweep(said):
            self._refuse(identity, packet.id, "connections", f"at most {most} connections", "one more")
        else:
            client = Client(identity, said.role, said.name, said.hart, user, said.connection, process)
            self._supersede(client)
            try:
                welcome = self._greet(client)
            except errors.VmeshError as error:
                self._refuse(identity, packet.id, "greeting", error.expected, error.got, str(error))
                return
            welcome.major, welcome.minor, welcome.name = MAJOR, MINOR, self._name
            self.clients[identity] = client
            self._answer(client, packet.id, lambda: welcome)
            self._greeted(client)

    def _may_be(self, role: Role.ValueType, name: str, process: int) -> bool | None:
        """Whether a process of this host may have this role and name; None if that is not known yet."""
        if self._processes is None:
            return True
        if known := self._processes.name_of(process):
            return may_say(known, role, name)
        if role == common.ROLE_DEVICE and self._processes.by_hand(name):
            return True
        return False if role == common.ROLE_MONITOR else None

    def _hold(self, identity: bytes, packet: Packet, process: int) -> None:
        """The monitor tells of a process once it has started it, which may be later than what that says."""
        if len(self._held) == _MAX_CLIENTS:
            self._let_go(self._held[next(iter(self._held))].until)
        packet.DiscardUnknownFields()
        self._held[identity] = _Held(packet, process, time.monotonic() + _HELD_SECONDS)

    def _let_go(self, now: float = 0.0) -> None:
        """Refuse those of whom the monitor has told nothing for too long."""
        now = now or time.monotonic()
        for identity, held in list(self._held.items()):
            if held.until > now:
                return
            del self._held[identity]
            self._refuse_process(identity, held.packet, held.process)

    def _refuse_process(self, identity: bytes, packet: Packet, process: int) -> None:
        said = packet.hello
        wanted = f"the process that is {Role.Name(said.role)} {said.name}"
        self._refuse(identity, packet.id, "process", wanted, f"process {process}")

    def _supersede(self, client: Client) -> None:
        """What still arrives by a connection in whose place this one has come is not taken any more."""
        if client.connection and client.user:
            proven = client.user, client.role, client.connection
            for former in list(self.clients.values()):
                if (former.user, former.role, former.connection) == proven:
                    del self.clients[former.identity]

    def _refuse(self, identity: bytes, packet_id: int, cause: str, expected: str, got: str, reason: str = "") -> None:
        reason = reason or f"{self._name} expected {expected}, got {got}"
        self.note_refusal(cause, reason)
        self.send_packet(identity, make(Refused(expected=expected, got=got, reason=reason), packet_id))

    def _most(self, said: Hello) -> int:
        """The number of connections that has been reached, for all or for this device; 0 if there is room."""
        if len(self.clients) >= _MAX_CLIENTS:
            return _MAX_CLIENTS
        if said.role != common.ROLE_DEVICE:
            return 0
        there = sum(each.role == said.role and each.name == said.name for each in self.clients.values())
        return _MAX_OF_DEVICE if there >= _MAX_OF_DEVICE else 0

    def _sweep(self, said: Hello) -> bool:
        """Forget the clients that are gone, which a ROUTER tells only when it sends; whether there is room then."""
        for identity in list(self.clients):
            self.send_packet(identity, Packet())
        return not self._most(said)


# What who dials may be sent: bytes of a packet, and how many of them may be unread.
_RECEIVED: dict[int, tuple[int, int]] = {
    common.ROLE_HART: (MAX_DEVICE_BYTES, QUEUE_MESSAGES),
    common.ROLE_IRQCHIP: (MAX_DEVICE_BYTES, QUEUE_MESSAGES),
    common.ROLE_DEVICE: (MAX_ANSWER_BYTES, _ANSWERS),
}


class Peer:
    """A connection to a service, from the side that dials. `identify` sets the keys, without which TCP is refused.

    With `heed_loss` the loss of a connection over TCP has `receive` raise PeerLost, when `redial` is next; `losses` is
    readable then. One that was never there is none: ZeroMQ tries again by itself, less and less often. On one host it
    is the other side that ends, which shows otherwise.

    `unasked` has what came without being an answer (Notice, DeviceUpdate), the oldest dropped beyond 1024. While
    waiting, the end of `lifeline` (a file descriptor) raises LifelineEnded; `wake` (an eventfd) ends one wait.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        said: Hello,
        *,
        lifeline: int = -1,
        wake: int = -1,
        identify: Callable[[zmq.Socket[bytes]], None] | None = None,
        heed_loss: bool = False,
    ) -> None:
        self.remote = not address.startswith("ipc://")
        if self.remote and not (is_tcp(address) and identify):
            wanted = "keys (--keys FOLDER)" if is_tcp(address) else "tcp://HOST:PORT"
            raise errors.ConfigError(f"cannot reach {address[:200]}", expected=wanted)
        self.address = address
        self.unasked: deque[Packet] = deque(maxlen=1024)
        self.said = said
        if self.remote:
            said.connection = secrets.randbits(64) | 1
        self._context = context
        self._identify = identify
        self._heed_loss = heed_loss and self.remote
        self.losses: zmq.Socket[bytes] | None = None
        self._there = False  # the connection, if losses are heeded
        self._next_id = 0
        self._poller = zmq.Poller()
        self._lifeline = lifeline
        self._wake = wake
        for fd in (lifeline, wake):
            if fd >= 0:
                self._poller.register(fd, zmq.POLLIN)
        self.socket = self._open()

    def _open(self) -> zmq.Socket[bytes]:
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        longest, unread = _RECEIVED.get(self.said.role, (MAX_PACKET_BYTES, QUEUE_MESSAGES))
        self.socket.setsockopt(zmq.MAXMSGSIZE, longest)
        self.socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
        self.socket.setsockopt(zmq.RCVHWM, unread)
        if self.remote and self._identify is not None:
            set_tcp_options(self.socket, self.address)
            self._identify(self.socket)
        self._poller.register(self.socket, zmq.POLLIN)
        if self._heed_loss:
            self._there = False
            self.losses = connection_events.follow(self.socket, _HEEDED)
            self._poller.register(self.losses, zmq.POLLIN)
        try:
            self.socket.connect(self.address)
        except zmq.ZMQError as error:
            raise errors.ConfigError(f"cannot reach {self.address}: {error.strerror}") from error
        return self.socket

    def redial(self) -> None:
        """A new connection in the place of the former; what has not gone out is dropped. `greet` it next."""
        self._poller.unregister(self.socket)
        self.abandon()
        self._open()

    def greet(self, timeout: float) -> Welcome:
        """Say Hello. `timeout`, in seconds, includes the time until the service listens.

        Raises PeerError, PeerTimeout.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = self.request(self.said, max(0.0, deadline - time.monotonic()))
                break
            except errors.PeerLost:  # before it was there: what stands between us is up, the service is not
                time.sleep(_RECONNECT_MS / 1000)
                self.redial()
        if not isinstance(answer, Welcome):
            raise mismatch(self.address, "Welcome", answer)
        if answer.major != MAJOR:
            raise errors.PeerError(
                f"{self.address}: another protocol", expected=f"{MAJOR}.x", got=f"{answer.major}.{answer.minor}"
            )
        return answer

    def request(self, body: Message, timeout: float) -> Message:
        """Send `body` and wait for its answer, at most `timeout` seconds (`math.inf`: as long as it takes).

        Raises the VmeshError that an Error stands for, PeerError for Refused, PeerTimeout.
        """
        packet_id = self.send(body)
        deadline = time.monotonic() + timeout
        while True:
            packet = self.receive(deadline - time.monotonic())
            if packet is None:
                if time.monotonic() < deadline:
                    continue  # woken up, for what is not this
                raise errors.PeerTimeout(
                    f"no answer from {self.address} within {timeout:g} s to {body.DESCRIPTOR.name}"
                )
            if packet.id != packet_id:
                if packet.id == 0:
                    self.unasked.append(packet)
                continue  # else: the answer to a request that was given up
            answer = body_of(packet)
            if isinstance(answer, common.Error):
                raise errors.from_message(answer)
            if isinstance(answer, Refused):
                raise errors.PeerError(f"{self.address} refused: {answer.reason}")
            if answer is None:
                raise mismatch(self.address, "an answer", None)
            return answer

    def say_hello(self) -> int:
        """Say Hello without waiting; gives its id."""
        return self.send(self.said)

    def watch_connection(self) -> zmq.Socket[bytes]:
        """A socket that becomes readable whenever a connection is there or lost: `is_there`."""
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        return connection_events.follow(self.socket, events)

    def send(self, body: Message) -> int:
        """Send a request without waiting; gives its id. Raises PeerError if the service does not read its socket."""
        self._next_id += 1
        self.send_packet(make(body, self._next_id))
        return self._next_id

    def send_packet(self, packet: Packet) -> None:
        """Send a packet as it is. Raises PeerError if the service does not read its socket."""
        try:
            self.socket.send(packet.SerializeToString(), zmq.NOBLOCK)
        except zmq.Again:
            raise errors.PeerError(f"{self.address} takes no more messages") from None

    def receive(self, timeout: float = 0.0) -> Packet | None:
        """The next packet, or None after `timeout` seconds. Raises PeerError for what is no packet,
        OutsideLimits, LifelineEnded."""
        ready = self._poller.poll(None if timeout == math.inf else max(0, int(timeout * 1000 + 0.999)))
        if any(where == self._lifeline for where, _ in ready):
            raise errors.LifelineEnded("the process that started this one is gone")
        if any(where == self._wake for where, _ in ready):
            os.eventfd_read(self._wake)
        if not any(where is self.socket for where, _ in ready):
            if self.losses is not None and any(where is self.losses for where, _ in ready):
                self._take_losses()  # after what came by the connection: it may be the last answer of a service
            return None
        frame = self.socket.recv(zmq.NOBLOCK)
        if self.socket.rcvmore:
            self.socket.recv_multipart(zmq.NOBLOCK)
            raise errors.PeerError(f"{self.address} sent several frames", expected="one")
        try:
            packet = parse(frame)
        except errors.BadRequest as error:
            raise errors.PeerError(f"{self.address}: {error}") from None
        body = body_of(packet)
        if body is not None and (wrong := limits.broken(body)):
            raise errors.OutsideLimits(f"{self.address}: {packet.WhichOneof('body')}.{wrong}")
        return packet

    def _take_losses(self) -> None:
        assert self.losses is not None
        event = EVENT.unpack(self.losses.recv_multipart(zmq.NOBLOCK)[0])[0]
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise errors.PeerError(f"{self.address} does not know the key of {self.said.name}")
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._there = True
        elif self._there:
            raise errors.PeerLost(f"{self.address}: the connection was lost")

    def close(self) -> None:
        self._forget_losses()
        self.socket.close()

    def abandon(self) -> None:
        """Close, and drop what has not gone out."""
        self._forget_losses()
        self.socket.close(0)

    def _forget_losses(self) -> None:
        if self.losses is not None:
            self._poller.unregister(self.losses)
            self.socket.disable_monitor()
            self.losses.close(0)
            self.losses = None


def is_there(watched: zmq.Socket[bytes]) -> bool | None:
    """The next that has happened to a connection: it is there, or lost; None if nothing has."""
    try:
        event, *_ = watched.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
    return bool(EVENT.unpack(event)[0] == zmq.EVENT_HANDSHAKE_SUCCEEDED)


def _user(frame: zmq.Frame) -> str | None:
    """The name that the sender's key stands for; empty if it came by the Unix socket, None if it came otherwise."""
    try:
        return str(frame.get("User-Id")) or None
    except zmq.ZMQError:
        return "" if str(frame.get("Peer-Address")).startswith(_UNIX_PEER) else None


def _process(frame: zmq.Frame) -> int:
    """The process that has connected to the Unix socket, as the kernel says (SO_PEERCRED); 0 if it came otherwise."""
    where = str(frame.get("Peer-Address"))  # localhost:USER:GROUP:PROCESS
    return int(where.rpartition(":")[2]) if where.startswith(_UNIX_PEER) else 0


def mismatch(address: str, expected: str, answer: Message | None) -> errors.PeerError:
    """The error for an answer of another kind than the request has."""
    got = "nothing" if answer is None else answer.DESCRIPTOR.name
    return errors.PeerError(f"{address} gave a wrong answer", expected=expected, got=got)
