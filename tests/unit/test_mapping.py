"""Mapped files that are cut short, in processes of their own: what dies, what goes on, and what is said."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.file_systems import mounted

SIZE = 64 << 10
_BEGIN = f"""
import ctypes, mmap, os, signal, struct, sys, threading, zlib
from pathlib import Path
from vmesh import mapping, segment
path = Path(sys.argv[1])
segment.create(path, {SIZE})
shared = segment.attach(path, writable=True)
shared[:5] = b"there"
libc = ctypes.CDLL(None)
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
"""
_OUTLIVE = """
causes = []
mapping.outlive(causes.append)
os.truncate(path, 0)
"""


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "m" / "ram.seg"
    path.parent.mkdir()
    command = [sys.executable, "-P", "-c", _BEGIN + script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)


TOUCHES = {
    "a slice": "bytes(memoryview(shared)[8192:8200])",
    "an item": "memoryview(shared).cast('Q')[5]",
    "a store": "memoryview(shared)[SIZE - 1] = 1",
    "a structure": "struct.unpack_from('<IIQ', shared, 16)",
    "an address": "ctypes.c_uint8.from_address(mapping._start(shared) + 4096).value",
    "without the lock": "zlib.crc32(shared)",
    "native code": "libc.memset(mapping._start(shared) + 4096, 1, 4096)",
    "another thread": "thread = threading.Thread(target=lambda: shared[0]); thread.start(); thread.join()",
    "a mapping to read": "bytes(reader)",
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_a_process_ends_with_one_line(tmp_path: Path, touch: str) -> None:
    done = run(
        tmp_path,
        f"SIZE, reader = {SIZE}, segment.attach(path, writable=False)\nos.truncate(path, 10)\nos.truncate(path, 0)\n"
        f"{TOUCHES[touch]}\nprint('went on')",
    )
    line = f"{tmp_path}/m/ram.seg was cut short: 0 of {SIZE} bytes are left\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.parametrize("touch", TOUCHES)
def test_one_that_outlives_it_goes_on_with_zeros(tmp_path: Path, touch: str) -> None:
    done = run(
        tmp_path,
        f"SIZE, reader = {SIZE}, segment.attach(path, writable=False)\n{_OUTLIVE}{TOUCHES[touch]}\n"
        "told = len(causes)\n"
        "assert shared[:5] == bytes(5)\n"
        "shared[:4] = b'mine'\n"
        "assert shared[:4] == b'mine' and path.stat().st_size == 0\n"
        "print(told, causes[0])",
    )
    cause = f"1 {tmp_path}/m/ram.seg was cut short: 0 of {SIZE} bytes are left\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, cause, "")


def test_what_is_left_of_it_and_other_mappings_stay(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "other = segment.create(path.with_name('o'), 8192) or segment.attach(path.with_name('o'), writable=True)\n"
        f"other[:5] = b'other'\n{_OUTLIVE.replace('0)', '5000)')}"
        "shared[20000] = shared[9000] = 7\n"
        "assert (shared[:5], other[:5], shared[20000], shared[9000]) == (b'there', b'other', 0, 7), shared[20000]\n"
        "print(len(causes), causes[0][-30:])",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"2 : 5000 of {SIZE} bytes are left\n", "")


def test_threads_in_native_code_and_in_python_all_go_on(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        f"""
{_OUTLIVE}
start, go = mapping._start(shared), threading.Barrier(9)
def native(page):
    go.wait()
    for _ in range(200):
        libc.memset(start + page * 4096, page, 4096)
def python(page):
    go.wait()
    for _ in range(200):
        shared[page * 4096 : (page + 1) * 4096] = bytes(4096)
threads = [threading.Thread(target=work, args=(15 - page,)) for page in range(4) for work in (native, python)]
for thread in threads: thread.start()
go.wait()
for thread in threads: thread.join()
print(bool(causes), len(set(causes)))
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 1\n", "")


ELSEWHERE = {
    "another file": "made = open(path.with_name('o'), 'wb+'); made.truncate(8192)\n"
    "mapped = mmap.mmap(made.fileno(), 8192); made.truncate(0)\nmapped[0]",
    "the same in a thread": "made = open(path.with_name('o'), 'wb+'); made.truncate(8192)\n"
    "mapped = mmap.mmap(made.fileno(), 8192); made.truncate(0)\n"
    "thread = threading.Thread(target=lambda: mapped[0]); thread.start(); thread.join()",
    "a signal that was sent": "os.kill(os.getpid(), signal.SIGBUS)",
}


@pytest.mark.parametrize("outlives", [False, True])
@pytest.mark.parametrize("fault", ELSEWHERE)
def test_any_other_sigbus_ends_the_process(tmp_path: Path, fault: str, outlives: bool) -> None:
    done = run(tmp_path, f"{'mapping.outlive(print)' if outlives else ''}\n{ELSEWHERE[fault]}\nprint('went on')")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGBUS, "", "")


def test_a_mapping_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "again = segment.attach(path, writable=True)\n"
        "start = mapping._start(again)\n"
        "known = mapping._shared[start]\n"
        "assert known.has(start) and not known.has(start + len(again))\n"
        "again.close()\n"
        "assert not known.has(start)\n"
        "del again\n"
        "segment.clear(path)\n"
        "assert [*mapping._shared] == [mapping._start(shared)]",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_file_system_is_said_to_be_the_cause(tmp_path: Path) -> None:
    small = tmp_path / "m"
    small.mkdir()
    with mounted(small):
        script = (
            f"mapping.outlive(print)\nfull = open(path.with_name('full'), 'wb', 0)\n"
            "try:\n    while full.write(bytes(4096)): pass\nexcept OSError: pass\n"
            f"shared[{SIZE} - 1] = 1; assert shared[{SIZE} - 1] == 1 and shared[:5] == b'there'"
        )
        command = [sys.executable, "-P", "-c", _BEGIN + script, str(small / "ram.seg")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r".*/m/ram\.seg: its file system has no room for it\n", done.stdout)
