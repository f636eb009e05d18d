"""Services that hang, fail or talk nonsense, and nonsense at the gateway's socket."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import time
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.faults.conftest import DEADLINE, Rig
from tests.waiting import wait_for
from vmesh.client import GatewayError, MachineClient
from vmesh.v1 import gateway_pb2

PATIENCE = 10  # seconds: what is well on a busy host has answered by then
QUICK = ("-health-interval", "0.1", "-health-limit", str(PATIENCE))


def _state(client: MachineClient, name: str) -> str:
    return next(service.state for service in client.status().services if service.name == name)


def test_hanging_service_is_named_with_its_last_words_and_killed(rig: Rig) -> None:
    launcher = rig.start(*QUICK)
    rig.wait_running()
    rig.order("cpu", "say about to think\nhang")
    _, stderr = launcher.communicate()
    (line,) = stderr.decode().splitlines()
    assert "service 'cpu' (pid " in line
    assert "hangs" in line
    assert "about to think" in line
    assert launcher.returncode == 1
    rig.wait_clean()


def test_hanging_device_is_killed_and_started_again(rig: Rig) -> None:
    launcher = rig.start(*QUICK)
    rig.wait_running()
    rig.order("uart0", "hang")
    rig.wait_life("uart0", 2)
    with rig.client() as client:
        errors = {service.name: service.last_error for service in client.status().services}
        assert errors == {"memory": "", "cpu": "", "uart0": f"hangs: it owes an answer for {PATIENCE} s", "test": ""}
        client.quit()
    assert launcher.wait() == 0
    rig.wait_clean()


def test_fault_notice_ends_the_machine_with_its_reason(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("cpu", "fault the blob does not load")
    _, stderr = launcher.communicate()
    assert stderr.decode() == "vmesh run: machine 'm': service 'cpu': the blob does not load\n"
    assert launcher.returncode == 1
    rig.wait_clean()


def test_guest_memory_that_is_lost_stops_the_machine_for_good(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "lost everything, a device says")  # which is not its to say
    rig.wait_life("uart0", 2)
    assert rig.wait_running()
    rig.order("cpu", "lost ram.seg was cut short")
    rig.wait_running("paused")
    rig.order("memory", "lost ram.seg was cut short, too")
    rig.order("uart0", "exit 3")  # and has no next life
    with rig.client() as client:
        wait_for(lambda: _state(client, "uart0") == "dead", "the end of the device")
        status = client.status()
        why = "guest memory is lost: ram.seg was cut short"
        assert (status.run_state, status.last_error) == ("internal-error", why)
        assert status.warnings == [f"cpu: {why}; the machine can be looked at and ended, no more"]
        client.pause()  # is no error
        for refused in (client.resume, client.reset, partial(client.snapshot_save, rig.runtime / "s")):
            with pytest.raises(GatewayError, match="the machine can be looked at and ended, no more"):
                refused()
        client.quit()
    _, stderr = launcher.communicate()
    assert stderr.decode().count(why) == 1
    assert launcher.returncode == 0
    rig.wait_clean()


@pytest.mark.parametrize("status", [0, 5, 255])
def test_guest_power_off_gives_the_exit_status_and_all_output(rig: Rig, status: int) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "write 0123456789")
    rig.order("test", f"poweroff {status}")
    stdout, stderr = launcher.communicate()
    assert (launcher.returncode, stderr) == (status, b"")
    assert stdout.startswith(b"guest is up\n")
    rig.wait_clean()


def test_guest_reset_resets_every_service_in_order_and_goes_on(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("test", "reset")
    wait_for(lambda: rig.asked("cpu")[-1:] == ["resume"], "the cpu to go on")
    assert rig.asked("cpu") == ["hello", "pause", "drain", "reset", "resume"]
    assert rig.asked("uart0") == ["hello", "pause", "drain", "reset", "resume"]
    rig.order("test", "poweroff 0")
    assert launcher.wait() == 0
    rig.wait_clean()


def test_guest_reset_with_no_reboot_ends(rig: Rig) -> None:
    launcher = rig.start("-no-reboot")
    rig.wait_running()
    rig.order("test", "reset")
    assert launcher.wait() == 0
    assert rig.asked("cpu") == ["hello", "shutdown"]
    rig.wait_clean()


def test_unparsable_packets_from_a_service_are_survived(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    rig.order("uart0", "garbage")
    with rig.client() as client:
        wait_for(lambda: not (rig.machine.path / "uart0.do").exists(), "the stand-in to follow")
        assert client.status().state == gateway_pb2.MACHINE_RUNNING
        client.quit()
    assert launcher.wait() == 0


def test_garbage_at_the_gateway_is_survived(rig: Rig) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    launcher = rig.start()
    rig.wait_running()
    with rig.client() as client:
        client.status()
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(os.fspath(rig.machine.gateway))
                preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if chance.random() < 0.5 else b""
                peer.sendall(preface + chance.randbytes(chance.randrange(1, 5000)))
        assert client.status().state == gateway_pb2.MACHINE_RUNNING
        client.quit()
    assert launcher.wait() == 0
    rig.wait_clean()


def test_gateway_pauses_resumes_and_refuses(rig: Rig) -> None:
    launcher = rig.start("-S")
    rig.wait_running("paused")
    with rig.client() as client:
        assert client.status().state == gateway_pb2.MACHINE_PAUSED
        client.reset()
        assert client.status().state == gateway_pb2.MACHINE_PAUSED
        client.resume()
        assert client.status().state == gateway_pb2.MACHINE_RUNNING
        assert [hart.pc for hart in client.status().harts] == [0x1000]
        client.pause()
        client.pause()
        status = client.status()
        assert {service.name: service.state for service in status.services} == dict.fromkeys(
            ("memory", "cpu", "uart0", "test"), "paused"
        )
        with pytest.raises(GatewayError, match="there is 1 hart"):
            client.registers(7)
        client.quit()
    assert launcher.wait() == 0
    rig.wait_clean()


def test_sigterm_ends_the_machine_in_order(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    launcher.send_signal(signal.SIGTERM)
    _, stderr = launcher.communicate()
    assert (launcher.returncode, stderr) == (0, b"vmesh: terminated by SIGTERM\n")
    assert rig.asked("cpu") == ["hello", "shutdown"]
    rig.wait_clean()


def test_a_name_in_use_is_refused(rig: Rig) -> None:
    first = rig.start()
    rig.wait_running()
    second = rig.start()
    _, stderr = second.communicate()
    assert second.returncode == 1
    assert stderr == b"vmesh run: machine name 'm' is in use (vmesh ps lists the machines)\n"
    first.send_signal(signal.SIGTERM)
    first.wait()
    rig.wait_clean()


def test_a_stopped_monitor_blames_nobody_when_it_goes_on(rig: Rig) -> None:
    launcher = rig.start(*QUICK)
    monitor = rig.wait_running().pid
    os.kill(monitor, signal.SIGSTOP)
    time.sleep(PATIENCE + 2)
    os.kill(monitor, signal.SIGCONT)
    with rig.client() as client:
        assert client.status().state == gateway_pb2.MACHINE_RUNNING
        client.quit()
    assert launcher.wait() == 0


def test_gateway_has_the_standard_health_service_and_reflection(rig: Rig) -> None:
    launcher = rig.start()
    rig.wait_running()
    wait_for(rig.machine.gateway.exists, "the gateway")
    assert rig.machine.gateway.stat().st_mode & 0o077 == 0
    with grpc.insecure_channel(f"unix:{rig.machine.gateway}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # the package's type information has no methods
        for service in ("", "vmesh.v1.Machine"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=DEADLINE)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "vmesh.v1.Machine" in database.get_services()
        described = DescriptorPool(database).FindServiceByName("vmesh.v1.Machine")
        ours = gateway_pb2.DESCRIPTOR.services_by_name["Machine"]
        assert [method.name for method in described.methods] == [method.name for method in ours.methods]
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == 0
