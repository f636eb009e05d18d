"""Fill build/image, of which deploy/Dockerfile makes the container image: `make image` calls this.

site/   vmesh and the packages of deploy/requirements.lock, as compiled for the Python that runs this
guest/  the default guest, if it is cached
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from vmesh.guest import cache
from vmesh.spawn import python

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "image"
LOCK = ROOT / "deploy" / "requirements.lock"
_PIP = python("pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--no-compile")


def main() -> None:
    packages, site, guest = TARGET / "packages", TARGET / "site", TARGET / "guest"
    wanted = f"{sys.version}\n{sha256(LOCK.read_bytes()).hexdigest()}\n"
    mark = TARGET / "lock"
    if not mark.exists() or mark.read_text() != wanted:  # the packages stay while the lock does
        shutil.rmtree(TARGET, ignore_errors=True)
        _install(packages, "--require-hashes", "-r", str(LOCK))
        for tests in [path for path in packages.rglob("tests") if path.is_dir()]:
            shutil.rmtree(tests, ignore_errors=True)
        mark.write_text(wanted)
    for folder in (site, guest):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(packages, site, copy_function=os.link)
    _install(site, "--no-build-isolation", str(ROOT))
    _copy_guest(guest)


def _install(target: Path, *what: str) -> None:
    subprocess.run([*_PIP, "--target", str(target), *what], check=True)
    shutil.rmtree(target / "bin", ignore_errors=True)


def _copy_guest(target: Path) -> None:
    """What a boot needs of the cached guest, not what it was made of. Without one the image boots the small guest."""
    target.mkdir()
    if cache.find() is None:
        return
    found = cache.cache_directory()
    manifest = cache.read_manifest(found)
    assert manifest is not None
    (target / found.name).mkdir()
    shutil.copy2(found / cache.MANIFEST, target / found.name)
    shutil.copytree(found / manifest.directory, target / found.name / manifest.directory)


if __name__ == "__main__":
    main()
