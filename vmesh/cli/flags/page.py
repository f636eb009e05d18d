"""The flags in docs/cli.md: `python -P -m vmesh.cli.flags.page docs/cli.md` brings the page up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from vmesh.cli.flags import qemu
from vmesh.cli.flags.table import FLAGS, Flag

BEGIN, END = "<!-- the table of flags: made by vmesh.cli.flags.page -->\n", "<!-- the end of the table -->\n"


def table() -> str:
    """What stands between BEGIN and END."""
    taken = "".join(f"* `{name}`{f': {flag.expected}' * bool(flag.expected)}\n" for name, flag in qemu.ANYWAY.items())
    rows = "".join(f"| {_names(flag)} | {_meaning(flag)} |\n" for flag in FLAGS)
    return (
        f"\n| flag | meaning |\n|---|---|\n{rows}\nOf QEMU's flags these are taken too, where they ask for what holds "
        f"anyway, so that command lines written for it need no\nchange:\n\n{taken}\n"
    )


def renewed(page: str) -> str:
    """The page with the table as it is to be."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"expected {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}{table()}{END}{after}"


def _names(flag: Flag) -> str:
    first, *others = flag.names
    value = f" {flag.syntax}" if flag.syntax else ""
    return _cell(", ".join([f"`{first}{value}`", *(f"`{name}`" for name in others)]))


def _meaning(flag: Flag) -> str:
    more = f"[{flag.more.removesuffix('.md') if not flag.more.startswith('#') else 'below'}]({flag.more})"
    parts = [
        flag.meaning,
        f"Default: {flag.default}." if flag.default else "",
        f"Example: `{flag.example}`." if flag.example else "",
        f"More: {more}." if flag.more else "",
    ]
    return _cell(" ".join(filter(None, parts)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
