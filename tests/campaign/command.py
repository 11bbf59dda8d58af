"""A campaign of damaged inputs and kills: nothing may end in a traceback, hang, or be wrong.

    make campaign                                     10,000 cases and 200 kills
    python tests/campaign --cases 500 --kills 0       some of them; the next call goes on

Every case is decided by the seed and its number. What was done is kept in --dir, so that a
campaign which is interrupted goes on; `--again` repeats the cases that were findings, after
the code has been changed.

Reads:   nothing.
Writes:  --dir/corpus, cases.jsonl, kills.jsonl; docs/results/campaign.csv with --write.
Time:    10,000 cases in 1 h on two cores, 200 kills in 5 h.
Prints the findings and a table; exit code 1 if there is a finding.
"""

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from bach.core.tables import write_csv
from bach.core.text import columns
from campaign import kills
from campaign.cases import FINDINGS, GOOD, Case, run_all
from campaign.inputs import KINDS, make_all

TABLE = Path(__file__).resolve().parents[2] / "docs/results/campaign.csv"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10_000, help="damaged inputs in all")
    parser.add_argument("--kills", type=int, default=200, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="decides every case")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--dir", type=Path, default=Path("runs/campaign"), help="folder to work in")
    parser.add_argument("--kind", help="only cases of kinds that begin so")
    parser.add_argument("--again", action="store_true", help="repeat the cases that were findings")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} for the docs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.dir.mkdir(parents=True, exist_ok=True)
    done = run_cases(args)
    killed = kills.run_kills(args.dir, args.seed, args.kills, args.again) if args.kills else []
    for row in done:
        if row["outcome"] in FINDINGS:
            print("case {case}: {kind} {file}, {damage}: {outcome}: {said}".format(**row))
    for row in killed:
        if row["outcome"] != "same":
            print("kills {number}: {script}, {moments}: {outcome}: {said}".format(**row))
    table = tabulate(done)
    print(columns(list(table), table.to_numpy().tolist()))
    print(kills.summary(killed))
    if args.write:
        write_csv(table, TABLE)
        kills.write(killed, TABLE.with_name("kills.csv"))
    wrong = sum(row["outcome"] in FINDINGS for row in done)
    wrong += sum(row["outcome"] != "same" for row in killed)
    print(f"{len(done):,} damaged inputs, {sum(len(row['moments']) for row in killed)} kills: ")
    print(f"{wrong} findings")
    return 1 if wrong else 0


def run_cases(args: argparse.Namespace) -> list[dict]:
    """Run what is left of the damaged inputs; returns all that were run with the seed."""
    corpus = args.dir / "corpus"
    if args.cases and not (corpus / "complete").exists():
        shutil.rmtree(corpus, ignore_errors=True)
        make_all(corpus)
        (corpus / "complete").touch()
    file = args.dir / "cases.jsonl"
    rows = read_lines(file)
    done = {row["case"]: row for row in rows if row["seed"] == args.seed}
    if args.again:
        done = {number: row for number, row in done.items() if row["outcome"] in GOOD}
    left = [Case(args.seed, number) for number in range(args.cases) if number not in done]
    if args.kind:
        left = [case for case in left if case.kind(case.rng()).name.startswith(args.kind)]
    with file.open("a", encoding="utf-8") as stream:
        for row in tqdm(run_all(left, corpus, args.workers), total=len(left), disable=None):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            done[row["case"]] = row
    return [done[number] for number in sorted(done)]


def read_lines(file: Path) -> list[dict]:
    """The lines of a file of JSON lines; one that was cut short by a kill does not count."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def tabulate(rows: list[dict]) -> pd.DataFrame:
    """How many cases of every kind ended how."""
    names = [kind.name for kind in KINDS if any(row["kind"] == kind.name for row in rows)]
    table = [
        [name, *(sum(r["kind"] == name and r["outcome"] == o for r in rows) for o in _OUTCOMES)]
        for name in names
    ]
    table.append(["all", *(sum(row["outcome"] == o for row in rows) for o in _OUTCOMES)])
    frame = pd.DataFrame(table, columns=["input", *_OUTCOMES])
    frame.insert(1, "cases", frame[list(_OUTCOMES)].sum(axis=1))
    return frame


_OUTCOMES = (*GOOD, *FINDINGS)
