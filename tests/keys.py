"""Keys for mutual TLS, in QEMU's file names, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_keys(folder: Path, openssl: str) -> Path:
    """An authority of its own, and a server (127.0.0.1, localhost) and a client that it vouches for."""
    folder.mkdir()

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-days", "2", "-subj", "/CN=authority")
    for side in ("server", "client"):
        (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        run("req", *key, "-keyout", f"{side}-key.pem", "-out", "request.pem", "-subj", f"/CN={side}")
        run("x509", "-req", "-in", "request.pem", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", f"{side}-cert.pem")  # fmt: skip
    return folder
