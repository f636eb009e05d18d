"""The packages of the default guest, by content: the same guest everywhere, whatever a mirror's lists say today.

A mirror keeps a package until a point release of the suite replaces it: `vmesh guest fetch` then takes the suite's
current ones, by its signed lists. To renew: `vmesh guest fetch --refresh`, and the manifest that it writes.
"""

from __future__ import annotations

from vmesh.guest.apt import Deb

_POOL = (
    (
        "pool/main/l/linux",
        "linux-image-6.12.107+deb13-riscv64_6.12.107-1_riscv64.deb",
        112012420,
        "abe9f65d74b434692149482b031db7a2aaf832921e09f69f775293c0e0c5799c",
    ),
    (
        "pool/main/o/opensbi",
        "opensbi_1.6-1_all.deb",
        204072,
        "dc4a43bd21a0ca11771ed8b19ee6fa8476d1d0f4976bd0b27c0357c699d27e1e",
    ),
    (
        "pool/main/u/u-boot",
        "u-boot-qemu_2025.01-3+deb13u1_all.deb",
        2330704,
        "a3751b5d36a411457b2e7a2834cdce0e5d40493e6588a65d51c5603740a0c71c",
    ),
    (
        "pool/main/b/busybox",
        "busybox-static_1.37.0-6+b9_riscv64.deb",
        941532,
        "4add476d2b185c5b487c285b38d790f0881a7e4a8e2ddde835f917e770eb8633",
    ),
)


def pinned(mirror: str) -> tuple[Deb, ...]:
    """The packages, to be had from `mirror`."""
    root = mirror.rstrip("/")
    return tuple(Deb(f"{root}/{folder}/{file}", file, size, sha256) for folder, file, size, sha256 in _POOL)
