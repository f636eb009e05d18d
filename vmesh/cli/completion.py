"""`vmesh completion bash`: what a shell sources to complete commands and flags, from the tables that these are in."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vmesh.cli.flags.table import FLAGS, Flag

#: Commands behind which the flags of `vmesh run` stand.
_TAKE_FLAGS = ("run", "deploy", "serve")

_SCRIPT = """\
# Completion of vmesh for bash; for zsh after `autoload -U bashcompinit && bashcompinit`.
_vmesh() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case $command in {take_flags}) ;; *) COMPREPLY=($(compgen -f -- "$word")); return ;; esac
    case $before in
{values}
    esac
    case $word in
        -*) COMPREPLY=($(compgen -W "{flags}" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _vmesh vmesh
"""


def bash(commands: Iterable[str]) -> str:
    """The script."""
    values = "\n".join(
        f"        {'|'.join(flag.names)}) COMPREPLY=({_values(flag)}); return ;;" for flag in FLAGS if flag.syntax
    )
    return _SCRIPT.format(
        commands=" ".join(commands),
        take_flags="|".join(_TAKE_FLAGS),
        values=values,
        flags=" ".join(name for flag in FLAGS for name in flag.names),
    )


def _values(flag: Flag) -> str:
    """What bash offers behind the flag: files where the syntax has one, and the words that stand in it as they are."""
    kinds = flag.syntax.partition("[,")[0].split("|")
    words = " ".join(kind for kind in kinds if re.fullmatch(r"[a-z][a-z-]*", kind))
    offers = [f'$(compgen -W "{words}" -- "$word")'] if words else []
    if "FILE" in kinds:
        offers.append('$(compgen -f -- "$word")')
    return " ".join(offers)
