"""-netdev in QEMU's words, and what becomes of it: passt's command line, the card's, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmesh import errors
from vmesh.cli.flags.options import OptionError
from vmesh.cli.flags.parsing import parse
from vmesh.log import Log
from vmesh.loop import Loop
from vmesh.netdev import options
from vmesh.netdev.options import Forward, Stream, Tap, User
from vmesh.netdev.user import UserNetdev, command
from vmesh.qdev import net


def cards(*flags: str) -> dict[int, str]:
    """The cards' own arguments by slot."""
    asked = parse(flags)
    made = asked.parts()
    return {slot: " ".join(each.arguments) for slot, each in made.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user", User()),
        (
            "user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:5353,hostfwd=::80-:8080,ipv6=off",
            User(
                ipv6=False,
                forwards=(
                    Forward("tcp", "", 2222, 22),
                    Forward("udp", "127.0.0.1", 53, 5353),
                    Forward("tcp", "", 80, 8080),
                ),
            ),
        ),
        ("user,hostfwd=tcp::10022-10.0.2.15:22", User(forwards=(Forward("tcp", "", 10022, 22),))),
        (
            "user,hostfwd=::1-192.168.7.99:2,net=192.168.7.1/24,dhcpstart=192.168.7.99",
            User("192.168.7.0/24", guest="192.168.7.99", forwards=(Forward("tcp", "", 1, 2),)),
        ),
        ("user,net=192.168.7.1/24,dhcpstart=192.168.7.99,ipv4=on", User("192.168.7.0/24", guest="192.168.7.99")),
        ("stream,addr.type=unix,addr.path=/a/b", Stream("/a/b")),
        ("stream,server=on,addr.type=unix,addr.path=/a,,b", Stream("/a,b", server=True)),
        ("stream,addr.path=/a,guest-time=on", Stream("/a", guest_time=True)),
        ("stream,addr.path=/a,reconnect=5,addr.type=unix", Stream("/a", reconnect=5)),
        ("stream,addr.path=/a,reconnect-ms=250,addr.type=unix", Stream("/a", reconnect=0.25)),
        ("tap,ifname=tap0,script=no,downscript=no", Tap("tap0")),
        ("tap,ifname=tap0,vnet_hdr=off", Tap("tap0", offload=False)),
    ],
)
def test_what_is_asked_for_and_its_text(text: str, expected: options.Options) -> None:
    assert options.parse(text) == expected
    assert options.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "slirp",
        "user,hostfwd=tcp::2222",
        "user,hostfwd=tcp::0-:22",
        "user,hostfwd=tcp::1-:65536",
        "user,hostfwd=tcp:host:1-:1",
        "user,hostfwd=tcp::2222-10.0.2.16:22",
        "user,hostfwd=tcp::2222-guest:22",
        "user,restrict=on",
        "user,net=10.0.2.0/30",
        "user,net=ten",
        "user,dns=10.0.3.3",
        "user,ipv6=maybe",
        "user,tftp=/",
        "stream",
        "stream,addr.type=inet,addr.host=h,addr.port=1",
        f"stream,addr.type=unix,addr.path=/{'a' * 108}",
        "stream,addr.type=unix,addr.path=/a,reconnect=0",
        "stream,addr.type=unix,addr.path=/a,reconnect=soon",
        "tap",
        "tap,ifname=a-name-that-is-too-long",
        "tap,ifname=a/b",
        "tap,ifname=tap%d",
        "tap,ifname=tap0,script=/etc/qemu-ifup",
        "tap,ifname=tap0,fd=3",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        options.parse(text)


def test_passt_is_told_what_qemu_would_do() -> None:
    asked = options.parse("user,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-:5353,ipv6=off")
    assert isinstance(asked, User)
    words = " ".join(command(asked, "--fd", "7"))
    assert words == (
        "passt --foreground --quiet --stderr --fd 7 --address 10.0.2.15 --netmask 255.255.255.0 --gateway 10.0.2.2 "
        "--dns 10.0.2.3 --dns-forward 10.0.2.3 --ipv4-only -t 2222:22 -u 127.0.0.1/53:5353"
    )


def test_without_passt_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(errors.ConfigError, match="Debian's package passt"):
        UserNetdev(User(), Loop(), Log("net", Path("/dev/null")), None).start()  # type: ignore[arg-type]


def test_cards_and_their_netdevs() -> None:
    made = cards(
        *("-netdev", "stream,id=a,addr.type=unix,addr.path=/a"),
        *("-nic", "user,mac=52:54:00:00:00:09"),
        *("-device", "virtio-net-device,netdev=a,host_mtu=9000,packed=on"),
        *("-nic", "tap,ifname=t0,script=no,id=third,model=virtio"),
        *("-nic", "none"),
    )
    assert made == {
        7: "--netdev user,net=10.0.2.0/24 --mac 52:54:00:00:00:09",
        6: "--netdev stream,addr.type=unix,addr.path=/a,reconnect=1 --mac 52:54:00:12:34:57 --host-mtu 9000 --packed",
        5: "--netdev tap,ifname=t0,script=no --mac 52:54:00:12:34:58",
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-netdev", "user"], "expected id=NAME"),
        (["-netdev", "user,id=n"], "-netdev id=n: expected a -device with netdev=n"),
        (["-device", "virtio-net-device"], "expected netdev=NAME"),
        (["-device", "virtio-net-device,netdev=n"], "there is no 'n'"),
        (["-netdev", "user,id=n", "-netdev", "user,id=n"], "expected each id once"),
        (["-netdev", "user,id=n", *["-device", "virtio-net-device,netdev=n"] * 2], "netdev 'n': expected one device"),
        (["-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n,mac=1"], "expected mac=XX"),
        (["-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n,host_mtu=1"], "host_mtu=1: expected 68"),
        (["-nic", "user,model=e1000"], "expected model=virtio-net-device"),
    ],
)
def test_what_does_not_fit_together(flags: list[str], said: str) -> None:
    with pytest.raises(OptionError) as error:
        parse(flags)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_usage_names_every_kind() -> None:
    for kind in ("user", "stream", "tap"):
        assert kind in net.NETDEV_USAGE
