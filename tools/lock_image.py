"""Renew vmesh/guest/image.lock: the current packages of Debian's disk, by lists whose signature apt has verified."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from vmesh.guest import image
from vmesh.guest.apt import Apt, host_mirror
from vmesh.guest.cache import SUITE
from vmesh.guest.errors import GuestError
from vmesh.guest.fetch import ARCHITECTURE


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="vmesh-lock-") as state:
        apt = Apt(Path(state), SUITE, ARCHITECTURE, host_mirror())
        apt.prepare()
        apt.update()
        root = apt.mirror.rstrip("/") + "/"
        debs = apt.closure(image.PACKAGES)
    image.LOCK.write_text("".join(f"{deb.sha256} {deb.size:>8} {deb.uri.removeprefix(root)}\n" for deb in debs))


if __name__ == "__main__":
    try:
        main()
    except GuestError as error:
        sys.exit(f"lock_image: {error}; {image.LOCK} is as it was")
