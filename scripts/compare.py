"""Compare finished runs: mean ± standard deviation over seeds, and accuracy at each time step.

python scripts/compare.py runs                                     every run below, as text
python scripts/compare.py runs --sort readout --only loss=lts      rows of one loss, best accuracy first
python scripts/compare.py runs --why                               also the keys in which marked rows differ
python scripts/compare.py runs --format latex --output FILE.tex    for a paper; markdown, csv and json as well

Rows marked [a] [b] ... differ in more than their names say. Text is as wide as the terminal (80 columns where there is
none; COLUMNS=120 sets it).

Is B better than A, and from which time step on?

python scripts/compare.py A B                                      B - A, paired over seeds
python scripts/compare.py A B C --margin 0.3                       B - A and C - A by Dunnett's test
python scripts/compare.py neuron=if neuron=if_imp --only loss=lts --in runs

A, B, ... are one row each: a folder with its runs, a name, KEY=VALUE[,KEY=VALUE] or NAME,KEY=VALUE. Names and keys are
looked up in runs, then in results/runs, or in --in FOLDER. Two folders with one row each are compared; three or more
need --test. Rows are refused if their test data differ, or any setting that neither their names nor these words say.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from make_tables import to_latex
from snn_repro import console
from snn_repro.config import Config, hashed
from snn_repro.config.schema import OWN
from snn_repro.console import by_step, harmless
from snn_repro.errors import UserError, nearest
from snn_repro.files import write_text
from snn_repro.paper.comparison import comparison
from snn_repro.paper.differences import MACHINE, WHAT_A_METHOD_CHANGES, changes, debug_keys, described, remarks
from snn_repro.paper.formats import Column, Table, to_csv, to_markdown
from snn_repro.paper.results import Group, facts, group_key, group_runs, load, over_seeds
from snn_repro.paper.rows import SHARED, choice, files
from snn_repro.paper.tables import BY_STEP, OPTIMISTIC, STEP_BY_STEP
from snn_repro.runs.folder import RunResult, result_files

MOST_REPEATS = 3  # notes on runs that repeat a seed
MOST_VALUES = 12  # values that a sentence names
PLACES = ("runs", "results/runs")  # where names of rows are looked up


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    parser = console.Parser("compare.py", __doc__)
    parser.add_argument(
        "rows", nargs="+", metavar="PATH|ROW", help="folders that hold runs, or result.json files; or rows to compare"
    )
    parser.add_argument(
        "--in", dest="places", action="append", metavar="FOLDER", help="look up names and keys of rows here; repeatable"
    )
    parser.add_argument(
        "--margin", type=float, default=0.5, help="points; rows that differ by less are equivalent (default 0.5)"
    )
    parser.add_argument("--test", action="store_true", help="compare three or more folders with the first one")
    parser.add_argument(
        "--sort",
        metavar="KEY",
        help="readout (which is acc_last), acc_valsel, acc_best_test, name, seeds, step1, step2, ...",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="rows with this loss, recipe.lr, ...; repeatable",
    )
    parser.add_argument(
        "--why", action="store_true", help="text: list the keys in which marked rows differ, and all notes"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="default: text; csv has the comparison, where there is one"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")
    parser.add_argument("--debug-runs", action="store_true", help="include runs that a debug.* key cut short")
    args = parser.parse_args(argv)
    tables = compared(args)
    if args.format == "text":
        width, colour = max(20, shutil.get_terminal_size().columns), not args.output and sys.stdout.isatty()
        text = "\n".join(to_text(table, width, colour) for table in tables)
    else:
        text = FORMATS[args.format](tables)
    if args.output:
        write_text(args.output, text)
    else:
        print(text, end="")
    return 0


# ---------------------------------------------------------------- the table


def compare(
    roots: Sequence[str | Path],
    debug_runs: bool = False,
    only: Sequence[str] = (),
    sort: str | None = None,
    why: bool = True,
) -> Table:
    """One line per group of runs under `roots`: mean ± sd over seeds of each accuracy, and accuracy at each time step.

    Rows that differ in more than their names say are marked. With `why`, notes name the keys; without it, one note says
    that there are such rows. Runs that a debug key cut short are left out unless `debug_runs`. Raises UserError where no
    run is left, and for a bad `only` (KEY=VALUE) or `sort`.
    """
    results, left_out = chosen_runs(roots, only, debug_runs)
    table = table_of(*group_runs(results), sort, why)
    table.notes = [*table.notes, *left_out]
    return table


def chosen_runs(
    roots: Sequence[str | Path], only: Sequence[str], debug_runs: bool
) -> tuple[list[RunResult], list[str]]:
    """The runs under `roots` that `--only` and `--debug-runs` leave, and a note on those left out."""
    results = select(load(roots), only)
    if debug_runs or not (cut := [keys for result in results if (keys := debug_keys(result))]):
        return [*results], []
    said = f"{len(cut)} debug run{'s' * (len(cut) > 1)} ({', '.join(sorted({*chain(*cut)}))})"
    if len(cut) == len(results):
        raise UserError(f"{', '.join(map(str, roots))}: only {said}; show them with --debug-runs")
    return [r for r in results if not debug_keys(r)], [f"left out: {said}; shown with --debug-runs"]


def table_of(groups: Sequence[Group], notes: Sequence[str], sort: str | None, why: bool, letters: bool = True) -> Table:
    """The table of `compare` on groups of runs; `notes` are on repeated runs. Without `letters` the groups keep their labels."""
    marked = mark(groups) if letters else [("", {})] * len(groups)
    labels = [
        f"{g.first['name'] if letters else g.label} {mark}".strip() for g, (mark, _) in zip(groups, marked, strict=True)
    ]
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
            acc_best_test=g.percent("acc_best_test"), acc_step=g.steps(),
            differs=", ".join(f"{key}={value}" for key, value in values.items()),
        )
        for g, (_, values) in zip(groups, marked, strict=True)
    ]  # fmt: skip
    legend = [
        "mean ± sample standard deviation over seeds, test set; acc_last: last epoch at the readout; acc_valsel: test "
        "accuracy at the epoch that the validation part chose",
        f"acc_best_test*: {OPTIMISTIC}",
        STEP_BY_STEP,
    ]
    if len(notes) > MOST_REPEATS:
        notes = [*notes[:MOST_REPEATS], f"and {len(notes) - MOST_REPEATS} more runs that repeat a seed"]
    differ, more = explained(marked), [*remarks(groups), *notes]
    if not why and (differ or more):
        hidden = ["rows of different letters differ in more than their names say"] if differ else []
        hidden += [f"{len(more)} more note{'s' * (len(more) > 1)}"] if more else []
        differ, more = ["; ".join([*hidden, "--why explains"])], []
    return Table("Runs by row", columns, in_order(rows, sort), [*legend, *differ, *more])


# ---------------------------------------------------------------- rows against a baseline


def compared(args: Any) -> list[Table]:
    """The table of rows, and below it their comparison if the words of the command are rows."""
    words = args.rows
    if not args.margin > 0:
        raise UserError(f"--margin {args.margin:g}: a positive number of points is needed")
    if args.test or len(words) > 1 and not all(map(_is_folder, words)):
        if len(words) < 2:
            raise UserError("--test compares rows with the first one: give two or more")
        return against_first(args)
    table = compare(words, args.debug_runs, args.only, args.sort, args.why or args.format not in ("text", "json"))
    if len(words) == len(table.rows) == 2:
        try:
            return against_first(args)
        except UserError as error:
            table.notes = [*table.notes, f"not compared: {error}"]
    return [table]


def rows_of(words: Sequence[str], args: Any) -> list[Group]:
    """The row that each word means: a folder, NAME, KEY=VALUE,... or NAME,KEY=VALUE,...

    Raises UserError for a word that means no row or several.
    """
    places = [place for place in PLACES if Path(place).is_dir() and result_files(Path(place))]
    pools = [args.places] if args.places else [[place] for place in places]
    read = cache(lambda i: chosen_runs(pools[i], args.only, args.debug_runs)[0])
    rows = []
    for word in words:
        own = _is_folder(word) and chosen_runs([word], args.only, args.debug_runs)[0]
        where, results = (word, own) if own else _looked_up(word, pools, read)
        groups, _ = group_runs(results)
        if len(groups) > 1:
            raise UserError(f"{word} is {len(groups)} rows of {where}, {_apart(groups)}; choose one with KEY=VALUE")
        rows += groups
    return rows


def _looked_up(
    word: str, pools: Sequence[Sequence[str]], read: Callable[[int], Sequence[RunResult]]
) -> tuple[str, Sequence[RunResult]]:
    """The runs of the first of `pools` that has any of this row, and that pool's folders."""
    errors = []
    for i, folders in enumerate(pools):
        try:
            return ", ".join(folders), _meant(word, read(i), ", ".join(chain(*pools)))
        except UserError as error:
            errors.append(error)
    if not errors:
        raise UserError(f"{word} is no folder, and no runs are in {' or '.join(PLACES)}; look it up with --in FOLDER")
    raise errors[0]


def _is_folder(word: str) -> bool:
    """Whether a word is a path, or a folder that a NAME.jsonl of collected runs stands for."""
    stands = (f"{folder}.jsonl" for folder in (Path(word), *Path(word).parents) if folder.name)
    return any(map(os.path.exists, (word, *stands)))


def _meant(word: str, pool: Sequence[RunResult], where: str) -> Sequence[RunResult]:
    """The runs that NAME, KEY=VALUE,..., NAME,KEY=VALUE,... or a label NAME [KEY=VALUE, ...] means."""
    name, *keys = re.split(r",\s*(?=[\w.]+=)", re.sub(r" \[(.*=.*)\]$", r",\1", word))
    if "=" in name:
        return select(pool, [name, *keys], "")
    if not (named := [result for result in pool if result["name"] == name]):
        near = nearest(name, {result["name"] for result in pool})
        raise UserError(f"{word} is neither a folder nor the name of a row in {where}{near}")
    return select(named, keys, "")


def _apart(groups: Sequence[Group], most: int = 6) -> str:
    """In which keys groups differ, with some of their values."""
    flats = [facts(group.first) for group in groups]
    values = {k: dict.fromkeys(str(flat[k]) for flat in flats if k in flat) for k in sorted(set().union(*flats))}
    differ = [f"{k} ({', '.join([*v][:4])}{', ...' * (len(v) > 4)})" for k, v in values.items() if len(v) > 1]
    names = {group.first["name"] for group in groups}
    if len(names) > 1:
        differ.insert(0, f"name ({', '.join(sorted(names)[:2])}{', ...' * (len(names) > 2)})")
    return f"which differ in {'; '.join(differ[:most])}{'; ...' * (len(differ) > most)}"


def against_first(args: Any) -> list[Table]:
    """The table of rows, and their comparison with the first one. Raises UserError for rows that cannot be paired."""
    words, rows = args.rows, rows_of(args.rows, args)
    keys = [group_key(row.first) for row in rows]
    if len({*keys}) < len(rows):
        raise UserError(f"{', '.join(words)} are not {len(rows)} rows: some have the same settings and data")
    groups, notes = group_runs(run for row in rows for run in row.runs)
    of_key = {group_key(group.first): group for group in groups}
    baseline, *others = (of_key[key] for key in keys)
    differ = [differences(baseline, row, (words[0], word)) for row, word in zip(others, words[1:], strict=True)]
    tables = [
        Table(f"B - A in points, A: {baseline.label}, B: {row.label}", _columns(len(others)), [*map(_in_words, lines)])
        for row, lines in zip(others, comparison(baseline, others, args.margin), strict=True)
    ]
    for one, values in zip(tables, differ, strict=True):
        said = ", ".join(f"{key}: {value}" for key, value in values.items())
        one.notes = [f"B differs from A in {said or 'nothing that both recorded'}"]
    tables[-1].notes = [*tables[-1].notes, *_scope([baseline, *others]), *_legend(len(others), args.margin)]
    why = args.why or args.format not in ("text", "json")
    return [table_of(groups, notes, args.sort, why, letters=False), *tables]


NUMBERS = [
    Column(key, key) for key in (
        "baseline", "row", "at", "n", "difference", "low", "high", "p", "p_sign_flip", "p_adjusted", "p_equivalent",
        "verdict", "seeds",
    )
]  # fmt: skip
"""The columns of a comparison in CSV and JSON; differences in points."""


def _columns(others: int) -> list[Column]:
    tests = {"t": "p", "flip": "p flip", "adjusted": "p Holm"} if others == 1 else {"t": "p", "adjusted": "p steps"}
    return [
        Column("at", "at"), Column("text", "B - A", "number"), Column("interval", "95 % interval", "number"),
        *(Column(key, header, "number") for key, header in tests.items()),
        Column("verdict", "verdict"), Column("needed", "seeds", "number"),
    ]  # fmt: skip


def _in_words(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `comparison` with the texts of `_columns`."""

    def short(p: float | None) -> str:
        return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"

    interval = "" if line["low"] is None else f"{line['low']:+.2f} .. {line['high']:+.2f}"
    return line | dict(
        text=f"{line['difference']:+.2f}", interval=interval, t=short(line["p"]), flip=short(line["p_sign_flip"]),
        adjusted=short(line["p_adjusted"]), needed="1000+" if line["seeds"] == 1000 else line["seeds"],
    )  # fmt: skip


def _scope(groups: Sequence[Group]) -> Iterable[str]:
    """Notes on the seeds, readouts and steps that a comparison is about."""
    seeds, _ = over_seeds(groups, lambda run: None)
    yield f"paired over {len(seeds)} common seed{'s' * (len(seeds) > 1)}: {', '.join(map(str, seeds))}"
    for group in groups:
        if more := [str(run["seed"]) for run in group.runs if run["seed"] not in seeds]:
            yield f"left out, because another row lacks it: {group.label}, seed {', '.join(more)}"
    if later := [group.label for group in groups if not group.steps()]:
        yield f"only the readout, because outputs depend on later steps in {', '.join(later)}"
    for key, said in {
        "readout": "each row at its own readout",
        "timesteps": "only the steps that all rows have",
    }.items():
        if len({group.first[key] for group in groups}) > 1:
            yield f"{said}: {', '.join(f'{g.label}: {g.first[key]}' for g in groups)}"


def _legend(others: int, margin: float) -> list[str]:
    tests = "p: paired t-test; p flip: exact sign-flip test; p Holm: p corrected over the steps by Holm"
    of, within = "p Holm", "two one-sided t-tests, by Holm"
    if others > 1:
        tests = f"p: Dunnett's test of {others} rows against A, variance pooled, seeds as blocks; p steps: p corrected over "
        tests += "the steps by Bonferroni; the intervals hold for all rows together"
        of = "p steps"
    return [
        f"{tests}; the readout is not corrected",
        f"better, worse: {of} at most 0.05; equivalent: less than {margin:g} points apart ({within}); better, < {margin:g}: "
        "both",
        "seeds: how many would say it with 80 % power, if difference and spread are as seen here",
    ]


def differences(a: Group, b: Group, words: Sequence[str]) -> dict[str, str]:
    """The settings in which b differs from a: {key: "value of a -> value of b"}.

    Raises UserError for other test data, or if neither the names of the rows nor `words` say one of the keys.
    """
    found = {key: values for key, values in changes(a.first, b.first).items() if key not in ("name", "paper_row")}
    said = {key for word in words for key in re.findall(r"([\w.]+)=", word)}
    said |= {"neuron.imp"} if "neuron.initial" in said else set()
    left = set().union(*(values for _, values in mark([a, b]))) - said - {*MACHINE}
    unsaid = [
        f"{key}: {found[key]}" for key in sorted(left & found.keys()) if key.split(".")[0] not in said - {"dataset"}
    ]
    if other := [f"{key}: {found[key]}" for key in ("dataset.name", "split") if key in found]:
        raise UserError(f"{b.label} was not tested on the same data as {a.label}: {', '.join(other)}")
    if unsaid:
        raise UserError(
            f"{b.label} differs from {a.label} in more than the rows say: {', '.join(unsaid)}; compare rows that agree in "
            "these keys, or say them in the rows: ROW,KEY=VALUE"
        )
    return found


# ---------------------------------------------------------------- --only and --sort


def select(results: Sequence[RunResult], only: Iterable[str], by: str = "--only ") -> Sequence[RunResult]:
    """The runs in which every KEY=VALUE of `only` holds. Raises UserError for an unknown key, or if no run is left.

    `by` begins the errors. KEY is dataset, model, neuron or loss, with a choice of conf/KEY as its value, or a key of the configuration.
    """
    for word in only:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{by}{word}: write KEY=VALUE, for example loss=lts")
        held = [[*chosen(result, key)] if key in SHARED else setting(result, key) for result in results]
        if not any(held):
            known = {*SHARED, *chain(*map(facts, results))}
            raise UserError(f"{by}{word}: no run has the key {key!r}{nearest(key, known)}")
        left = [r for r, values in zip(results, held, strict=True) if any(_means_same(value, v) for v in values)]
        if not left:
            there = sorted({str(v) for values in held for v in values}, key=lambda text: (len(text), text))
            there[MOST_VALUES:] = ["..."] * (len(there) > MOST_VALUES)
            raise UserError(f"{by}{word}: no run has this value; {key} is {', '.join(there)}")
        results = left
    return results


def chosen(result: RunResult, group: str) -> list[str]:
    """The choices in conf/GROUP that the run's name says, or else those that its configuration is nearest to."""
    if words := _four_choices(result["name"]):
        return [words[SHARED.index(group)]]
    mine = result["config"][group]
    of_class = {name: keys for name in files(group) if (keys := choice(group, name)[0]).get("name") == mine["name"]}
    same = {name: sum(mine.get(k) == v for k, v in keys.items()) for name, keys in of_class.items()}
    return [name for name, n in same.items() if n == max(same.values())] or [mine["name"]]


def setting(result: RunResult, key: str) -> list[Any]:
    """The value of a key of the configuration, or of another fact of the run, in a list; [] where it has none."""
    if key == "neuron.initial" and result["config"]["neuron"].get("imp"):
        return ["imp"]  # which a configuration keeps as neuron.imp=true
    if key in (known := facts(result)):
        return [known[key]]
    node = result["config"]
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return [] if node is None or isinstance(node, dict) else [node]


def _means_same(typed: str, value: Any) -> bool:
    read: list[Any] = []
    for reader in (float, yaml.safe_load):
        with contextlib.suppress(ValueError, yaml.YAMLError):
            read.append(reader(typed))
    return typed == str(value) or value in read


def in_order(rows: list[dict[str, Any]], by: str | None) -> list[dict[str, Any]]:
    """Rows sorted by a word of `--sort`: names from A to Z, numbers from the highest, rows without the number last.

    Raises UserError for another word.
    """
    steps = [f"step{t + 1}" for t in range(max(len(row["acc_step"]) for row in rows))]
    words = ["readout", "acc_last", "acc_valsel", "acc_best_test", "name", "seeds", *steps]
    if by not in (None, *words):
        raise UserError(f"--sort {by}: choose one of {', '.join(words)}")

    def number(row: dict[str, Any], by: str = by or "") -> float | None:
        if by in steps:
            return dict(zip(steps, row["acc_step"], strict=False)).get(by)
        if by == "seeds":
            return row["n"]
        over_seeds = row["acc_last" if by == "readout" else str(by)]
        return over_seeds and over_seeds.mean

    if by is None:
        return rows
    if by == "name":
        return sorted(rows, key=lambda row: row["row"])
    return sorted(rows, key=lambda row: (number(row) is None, -(number(row) or 0), row["row"]))


# ---------------------------------------------------------------- marks of unlike rows

Marks = Sequence[tuple[str, dict[str, Any]]]


def mark(groups: Sequence[Group]) -> Marks:
    """The mark of each group ("[a]", or "" where no group needs one) and the keys in which the groups differ.

    Groups that differ in more than their names say have different marks; groups with the same mark agree in all recorded
    keys. A name `dataset-model-neuron-loss` says what its four choices set, any other name the loss and all of IMP.
    """
    flats, keys = [described(group) for group in groups], []
    for key in sorted(set().union(*flats)):
        have = [(group.first, flat[key]) for group, flat in zip(groups, flats, strict=True) if key in flat]
        if len({repr(value) for _, value in have}) > 1 and _unsaid(key, have):
            keys.append(key)
    letters: dict[tuple[str, ...], str] = {}
    marks = [letters.setdefault(tuple(repr(f.get(k)) for k in keys), f"[{_letters(len(letters))}]") for f in flats]
    values = [{k: flat[k] for k in keys if k in flat} for flat in flats]
    return list(zip(marks if keys else [""] * len(groups), values, strict=True))


def explained(marked: Marks) -> list[str]:
    """Notes on the marks: the most common value of each key, then the values of each mark that differ from it."""
    keys = sorted(set().union(*(values for _, values in marked)))
    if not keys:
        return []
    counts = {k: Counter(str(values[k]) for _, values in marked if k in values) for k in keys}
    common = {k: count.most_common(1)[0][0] for k, count in counts.items()}
    notes = [
        "rows of different letters differ in more than their names say; unless listed below: "
        + ", ".join(f"{k}={value}" for k, value in common.items())
    ]
    for letter, values in dict(marked).items():
        other = [f"{k}={v}" for k, v in values.items() if str(v) != common[k]]
        other += [f"no {k}" for k in keys if k not in values]
        notes.append(f"{letter} {', '.join(other) or 'these values'}")
    return notes


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
    words = _four_choices(name)
    if not words:
        return key.startswith(WHAT_A_METHOD_CHANGES)
    group = "dataset" if key == "timesteps" else key.split(".")[0]
    means = _means(group, words[SHARED.index(group)]) if group in SHARED else {}
    return key in means and means[key] == value


@cache
def _four_choices(name: str) -> list[str]:
    """The choices that a name `dataset-model-neuron-loss` says; [] for another name."""
    words = name.split("-")
    fits = len(words) == len(SHARED) and all(word in files(group) for group, word in zip(SHARED, words, strict=True))
    return words if fits else []


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


def to_text(table: Table, width: int | None = None, colour: bool = False) -> str:
    """A table for the terminal; `width` None makes it as wide as it needs to be.

    Where the table does not fit `width` columns, each row takes up to three lines, and no line is longer: the name, cut in
    the middle if it is too long, the numbers, and as many time steps as fit. Narrow terminals need more lines.
    """

    def safe(text: str) -> str:
        return harmless(text).replace("\n", "?")

    lines = table.lines(safe)
    whole = Grid(title=Text(safe(table.title)), title_justify="left", box=box.HEAVY_HEAD, header_style="cyan")
    for c, text in zip(table.shown, lines[0], strict=True):
        whole.add_column(Text(text), justify="left" if c.kind == "text" else "right", overflow="fold")
    for row in lines[1:]:
        whole.add_row(_marked(row[0]), *map(Text, row[1:]))
    out = io.StringIO()
    needs = max(40, Console(file=out, width=10_000).measure(whole).maximum)
    console = Console(file=out, width=width or 10_000, force_terminal=colour)
    if width is None or needs <= width:
        console.print(whole, width=needs)
    else:
        _stacked(console, table, Text(safe(table.title) + "\n"), lines)
    notes = Grid.grid()
    for note in table.notes:
        notes.add_row("- ", Text(safe(note), overflow="fold"))
    console.print(notes)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _marked(label: str) -> Text:
    text = Text(label)
    text.highlight_regex(r"\[[a-z]+\]$", "yellow")
    return text


def _stacked(console: Console, table: Table, title: Text, lines: list[list[str]]) -> None:
    """Print each row on one to three lines, none longer than the console is wide."""
    head, width = lines[0], console.width
    widest = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [i for i, c in enumerate(table.shown) if i and c.kind != "steps" and widest[i] <= width // 3]
    if sum(widest) + 2 * (len(head) - 1) <= width:
        numbers = list(range(1, len(head)))
    beside = widest[0] + sum(widest[i] + 2 for i in numbers) <= width
    console.print(title)
    for line, row in zip(lines, [None, *table.rows], strict=True):
        style = "" if row else "cyan"
        cells = [f"{line[i]:{'<' if table.shown[i].kind == 'text' else '>'}{widest[i]}}" for i in numbers]
        first = Text(line[0], style) if row is None else _marked(line[0])
        if len(first) > width:
            first = Text(f"{line[0][: (width - 1) // 2]}…{line[0][-(width // 2) :]}")
        if beside:
            first.pad_right(widest[0] - len(first))
            console.print(first.append("  " + "  ".join(cells), style))
        else:
            console.print(first, Padding(Columns([Text(cell, style) for cell in cells], padding=(0, 2)), (0, 0, 0, 3)))
        for i, c in enumerate(table.shown):
            if not i or i in numbers or not line[i]:
                continue
            text = f"{head[i]}: {line[i]}" if row else head[i]
            if c.kind == "steps" and row:
                text = by_step(row[c.key], width - 3)
            console.print(Padding(Text(text, style), (0, 0, 0, 3)))
        if row is None:
            console.print(Text("-" * width))
    console.print(Text("-" * width))


def _json(tables: Sequence[Table]) -> str:
    """[{title, rows, notes}]; differences are in points, accuracies in percent."""

    def plain(value: Any) -> Any:
        return value._asdict() if hasattr(value, "_asdict") else value

    shown = [[c.key for c in (NUMBERS if _is_comparison(t) else t.columns)] for t in tables]
    content = [
        dict(title=t.title, rows=[{k: plain(row.get(k)) for k in keys} for row in t.rows], notes=t.notes)
        for t, keys in zip(tables, shown, strict=True)
    ]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    """One table: the comparison of all rows, or else the rows."""
    if not (found := [table for table in tables if _is_comparison(table)]):
        return to_csv(tables[0])
    rows = [
        row | {k: f"{p:.4g}" for k, p in row.items() if k.startswith("p") and p is not None}
        for t in found
        for row in t.rows
    ]
    return to_csv(replace(found[0], columns=NUMBERS, rows=rows))


def _is_comparison(table: Table) -> bool:
    return "difference" in table.rows[0]


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "text": lambda tables: "\n".join(map(to_text, tables)),
    "markdown": lambda tables: "\n".join(map(to_markdown, tables)),
    "csv": _csv,
    "latex": lambda tables: "% \\usepackage{booktabs}\n" + "\n".join(map(to_latex, tables)),
    "json": _json,
}


if __name__ == "__main__":
    sys.exit(console.script(main))
