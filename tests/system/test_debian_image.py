"""A disk as the root of a Debian machine: handed over to by the initramfs, and a whole Debian that boots to a login."""

from __future__ import annotations

import hashlib
import http.server
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import BRIEF, PROMPT, Terminal
from tests.waiting import LIMIT
from vmesh.guest import Guest, GuestError, image
from vmesh.guest.cache import cache_directory

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
BIG_FILE = 100_000_000
ROOT_PROMPT = "root@debian:~# "


def drive(disk: Path) -> tuple[str, str]:
    return "-drive", f"file={disk},format=raw,if=virtio"


@pytest.fixture
def small_disk(peer: Callable[[str], str], debian: Guest, tmp_path: Path) -> Path:
    """An ext4 disk with busybox on it, and an init that tells where it is; its last step waits for the terminal."""
    peer("mke2fs")
    tree = tmp_path / "tree"
    for folder in ("bin", "sbin", "dev", "proc", "sys"):
        (tree / folder).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes((debian.kernel.parent / "busybox").read_bytes())
    (tree / "bin/sh").symlink_to("busybox")
    init = tree / "sbin/init"
    init.write_text(
        "#!/bin/sh\nexport PATH=/bin\necho process $$\ngrep ' / ' /proc/mounts\nls -d /init\nstty sane\npoweroff -f\n"
    )
    init.chmod(0o755)
    (tree / "bin/busybox").chmod(0o755)
    (tree / "sbin/other").hardlink_to(init)
    image.make_file_system(tree, tmp_path / "disk.img", 16 << 20)
    return tmp_path / "disk.img"


@pytest.mark.parametrize(
    ("words", "mounted"), [("", "ro"), ("rw", "rw"), ("init=/sbin/other rootfstype=ext4 rw ro", "ro")]
)
def test_root_on_a_disk_goes_on_with_what_is_there(run: Run, small_disk: Path, words: str, mounted: str) -> None:
    machine = run(*drive(small_disk), "-append", f"{BRIEF} root=/dev/vda {words}", pipes=True)

    assert machine.wait() == 0
    # The kernel does not wait for what the programs' terminal has yet to bring out.
    said = re.sub(r"\[ *[\d.]+\] reboot: Power down\n", "", machine.output)
    assert "\nprocess 1\n" in said
    assert re.search(rf"^/dev/\w+ / ext4 {mounted},", said, re.MULTILINE), said
    assert "ls: /init: No such file or directory" in said


@pytest.mark.parametrize("words", ["root=/dev/vdb", "root=/dev/vda init=/nothing", "root=/dev/vda rootfstype=ext5"])
def test_root_that_is_not_there_is_told_and_the_shell_comes(run: Run, small_disk: Path, words: str) -> None:
    machine = run(*drive(small_disk), "-append", f"{BRIEF} {words}", pipes=True)

    assert machine.wait() == 0
    assert re.search(rf"^{words.split()[0]}: expected a file system of type ", machine.output, re.MULTILINE)
    assert PROMPT in machine.output


@pytest.fixture(scope="session")
def disk(debian: Guest) -> Path:
    """Debian's disk, made once for the packages in image.lock and this version's recipe."""
    folder = cache_directory() / "image"
    folder.mkdir(exist_ok=True)
    recipe = repr((image.LOCK.read_text(), image.PATHS, image.FILES, image.SOURCES, image.CONFIGURE))
    path = folder / f"debian-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.img"
    if not path.exists():
        try:
            image.require_tools()
            image.fetch_packages(folder)
        except GuestError as error:
            pytest.skip(f"Debian's disk cannot be made: {error}")
        for old in folder.glob("debian-*.img"):
            old.unlink()
        image.build(path, image.parse_size(image.DEFAULT_SIZE))
    return path


@dataclass(frozen=True, slots=True)
class Download:
    """A file on a web server at the host's loopback."""

    port: int
    sha256: str


@pytest.fixture
def big_file() -> Iterator[Download | None]:
    """100 MB of it, seeded; None without passt, which leads a guest there."""
    if shutil.which("passt") is None:
        yield None
        return
    block = random.Random(4).randbytes(BIG_FILE)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(block)))
            self.end_headers()
            self.wfile.write(block)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Download(server.server_port, hashlib.sha256(block).hexdigest())
        server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # making the disk takes a minute of two cores, and it is a whole distribution that boots
def test_debian_boots_to_a_login_fetches_100_mb_and_powers_off(run: Run, disk: Path, big_file: Download | None) -> None:
    card = ("-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n") if big_file else ()
    append = "quiet root=/dev/vda systemd.default_device_timeout_sec=3600"  # of the guest: a busy host takes its time
    machine = run("-m", "512M", *drive(disk), "-snapshot", *card, "-append", append)
    machine.limit = 4 * LIMIT
    machine.expect("debian login: ")
    machine.type("root\n")
    machine.expect(ROOT_PROMPT)
    machine.type("bind 'set enable-bracketed-paste off'; stty cols 200; export TERM=dumb\n")
    machine.expect(ROOT_PROMPT)

    assert "running" in machine.ask("systemctl is-system-running --wait", ROOT_PROMPT)
    assert "/dev/vda ext4 rw" in machine.ask("findmnt -rno SOURCE,FSTYPE,OPTIONS /", ROOT_PROMPT)
    assert machine.ask("dpkg --audit && dpkg-query -W -f '${Status}\\n' | sort -u", ROOT_PROMPT) == (
        "install ok installed\n"
    )
    assert "-rwsr-xr-x 1 root root" in machine.ask("ls -l /usr/bin/passwd", ROOT_PROMPT)
    assert machine.ask("find / -xdev '(' -nouser -o -nogroup ')'", ROOT_PROMPT) == ""

    if big_file:  # the address is systemd-networkd's, by DHCP
        fetched = machine.ask(f"wget -qO- http://10.0.2.2:{big_file.port}/ | sha256sum", ROOT_PROMPT)
        assert fetched == f"{big_file.sha256}  -\n"
    assert machine.ask("journalctl -k -p err -o cat --no-pager", ROOT_PROMPT) in ("", "-- No entries --\n")

    machine.type("poweroff\n")
    assert machine.wait() == 0
    assert "reboot: Power down" in machine.output
