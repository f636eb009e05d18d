"""Debian packages of another architecture and suite, through the host's own apt, without touching the host's state.

apt keeps lists, cache and status of this use in folders of ours; the mirror and any proxy are the host's. apt checks
the suite's signature against Debian's keyring and every package against the signed lists. Source: apt.conf(5),
apt-get(8).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmesh.guest.errors import GuestError

HELPER = Path("/usr/lib/apt/apt-helper")  # unlike `apt-get download` it goes on with a file that is there in part
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_PRINTED_URI = re.compile(r"^'(?P<uri>[^']+)' (?P<file>[^\s/]+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Deb:
    """A package file as the signed lists describe it; `size` in bytes."""

    uri: str
    file: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.file.split("_")[0]

    @property
    def version(self) -> str:
        return self.file.split("_")[1].replace("%3a", ":")


@dataclass(frozen=True, slots=True)
class Apt:
    """apt for one suite and architecture, with its state in `state`. `prepare` comes first; before packages are asked
    for by name, `update`."""

    state: Path
    suite: str
    architecture: str
    mirror: str

    def prepare(self) -> None:
        """Make the folders that apt works in."""
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()
        self._sources.write_text(f"deb [signed-by={KEYRING}] {self.mirror} {self.suite} main\n")

    def update(self) -> None:
        """Fetch the suite's lists. Raises GuestError, also where the signature does not verify."""
        self._run("apt-get", "update")

    def dependencies(self, package: str) -> tuple[str, ...]:
        """The names that `package` depends on, without versions. Raises GuestError if there is no such package."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package)
        for line in shown.splitlines():
            if line.startswith("Depends:"):
                return tuple(part.split()[0] for part in line.removeprefix("Depends:").split(","))
        return ()

    def describe(self, packages: Sequence[str]) -> tuple[Deb, ...]:
        """What `download` would fetch. Raises GuestError if a package is not in the lists."""
        printed = self._run("apt-get", "--print-uris", "download", *packages)
        return tuple(parse_printed_uris(printed, len(packages)))

    def closure(self, packages: Sequence[str]) -> tuple[Deb, ...]:
        """`packages` (names, or patterns as apt-patterns(7) has them), and all that they depend on."""
        options = ("--print-uris", "--yes", "-o", "APT::Install-Recommends=false")
        printed = self._run("apt-get", *options, "install", *packages)
        return tuple(parse_printed_uris(printed, sum(line.startswith("'") for line in printed.splitlines())))

    def download(self, debs: Sequence[Deb], folder: Path, on_progress: Callable[[int], None]) -> None:
        """Fetch `debs` into `folder`, going on with what is there in part.

        `on_progress` is told from time to time how many bytes `folder` holds. Raises GuestError.
        """
        wanted = [word for deb in debs for word in (deb.uri, str(folder / deb.file), f"SHA256:{deb.sha256}")]
        command = self._command(str(HELPER), "download-file", *wanted)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            complaint: str | None = None
            try:
                while complaint is None:
                    try:
                        _, complaint = process.communicate(timeout=_POLL_SECONDS)
                    except subprocess.TimeoutExpired:
                        on_progress(_bytes_in(folder))
            finally:
                process.terminate()  # where this was interrupted; else it has ended
        if process.returncode:
            raise GuestError(f"apt-helper failed: {_reason(complaint)}")
        on_progress(_bytes_in(folder))

    @property
    def _sources(self) -> Path:
        return self.state / "sources.list"

    def _command(self, program: str, *arguments: str) -> list[str]:
        settings = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",  # the user apt drops to may not enter a cache directory
            "Acquire::ForceHash": "SHA256",  # in what --print-uris prints; older versions (2.6) print MD5 otherwise
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": str(self.state),
            "Dir::State::Lists": str(self.state / "lists"),
            "Dir::State::status": str(self.state / "status"),
            "Dir::Cache": str(self.state / "cache"),
            "Dir::Etc::SourceList": str(self._sources),
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
        }
        return [
            program,
            "-qq",
            *(word for key, value in settings.items() for word in ("-o", f"{key}={value}")),
            *arguments,
        ]

    def _run(self, program: str, *arguments: str) -> str:
        return _output(self._command(program, *arguments))


def host_mirror() -> str:
    """The Debian mirror that the host's own apt uses. Raises GuestError if there is no apt or it knows none."""
    if not KEYRING.is_file():
        raise GuestError(f"expected Debian's keys at {KEYRING} to check packages with: install debian-archive-keyring")
    listed = _output(["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)"])
    for line in listed.splitlines():
        match line.split():
            case ["Debian", codename, uri] if "-" not in codename:  # not bookworm-security and the like
                return uri
    raise GuestError(
        "the host's apt knows no Debian mirror (or needs 'apt-get update' first): give one with --mirror URI"
    )


def require_apt() -> None:
    """Raises GuestError, with what to do instead, on a host without apt."""
    missing = [
        program for program in ("apt-get", "apt-cache", "dpkg-deb", str(HELPER)) if shutil.which(program) is None
    ]
    if missing:
        raise GuestError(
            f"this host has no {missing[0]}: Debian's guest is fetched with apt, so on a Debian or Ubuntu host; "
            "without it, give -kernel and -initrd, or use the small built-in guest"
        )


def parse_printed_uris(text: str, expected: int) -> Iterator[Deb]:
    """The files that `apt-get --print-uris download` names. Raises GuestError unless there are `expected` of them."""
    matches = [_PRINTED_URI.match(line) for line in text.splitlines() if line.startswith("'")]
    found = [match for match in matches if match]
    if len(found) != expected or len(matches) != expected:
        raise GuestError(
            f"apt-get --print-uris: expected {expected} files with SHA256, got {len(found)}: {text.strip()[:200]!r}"
        )
    for match in found:
        yield Deb(match["uri"], match["file"], int(match["size"]), match["sha256"])


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise GuestError(f"this host has no {command[0]}") from error
    # apt-get update ends with 0 even where it could not reach the mirror: an older list, or none, would be used then.
    errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed", "W: GPG"))]
    if done.returncode or errors:
        raise GuestError(f"{command[0]} failed: {_reason(done.stderr)}")
    return done.stdout


def _reason(complaint: str) -> str:
    """The first line of apt's that tells what went wrong."""
    lines = (
        [line for line in complaint.splitlines() if line.startswith(("E:", "W:"))]
        or complaint.splitlines()
        or ["(no reason)"]
    )
    return lines[0].strip()


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # apt renamed it meanwhile
            continue
    return total
