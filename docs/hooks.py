"""What the documentation fills in when it is built, so that it cannot go stale.

A line of a page that reads `<!-- table: recipes -->` becomes the table of
`docs/results/recipes.csv` with its command and commit; see `FILLERS` for the others. After
the build, pages that would fetch anything from elsewhere are refused.
"""

import ast
import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bach.core import options  # noqa: E402
from bach.core.tables import read_table  # noqa: E402
from bach.core.text import markdown  # noqa: E402

RESULTS = ROOT / "docs" / "results"
DIFFERS = "# Differs from Kwok 2018: "
GROUPS = {
    group.__name__: group
    for group in (
        options.Shared,
        options.Training,
        options.Devices,
        options.Photos,
        options.Slides,
        options.Workers,
    )
}

_DIRECTIVE = re.compile(r"^<!-- (\w+): ?(.*?) -->$", re.MULTILINE)

# What a browser fetches without being asked; links that a reader may follow are fine.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon)[^>]*(?:https?:)?//"""
    r"""|(?:url\(|@import\s)["']?(?:https?:)?//"""
)


# Called by mkdocs


def on_config(config, **_):
    """Let the scripts be imported: mkdocs takes back what a hook adds to the path on loading."""
    sys.path.insert(0, str(ROOT))
    return config


def on_page_markdown(text: str, page, **_) -> str:
    """Fill in the directives of a page."""
    return fill(text)


def on_post_build(config, **_) -> None:
    """Refuse a site that needs the network.

    Raises:
        RuntimeError: If a page or style sheet fetches something from elsewhere.
    """
    for path in sorted(Path(config["site_dir"]).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = _FETCHED.search(path.read_text(encoding="utf-8"))
            if found:
                raise RuntimeError(f"{path} must not fetch anything. Found: {found.group()}.")


# What a page can ask for


def fill(text: str) -> str:
    """Replace every directive of a page by what it stands for.

    Raises:
        KeyError: If a directive is not one of `FILLERS`.
    """
    return _DIRECTIVE.sub(lambda found: FILLERS[found[1]](found[2]), text)


def result(name: str) -> str:
    """A table of `docs/results`, and below it where its figures come from."""
    source = sources()[name]
    parts = [f"Measured on: {source['measured_on']}."]
    if source["command"]:
        parts.append(f"Command: `{source['command']}`.")
    if source["commit"]:
        parts.append(f"Commit: {source['commit']}.")
    parts.append(f"File: [results/{name}.csv](results/{name}.csv).")
    return f"{markdown(*with_intervals(name))}\n\n{' '.join(parts)}"


def sources() -> dict[str, dict[str, str]]:
    """Command, commit and material of every table of results, by its name."""
    table = read_table(RESULTS / "sources.csv", ["table", "commit", "measured_on", "command"])
    return {str(row["table"]): row for row in table.to_dict("records")}


def with_intervals(name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of results; `x, x_low, x_high` become one column."""
    table = read_table(RESULTS / f"{name}.csv")
    header: list[str] = []
    rows: list[list[str]] = [[] for _ in range(len(table))]
    for column in table.columns:
        if column.endswith(("_low", "_high")):
            continue
        header.append(column.replace("_", " "))
        bounds = [f"{column}_low", f"{column}_high"]
        for row, record in zip(rows, table.to_dict("records"), strict=True):
            low, high = (record.get(bound, "") for bound in bounds)
            row.append(f"{record[column]} [{low}, {high}]" if low else record[column])
    return header, rows


def group_of_options(name: str) -> str:
    """The options of a group that several scripts take: `options: Shared`."""
    return markdown(["option", "default", "meaning"], options.table(GROUPS[name]))


def options_of_script(name: str) -> str:
    """The options of a script beyond its groups, and those with a default of its own."""
    shared = [row for group in GROUPS.values() for row in options.table(group)]
    own = [row for row in options.table(importlib.import_module(name).Options) if row not in shared]
    return markdown(["option", "default", "meaning"], own)


def help_of(command: str) -> str:
    """What a command prints with --help, as a block of code."""
    name, *words = command.split()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "92"
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            parse(name, [*words, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return f"```text\n{printed.getvalue().rstrip()}\n```"


def parse(name: str, words: list[str]) -> None:
    """Let the parser of `python -m NAME` or of a loaded script read words, and run nothing."""
    if name == "bach.folds" and words[:1] == ["audit"]:  # which passes the rest on
        name, words = "bach.honest.audit", words[1:]
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # a package is run by its __main__
        module = importlib.import_module(f"{name}.__main__")
    if hasattr(module, "parse_args"):
        module.parse_args(words)
    else:
        options.parse(module.Options, words, module.__doc__, f"python -m {name}")


def departures(_: str = "") -> str:
    """Every departure from the paper that the code marks."""
    rows = [[f"`{path.relative_to(ROOT)}`", text[:1].upper() + text[1:]] for path, text in marked()]
    return markdown(["where", "what differs from Kwok 2018"], rows)


def marked() -> Iterator[tuple[Path, str]]:
    """File and text of every comment that begins with `DIFFERS`, to its last line."""
    for path in code():
        text: list[str] = []
        for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
            comment = line.strip()
            begins = comment.startswith(DIFFERS)
            if text and (begins or not comment.startswith("# ")):
                yield path, " ".join(text)
                text = []
            if begins:
                text = [comment.removeprefix(DIFFERS)]
            elif text:
                text.append(comment.removeprefix("# "))


def modules(_: str = "") -> str:
    """Every module of the package with the first line of its docstring."""
    rows = []
    for path in code():
        source = path.read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(source))
        if doc:
            rows.append([f"`{path.relative_to(ROOT)}`", doc.splitlines()[0]])
    return markdown(["module", "what it is for"], rows)


def code() -> list[Path]:
    """The scripts, then the modules of the package."""
    scripts = ("train_part_a", "mine_hard_examples", "train_final", "make_heatmap")
    package = ROOT / "bach"
    rooms = sorted(path for path in package.iterdir() if (path / "__init__.py").exists())
    return [
        *(ROOT / f"{name}.py" for name in scripts),
        *sorted(package.glob("*.py")),
        *(path for room in rooms for path in sorted(room.glob("*.py"))),
    ]


def include(name: str) -> str:
    """A Markdown file of the repository, whole."""
    return (ROOT / name).read_text(encoding="utf-8")


FILLERS: dict[str, Callable[[str], str]] = {
    "table": result,
    "group": group_of_options,
    "options": options_of_script,
    "help": help_of,
    "departures": departures,
    "modules": modules,
    "include": include,
}
