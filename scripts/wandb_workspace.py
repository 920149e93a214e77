"""Create a W&B view: accuracy against time step, reproduced against paper, convergence.

python scripts/wandb_workspace.py --entity TEAM [--project snn_repro] [--table 1|2|3]   save the view, print its URL
python scripts/wandb_workspace.py --entity TEAM --print                                 print it without a server

Needs pip install 'snn_repro[dashboard]', and `wandb login` to save. Every run logs the data of the view; runs logged
offline appear after `wandb sync`. Every line and bar is one row: mean and standard deviation over its seeds, never over data sets.
"""

import json
import sys

from snn_repro import console
from snn_repro.errors import UserError
from snn_repro.paper.rows import load_rows
from snn_repro.runs.loggers.wandb import GROWTH, has_key


def build(entity: str, project: str, table: str | None = None):
    """The view as a wandb_workspaces Workspace, for all runs or one table.

    Raises UserError when wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError("the view needs another package: pip install 'snn_repro[dashboard]'") from None
    from wandb_workspaces.expr import Tags

    by_row = dict(groupby=wr.Metric("Group"), groupby_rangefunc="stddev")  # one row over its seeds, so of one data set

    def lines(title: str, x: str, *y: str, **more):
        return wr.LinePlot(title=title, x=x, y=list(y), **by_row, **more)

    time_steps = ws.Section(
        name="Accuracy against time step", is_open=True,
        panels=[
            lines("y_t alone", "final/time_step", "final/acc_step", title_x="time step"),
            lines("mean of y_1..y_t", "final/time_step", "final/acc_cum", title_x="time step"),
            lines(
                "y_t alone after 25, 50, 75 and 100 % of the epochs", "final/time_step",
                *(f"time_steps/acc_step_{percent}" for percent in GROWTH), "final/acc_step", title_x="time step",
            ),
            wr.LinePlot(title="each y_t over the epochs", x="epoch", metric_regex="^acc_step_t[0-9]+$"),
        ],
    )  # fmt: skip
    rows = [row for row in load_rows() if row.own and table in (None, str(row.table))]
    against_paper = ws.Section(
        name="Reproduced against paper", is_open=True,
        panels=[
            wr.BarPlot(
                title="test accuracy of the last epoch, mean and spread over seeds", metrics=["acc_last"],
                **by_row, max_bars_to_show=100,
            ),
            wr.BarPlot(
                title="best epoch on the test set, as the paper reports (optimistic)", metrics=["acc_best_test"],
                **by_row, max_bars_to_show=100,
            ),
            wr.MarkdownPanel(markdown=paper_numbers(rows)),
        ],
    )  # fmt: skip
    convergence = ws.Section(
        name="Convergence", is_open=True,
        panels=[
            lines("test accuracy", "epoch", "acc"),
            lines("validation accuracy", "epoch", "val_acc"),
            lines("training loss", "epoch", "train_loss", log_y=True),
            lines("learning rate", "epoch", "lr"),
        ],
    )  # fmt: skip
    name = f"snn_repro, table {table}" if table else "snn_repro"
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=[time_steps, against_paper, convergence],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[Tags() == f"table{table}"] if table else [],
            pinned_columns=["summary:acc_last", "summary:acc_best_test", "config:seed"],
        ),
    )  # fmt: skip


def save(view) -> str:
    """Save the view and return its URL; raises UserError without a login or on failure."""
    if not has_key():
        raise UserError(
            "saving the view needs a W&B key: run `wandb login` or set WANDB_API_KEY; --print prints the view without one"
        )
    try:
        return view.save().url
    except Exception as error:  # from wandb, its GraphQL client or requests
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"W&B did not save the view ({why}); check --entity, --project, the key and the network"
        ) from None


def paper_numbers(rows) -> str:
    """Markdown table of the paper's accuracies."""
    lines = ["| row | paper, % |", "| --- | ---: |"]
    lines += [f"| {row.id} | {row.corrected or row.accuracy:.2f} |" for row in rows]
    return "\n".join(lines)


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Save or print the view; exit code 0, or 2 for wrong input."""
    parser = console.Parser("wandb_workspace.py", __doc__)
    parser.add_argument("--entity", required=True, help="W&B team or user")
    parser.add_argument("--project", default="snn_repro", help="W&B project, as logger.project")
    parser.add_argument("--table", choices=("1", "2", "3"), help="only the runs of one table")
    parser.add_argument("--print", action="store_true", help="print the view as JSON instead of saving it")
    args = parser.parse_args(argv)
    view = build(args.entity, args.project, args.table)
    print(json.dumps(view._to_model().model_dump(mode="json", by_alias=True), indent=2) if args.print else save(view))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
