"""A device written from proto/ alone: pyzmq, the generated messages, and nothing else of vmesh.

It has one word at offset 0 of its region: writing it (posted) stores the value and raises the line if the value is odd;
reading it (a shadow once it has been written, else sync) gives the value. Offset 4 counts the writes (sync).

Usage: foreign_device.py MACHINE_DIRECTORY NAME BASE IRQ
"""

import os
import sys

import zmq

from vmesh.v1 import bus_pb2, common_pb2, lifecycle_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet

WINDOW = 64


def main() -> None:
    directory, name, base, irq = sys.argv[1], sys.argv[2], int(sys.argv[3], 0), int(sys.argv[4])
    os.umask(0o077)
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    endpoint = f"ipc://{directory}/{name}.sock"
    router.bind(endpoint)
    attach(context, directory, name, base, irq, endpoint)

    roles: dict[bytes, int] = {}
    done: dict[bytes, int] = {}
    irqchip = b""
    value = writes = sequence = 0

    def current() -> bus_pb2.DeviceUpdate:
        return bus_pb2.DeviceUpdate(
            epoch=1,
            sequence=sequence,
            shadows=[bus_pb2.ShadowValue(region=0, offset=0, size=4, value=value)],
            lines=[bus_pb2.LineLevel(line=0, level=bool(value & 1))],
        )

    while True:
        sender, frame = router.recv_multipart()
        packet = Packet.FromString(frame)
        answer = Packet(id=packet.id)
        body = packet.WhichOneof("body")
        if body == "hello":
            roles[sender] = packet.hello.role
            answer.welcome.CopyFrom(
                common_pb2.Welcome(
                    major=1, minor=0, name=name, kind="foreign", epoch=1, window=WINDOW, done=done.get(sender, 0)
                )
            )
            router.send_multipart([sender, answer.SerializeToString()])
            if packet.hello.role == common_pb2.ROLE_IRQCHIP:
                irqchip = sender
                sequence += 1
                router.send_multipart([irqchip, Packet(device_update=current()).SerializeToString()])
            continue
        if sender not in roles:
            answer.refused.CopyFrom(common_pb2.Refused(expected="Hello", got=str(body), reason="say Hello first"))
        elif body == "access_batch" and roles[sender] == common_pb2.ROLE_HART:
            batch = packet.access_batch
            result = 0
            changed = False
            for number, access in enumerate(batch.accesses, batch.sequence):
                if number <= done.get(sender, 0):
                    continue
                done[sender] = number
                if access.write:
                    value, writes, changed = access.value, writes + 1, True
                else:
                    result = writes if access.offset == 4 else value
            answer.batch_done.CopyFrom(
                bus_pb2.BatchDone(epoch=1, done=done.get(sender, 0), value=result, credits=WINDOW)
            )
            if changed:
                sequence += 1
                answer.batch_done.update.CopyFrom(current())
        elif body == "health":
            answer.health_report.CopyFrom(
                lifecycle_pb2.HealthReport(
                    phase=lifecycle_pb2.SERVICE_RUNNING, name=name, kind="foreign", epoch=1, pid=os.getpid()
                )
            )
        elif body == "shutdown":
            answer.done.SetInParent()
            router.send_multipart([sender, answer.SerializeToString()])
            break
        else:
            answer.error.CopyFrom(common_pb2.Error(code=common_pb2.ERROR_BAD_REQUEST, text=f"no {body} here"))
        router.send_multipart([sender, answer.SerializeToString()])
    context.destroy(linger=200)


def attach(
    context: zmq.Context[zmq.Socket[bytes]], directory: str, name: str, base: int, irq: int, endpoint: str
) -> None:
    """Say Hello to the memory service, then what this device is."""
    memory = context.socket(zmq.DEALER)
    memory.setsockopt(zmq.RCVTIMEO, 60_000)
    memory.connect(f"ipc://{directory}/memory.sock")

    def ask(packet: Packet) -> Packet:
        memory.send(packet.SerializeToString())
        answer = Packet.FromString(memory.recv())
        assert answer.id == packet.id, answer
        return answer

    hello = common_pb2.Hello(major=1, minor=0, role=common_pb2.ROLE_DEVICE, name=name)
    assert ask(Packet(id=1, hello=hello)).WhichOneof("body") == "welcome"
    description = bus_pb2.Description(
        name=name,
        kind="foreign",
        state_type="example.ForeignState",
        state_version=1,
        epoch=1,
        endpoint=endpoint,
        regions=[
            bus_pb2.Region(
                name="words",
                base=base,
                size=8,
                access_sizes=4,
                registers=[
                    bus_pb2.Register(
                        name="value", offset=0, size=4, read=bus_pb2.READ_SHADOW, write=bus_pb2.WRITE_POSTED
                    )
                ],
            )
        ],
        lines=[bus_pb2.Line(name="odd", irq=irq)],
    )
    attached = ask(Packet(id=2, attach=memory_pb2.Attach(description=description)))
    if attached.WhichOneof("body") != "attached":
        sys.exit(f"{name}: {attached.error.text}")


if __name__ == "__main__":
    main()
