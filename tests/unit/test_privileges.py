"""What is left to a service of the privileges that it was started with."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vmesh.spawn import python

CODE = """
import os, subprocess, sys
from vmesh import privileges
privileges.drop({privileges.Capability.DAC_OVERRIDE} if sys.argv[1:] else ())
print(open("/proc/self/status").read(), flush=True)
subprocess.run(["cat", "/proc/self/status"])
"""


def status(*arguments: str) -> list[dict[str, str]]:
    """Of a process that has dropped its privileges, and of one that it has started."""
    command = [*python("vmesh")[:2], "-c", CODE, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = re.findall(r"^(\w+):\s*(\S*)", said, re.MULTILINE)
    half = len(fields) // 2
    return [dict(fields[:half]), dict(fields[half:])]


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_not_needed_is_given_up(keep: bool) -> None:
    root = int(re.findall(r"^CapEff:\s*(\S+)", Path("/proc/self/status").read_text(), re.MULTILINE)[0], 16) & 2
    for each in status(*["keep"] * keep):
        assert each["NoNewPrivs"] == "1"
        assert int(each["CapEff"], 16) == (2 if keep and root else 0)
        assert int(each["CapPrm"], 16) == (2 if keep and root else 0)
        assert int(each["CapInh"], 16) == 0
