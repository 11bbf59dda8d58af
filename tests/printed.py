"""The commands that README and documentation print."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_COMMAND = re.compile(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(python|make) (.+)")
# A fenced block, an indented line, code within a sentence.
_CODE = re.compile(r"^```.*\n([\s\S]*?)^```|^ {4}(.*)$|`([^`]+)`", re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Every command of a Markdown text in its order, as words; the first is python or make."""
    found: list[list[str]] = []
    for fenced, indented, within in _CODE.findall(text.replace("\\\n", " ")):
        for line in fenced.splitlines() or [indented or " ".join(within.split())]:
            match = _COMMAND.fullmatch(line.strip())
            if match and match[2] != "...":  # "commands are written `python ...`"
                found.append([match[1], *shlex.split(match[2], comments=True)])
    return found


def documents() -> list[Path]:
    """README and its like, and the pages of the documentation."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "folds/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]
