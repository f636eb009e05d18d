"""Guests: something to boot for a user who brings nothing.

    guest.find()            the Debian guest in the cache, or None
    guest.default(scratch)  that one, or else the small guest that the project builds itself, written into `scratch`
    guest.fetch.main(argv)  `vmesh guest fetch`: fill the cache (imported on demand)
    guest.image.main(argv)  `vmesh guest image`: a disk with Debian on it (imported on demand)

A Guest has the values of the flags -bios, -kernel, -initrd and -append.

cache      where guests are kept and how they are found
fetch      Debian packages to kernel, firmware and initramfs
image      a disk with Debian on it: image.lock's packages, configured in a machine
apt        the host's apt, for another suite and architecture
pinned     which packages the default guest is made of
rootfs     packages to the tree of a root file system
modules    drivers from the kernel's package
initramfs  busybox, drivers and an /init
tiny       a bare-metal guest, for hosts without apt
"""

from __future__ import annotations

from pathlib import Path

from vmesh.guest.cache import Guest, find
from vmesh.guest.errors import GuestError

__all__ = ["Guest", "GuestError", "default", "find"]


def default(scratch: Path) -> Guest:
    """What `vmesh run` boots when it is given neither -kernel nor -bios. Files that must be made go to `scratch`."""
    found = find()
    if found is not None:
        return found
    from vmesh.guest import tiny

    return tiny.guest(scratch)
