"""One table of finished runs: mean ± standard deviation over seeds by row, with accuracy at each time step.

python scripts/compare.py runs                                   every run below, as text
python scripts/compare.py runs --format csv --output FILE.csv    the same for a spreadsheet

Rows that differ in more than their names say are marked, [a] [b] ..., and the keys stand below. Text is as wide as the
terminal (80 where there is none; COLUMNS=120 sets it).
"""

import io
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from snn_repro import console
from snn_repro.config import Config, hashed
from snn_repro.config.schema import OWN
from snn_repro.console import harmless
from snn_repro.errors import UserError
from snn_repro.files import write_text
from snn_repro.paper.differences import WHAT_A_METHOD_CHANGES, debug_keys, described, remarks
from snn_repro.paper.formats import Column, Table, to_csv, to_markdown
from snn_repro.paper.results import Group, group_runs, load
from snn_repro.paper.rows import SHARED, choice, files
from snn_repro.paper.tables import BY_STEP, OPTIMISTIC, STEP_BY_STEP
from snn_repro.runs.folder import RunResult


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("compare.py", __doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders that hold runs, or result.json files")
    parser.add_argument("--format", choices=FORMATS, default="text", help="text (default), markdown or csv")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--debug-runs", action="store_true", help="with the runs that a debug.* key cut short")
    args = parser.parse_args(argv)
    table = compare(args.paths, args.debug_runs)
    if args.format == "text":
        width = max(20, shutil.get_terminal_size().columns)
        text = to_text(table, width)
    else:
        text = FORMATS[args.format](table)
    if args.output:
        write_text(args.output, text)
    else:
        print(text, end="")
    return 0


# ---------------------------------------------------------------- the table


def compare(roots: Sequence[str | Path], debug_runs: bool = False) -> Table:
    """One line a group of runs under `roots`: mean ± sd over seeds of each accuracy, and accuracy at each time step.

    Rows that differ in more than their names say are marked, and notes name the keys. Runs that a debug key cut short
    are left out unless `debug_runs`; raises UserError where nothing else is there.
    """
    results, left_out = load(roots), []
    if not debug_runs and (cut := [keys for result in results if (keys := debug_keys(result))]):
        said = f"{len(cut)} debug run{'s' * (len(cut) > 1)} ({', '.join(sorted({*chain(*cut)}))})"
        if len(cut) == len(results):
            raise UserError(f"{', '.join(map(str, roots))}: only {said}; show them with --debug-runs")
        left_out = [f"left out: {said}; shown with --debug-runs"]
        results = [result for result in results if not debug_keys(result)]
    groups, notes = group_runs(results)
    marked = mark(groups)
    labels = [f"{g.first['name']} {letter}".strip() for g, (letter, _) in zip(groups, marked, strict=True)]
    # of one name and one letter are those that differ in what one of them did not record: their own labels say it
    groups = [Group(la if labels.count(la) == 1 else g.label, g.runs) for la, g in zip(labels, groups, strict=True)]
    columns = [
        Column("row", "row"), Column("n", "seeds", "number"), Column("readout", "readout"),
        Column("acc_last", "acc_last %", "summary"), Column("acc_valsel", "acc_valsel %", "summary"),
        Column("acc_best_test", "acc_best_test* %", "summary"), BY_STEP, Column("differs", "differs in", "csv"),
    ]  # fmt: skip
    rows = [
        dict(
            row=g.label, n=len(g.runs), readout=g.first["readout"], acc_last=g.last, acc_valsel=g.percent("acc_valsel"),
            acc_best_test=g.percent("acc_best_test"), acc_step=g.steps(), differs=values,
        )
        for g, (_, values) in zip(groups, marked, strict=True)
    ]  # fmt: skip
    explained = [
        "mean ± sample standard deviation over seeds, test set; acc_last: last epoch at the readout; acc_valsel: test "
        "accuracy at the epoch that the validation part chose",
        f"acc_best_test*: {OPTIMISTIC}",
        STEP_BY_STEP,
    ]
    if any(letter for letter, _ in marked):
        explained.append("rows of different letters differ in more than their names say:")
        explained += [f"{m} {v}" for m, v in dict(marked).items()]
    return Table("Runs by row", columns, rows, [*explained, *remarks(groups), *left_out, *notes])


# ---------------------------------------------------------------- marks of unlike rows


def mark(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Of each group its mark ("[a]", or "" where no group needs one) and the values of the keys in which they differ.

    Groups that differ in more than their names say have other marks; those of one mark are alike in all that they recorded. A name
    `dataset-model-neuron-loss` says what its four choices set, any other name the loss and all of IMP.
    """
    flats, keys = [described(group) for group in groups], []
    for key in sorted(set().union(*flats)):
        have = [(group.first, flat[key]) for group, flat in zip(groups, flats, strict=True) if key in flat]
        if len({repr(value) for _, value in have}) > 1 and _unsaid(key, have):
            keys.append(key)
    letters: dict[tuple[str, ...], str] = {}
    marks = [letters.setdefault(tuple(repr(f.get(k)) for k in keys), f"[{_letters(len(letters))}]") for f in flats]
    values = [", ".join(f"{k}={flat[k]}" for k in keys if k in flat) for flat in flats]
    return list(zip(marks if keys else [""] * len(groups), values, strict=True))


def _unsaid(key: str, have: Sequence[tuple[RunResult, Any]]) -> bool:
    """Whether the names of some of these runs leave open that `key` has the value that it has."""

    def differ(named_by: str) -> bool:
        return len({(r[named_by], repr(value)) for r, value in have}) > len({r[named_by] for r, _ in have})

    if differ("name"):
        return True
    if key in ("split", "data"):  # of another data set they are other ones
        return differ("dataset")
    return not all(_said(key, result["name"], value) for result, value in have)


def _said(key: str, name: str, value: Any) -> bool:
    if key in ("name", "paper_row"):
        return True
    words = name.split("-")
    if len(words) != len(SHARED) or any(word not in files(group) for group, word in zip(SHARED, words, strict=True)):
        return key.startswith(WHAT_A_METHOD_CHANGES)
    group = "dataset" if key == "timesteps" else key.split(".")[0]
    means = _means(group, words[SHARED.index(group)]) if group in SHARED else {}
    return key in means and means[key] == value


@cache
def _means(group: str, name: str) -> dict[str, Any]:
    """Flat keys that a choice sets: its yaml and those it builds on, over the defaults of its class and of its group."""
    said = choice(group, name)[0]
    settings = OWN[group][0].settings(said["name"], said)
    own = {key: list(s.default) if isinstance(s.default, tuple) else s.default for key, s in settings.items()}
    values = vars(getattr(Config(), group)) | own | said
    del values["own"]
    return hashed({group: values} | ({"timesteps": values["timesteps"]} if group == "dataset" else {}))


def _letters(i: int) -> str:
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


# ---------------------------------------------------------------- text for the terminal


def to_text(table: Table, width: int | None = None) -> str:
    """A table for the terminal; `width` None makes it as wide as it needs to be.

    Where the table does not fit into `width` characters, each row takes several lines, and no line is longer: the first
    column on a line of its own, the numbers below it in columns, long texts and steps below those.
    """

    def safe(text: str) -> str:
        return harmless(text).replace("\n", "?")

    lines = table.lines(safe)
    whole = Grid(title=Text(safe(table.title)), title_justify="left", box=box.HEAVY_HEAD)
    for c, text in zip(table.shown, lines[0], strict=True):
        whole.add_column(Text(text), justify="left" if c.kind == "text" else "right", overflow="fold")
    for row in lines[1:]:
        whole.add_row(*map(Text, row))
    out = io.StringIO()
    needs = max(40, Console(file=out, width=10_000).measure(whole).maximum)
    console = Console(file=out, width=width or 10_000, force_terminal=False)
    if width is None or needs <= width:
        console.print(whole, width=needs)
    else:
        _stacked(console, table, Text(safe(table.title) + "\n"), lines)
    notes = Grid.grid()
    for note in table.notes:
        notes.add_row("- ", Text(safe(note), overflow="fold"))
    console.print(notes)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _stacked(console: Console, table: Table, title: Text, lines: list[list[str]]) -> None:
    """A row on several lines, none longer than the console is wide."""
    head, width = lines[0], console.width
    widest = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [i for i, c in enumerate(table.shown) if i and c.kind != "steps" and widest[i] <= width // 3]
    console.print(title)
    for line in lines:
        texts = [Text(f"{line[i]:{'<' if table.shown[i].kind == 'text' else '>'}{widest[i]}}") for i in numbers]
        console.print(Text(line[0]), Padding(Columns(texts, padding=(0, 2)), (0, 0, 0, 3)))
        below = [i for i in range(1, len(line)) if line is not head and i not in numbers and line[i]]
        for i in below:
            console.print(Padding(Text(f"{head[i]}: {line[i]}"), (0, 0, 0, 3)))
        if line is head:
            console.print(Text("-" * width))
    console.print(Text("-" * width))


FORMATS: dict[str, Callable[[Table], str]] = {"text": to_text, "markdown": to_markdown, "csv": to_csv}


if __name__ == "__main__":
    sys.exit(console.script(main))
