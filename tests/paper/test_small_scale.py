"""scripts/study.py small_scale: claims judged on made-up runs whose effects are known."""

import numpy as np
import pytest
from fake_runs import fake_run
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError
from snn_repro.paper.results import group_runs, load
from studies import small_scale as claims

study = script("study")


def sweep(folder, dataset="digits", seeds=6, imp=0.0, seed=0, **loss_effect):
    """All cells of a data set: accuracy 0.80 + effects + a common wobble a seed + a little noise."""
    plan = claims.SWEEPS[dataset]
    rng = np.random.default_rng(seed)
    for s in range(seeds):
        common = 0.02 * rng.standard_normal()
        for neuron in plan.neurons:
            for loss in plan.losses:
                acc = (
                    0.8
                    + common
                    + loss_effect.get(loss, 0)
                    + imp * neuron.endswith("_imp")
                    + 0.002 * rng.standard_normal()
                )
                fake_run(folder, f"dataset={dataset}", f"neuron={neuron}", f"loss={loss}", seed=s, acc=acc, n_test=2000)


def judged(folder):
    rows = claims.judge_claims(group_runs(load([folder]))[0])
    return {(r.claim.split(" ")[0], r.dataset, r.versus): r for r in rows if r.measure == "readout"}


def test_planted_effects_are_found_and_absent_ones_are_not(tmp_path):
    sweep(tmp_path, imp=0.02, lts=0.03)
    sweep(tmp_path, "digits_dvs", imp=-0.02, tet_s=-0.02)
    rows = judged(tmp_path)
    assert rows["IMP", "digits_dvs", "same network without IMP"].verdict == "not supported"
    assert rows["TET-S", "digits_dvs", "TET"].verdict == "not supported"
    imp = rows["IMP", "digits", "same network without IMP"]
    assert imp.verdict == "supported" and imp.n == 6 and imp.low < 2 < imp.high and imp.p < imp.p_holm < 0.05
    assert rows["LTS", "digits", "SDT"].verdict == rows["LTS", "digits", "TET"].verdict == "supported"
    none = rows["SDT", "digits", "TET"]
    assert none.verdict == "no effect above 0.5 (exploratory)" and none.p_margin < 0.05
    assert any(row.verdict == "not run" for row in rows.values())


def test_claims_about_early_steps(tmp_path):
    """IMP adds 5 points at step 1 and nothing at the other three, so 1.25 points on average."""
    for seed in range(6):
        for neuron in ("if", "if_imp"):
            for loss in ("sdt", "tet", "lts"):
                base = 0.7 + 0.001 * (seed % 3) + 0.0005 * (seed % 2) * (neuron == "if_imp")
                steps = [base + 0.05 * (neuron == "if_imp"), base, base, base]
                fake_run(
                    tmp_path, f"neuron={neuron}", f"loss={loss}", seed=seed, acc=base, n_test=2000, extra=dict(acc_step=steps)
                )  # fmt: skip
    found = claims.judge_claims(group_runs(load([tmp_path]))[0])
    rows = {(r.claim, r.versus): r for r in found if r.dataset == "digits"}
    imp = "same network without IMP"
    first, area = (rows[f"IMP helps {when}", imp] for when in ("at step 1", "on average over the steps"))
    assert (first.effect, area.effect) == (pytest.approx(5.025), pytest.approx(1.275))
    assert first.verdict == area.verdict == "supported (exploratory)"
    assert rows["IMP helps", imp].verdict == "no effect above 0.5 (exploratory)"
    same = rows["TET beats SDT at step 1", "SDT"]
    assert same.verdict == "undecided (all 6 differences are equal)" and same.interval == "+0 images of 2000, 6 times"


def test_only_seeds_of_every_cell_count_and_few_decide_nothing(tmp_path):
    sweep(tmp_path, seeds=5, imp=0.05)
    (tmp_path / "digits-small-if_imp-lts" / "seed4" / "result.json").unlink()
    rows = judged(tmp_path)
    row = rows["IMP", "digits", "same network without IMP"]
    assert row.n == 4 and row.low > 0 and row.verdict == "undecided (fewer than 5 seeds)"
    assert rows["SDT", "digits", "TET"].n == 5


def test_a_mixture_of_recipes_is_refused(tmp_path):
    sweep(tmp_path, seeds=1)
    fake_run(tmp_path, "loss=lts", "neuron=if", "recipe.lr=0.05", folder="other")
    with pytest.raises(UserError, match="two configurations of lts"):
        judged(tmp_path)
    (tmp_path / "digits-small-if-lts" / "seed0" / "result.json").unlink()
    with pytest.raises(UserError, match="recipe.lr"):
        judged(tmp_path)


def test_the_report_opens_with_a_summary_and_states_its_rule_before_the_verdicts(tmp_path, capsys):
    sweep(tmp_path / "runs" / "small_scale", imp=0.02)
    assert study.main(["small_scale", "report", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "small_scale.md").read_text()
    assert (
        text.index("## Summary")
        < text.index("Fixed before")
        < text.index("## Verdicts")
        < text.index("### Every comparison")
    )
    assert "| IMP helps | digits | **supported** |" in text and "seed=0,1,2,3,4,5" in text
    assert study.main(["small_scale", "report", "--check", "--results", str(tmp_path)]) == 0
    (tmp_path / "small_scale.md").write_text(text + "edited")
    assert study.main(["small_scale", "report", "--check", "--results", str(tmp_path)]) == 1
    assert "study.py small_scale report" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", [d for d in claims.SWEEPS if d in SETS])
def test_the_commands_compose(dataset, capsys):
    assert study.main(["small_scale", "run", dataset, "data_dir=/data", "--print", "--seeds", "7"]) == 0
    words = capsys.readouterr().out.split()
    assert "seed=0,1,2,3,4,5,6" in words and "data_dir=/data" in words
    overrides = [w.split(",")[0] for w in words[4:] if not w.startswith("hydra.")]
    assert load_config(overrides).dataset.name == dataset
