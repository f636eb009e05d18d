"""Debian's 9p driver on a shared folder: files, a long list, links that lead out, and a device that is killed."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from vmesh.guest import Guest

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
FILES = 300  # in a folder
MOUNT = "mount -t 9p -o trans=virtio,msize=65536 host /mnt"
KILLS = 4  # a device that dies more often within a short time is given up


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to share, beside a file that is not in it."""
    (tmp_path / "secret").write_text("outside\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "noise").write_bytes(random.Random(3).randbytes(3 << 20))
    return folder


def flags(folder: Path, model: str = "none", properties: str = "") -> tuple[str, ...]:
    share = f"local,path={folder},mount_tag=host,security_model={model}{properties}"
    return ("-append", BRIEF, "-virtfs", share)


@pytest.mark.parametrize("packed", [False, True])
def test_what_the_guest_reads_writes_and_lists(host: Host, debian: Guest, folder: Path, packed: bool) -> None:
    many = folder / "many"
    many.mkdir()
    for number in range(FILES):
        (many / f"file {number}").touch()
    commands = [
        MOUNT,
        "cd /mnt; sha256sum noise",
        "ls many | sha256sum; ls many | wc -l",
        "dd if=/dev/urandom of=new bs=60k count=20 conv=fsync 2>/dev/null; sha256sum new",
        "mkdir -p a/b; mv new a/b/moved; ln -s b/moved a/link; sha256sum <a/link",
        "ln a/b/moved a/other; chmod 640 a/other; stat -c '%a %h' a/b/moved",
        "echo one >text; echo two >>text; cat text",
        "rm -r many && ls",
    ]
    listed = hashlib.sha256("".join(sorted(f"file {number}\n" for number in range(FILES))).encode()).hexdigest()
    device = ["-fsdev", f"local,id=f,path={folder},security_model=none"]
    device += ["-device", f"virtio-9p-device,fsdev=f,mount_tag=host,packed={'on' if packed else 'off'}"]

    answer = host.vmesh("run", "-append", BRIEF, *device, stdin="\n".join(commands) + "\n")

    written = hashlib.sha256((folder / "a" / "b" / "moved").read_bytes()).hexdigest()
    assert f"{hashlib.sha256((folder / 'noise').read_bytes()).hexdigest()}  noise" in answer
    assert f"{listed}  -\n{FILES}\n" in answer
    assert f"{written}  new" in answer
    assert f"{written}  -" in answer
    assert "\n640 2\n" in answer
    assert "\none\ntwo\n" in answer
    assert (folder / "text").read_text() == "one\ntwo\n"
    assert os.readlink(folder / "a" / "link") == "b/moved"
    assert not many.exists()


def test_links_do_not_lead_out(host: Host, debian: Guest, folder: Path) -> None:
    secret = folder.parent / "secret"
    (folder / "absolute").symlink_to(secret)
    (folder / "up").symlink_to("../secret")
    commands = [
        MOUNT,
        "cd /mnt; ln -s ../../../../../../etc passwd; ln -s ../secret mine",
        "for f in absolute up mine passwd/shadow ../secret; do cat $f; echo bad >$f; done",
        "readlink absolute; echo tried",
    ]

    answer = host.vmesh("run", *flags(folder), stdin="\n".join(commands) + "\n")

    assert f"{secret}\ntried\n" in answer
    assert "outside" not in answer
    assert secret.read_text() == "outside\n"


def test_a_folder_with_the_guests_owners_and_one_to_read(run: Run, debian: Guest, folder: Path) -> None:
    (folder / "mine").mkdir()
    try:
        os.setxattr(folder / "mine", "user.test", b"")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    command = (
        f"mkdir /tmp/r; {MOUNT}; {MOUNT.replace(' host /mnt', ' other /tmp/r')}; cd /mnt; touch f; chown 7:8 f; "
        "chmod 4755 f; ln -s /etc l; stat -c '%u %g %a' f; readlink l; ls /tmp/r; touch /tmp/r/x; rm /tmp/r/noise; "
        "cat /tmp/r/noise | wc -c"
    )
    machine = run(
        *("-virtfs", f"local,path={folder / 'mine'},mount_tag=host,security_model=mapped-xattr"),
        *("-virtfs", f"local,path={folder},mount_tag=other,security_model=none,readonly=on"),
        *("-append", f'{BRIEF} vmesh.run="{command}"'),
        pipes=True,
    )

    assert machine.wait() == 0
    assert "\n7 8 4755\n/etc\nmine   noise\n" in machine.output, machine.output
    assert machine.output.count("Read-only file system") == 2
    assert f"\n{3 << 20}\n" in machine.output
    assert (folder / "mine" / "f").stat().st_uid == os.getuid()
    assert not (folder / "mine" / "l").is_symlink()


def test_a_device_that_is_killed_does_each_request_once(host: Host, run: Run, debian: Guest, folder: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    machine = run(*flags(folder), "-name", "killed")
    machine.expect(PROMPT)
    machine.ask(MOUNT)
    work = "mkdir d$i && echo $i >d$i/f && mv d$i/f d$i/g && ln -s x d$i/l && rm d$i/l && echo more >>d$i/g"
    script = (
        f"exec 5<noise\ni=0\nuntil [ -e end ]; do i=$((i+1)); {work} || echo FAILED $i; done\n"
        "sha256sum <&5; echo finished $i rounds\n"
    )
    (folder / "work").write_text(script)
    machine.type("cd /mnt && sh work\n")

    killed = set[int]()
    for _ in range(KILLS):
        pid = host.next_life("killed", "share0", killed)
        time.sleep(moments.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    (folder / "end").touch()
    machine.expect("\nfinished ")
    rounds = int(machine.expect(" rounds\n"))

    assert "FAILED" not in machine.output
    assert hashlib.sha256((folder / "noise").read_bytes()).hexdigest() in machine.output
    for number in range(1, rounds + 1):
        made = folder / f"d{number}"
        assert os.listdir(made) == ["g"]
        assert (made / "g").read_text() == f"{number}\nmore\n"
    machine.type("\x01x")
    assert machine.wait() == 0
