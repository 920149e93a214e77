"""The page in a real browser: it loads, sorts, filters, fits narrow screens, can be used without a mouse, and is quick."""

import itertools
import shutil
import time
from pathlib import Path

import pytest
from fake_runs import fake_anytime, fake_run

from snn_repro.paper.statistics import verdicts
from snn_repro.report import render
from snn_repro.report.anytime import front

pytest.importorskip("plotly")
pytest.importorskip("selenium", reason="selenium drives the browser: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM, DRIVER = (shutil.which("chromium") or shutil.which("chromium-browser")), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no browser: apt install chromium chromium-driver"),
]
SECTIONS = "accuracy_steps runs comparison anytime learning_curves paper_tables firing_rates learned_imp samples"
ENERGY = dict(synops=1e6, macs=2e5, energy_pj=1.82e6, with_memory_pj=3e6, imp=dict(parameters=5, bytes=20, read_pj=1.0),
              layers={"conv1": dict(macs=2e5, synops=0.0), "fc": dict(macs=0.0, synops=1e6)})  # fmt: skip
EVIL = "</script><img src=x onerror='window.hacked=1'><b>%{x}"


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu --window-size=1280,1000".split():
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A page with every section: a trained network, rows with and without energy, dead layers, a hostile name, damage."""
    from snn_repro.config import load_config
    from snn_repro.train import run

    folder = tmp_path_factory.mktemp("small")
    runs = folder / "runs"
    short = ["recipe.epochs=3", "debug.max_steps=3", "logger.mode=disabled", "energy=true"]
    run(load_config([*short, "neuron=if_imp", "name=trained"]), str(runs / "trained"))
    for seed, acc in enumerate((0.7, 0.72)):
        rates = dict(firing_rates={"sn1": 0.0002, "sn2": 0.97}, energy=ENERGY)
        fake_run(runs, "loss=tet", "recipe.lr=0.5", "name=tet", seed=seed, acc=acc, extra=rates)
        fake_anytime(runs, "sdt", seed, "loss=sdt", acc=acc + 0.2)
        fake_run(runs, "experiment=table1_cifar10_tet", seed=seed, acc=acc)
    fake_run(runs, "neuron=psn", "name=ahead", extra=dict(causal=False))
    fake_run(runs, "loss=lts", "name=evil", acc=0.5, extra=dict(name=EVIL))
    (runs / "bad").mkdir()
    (runs / "bad/result.json").write_text("{")
    (folder / "page.html").write_text(render([runs])[0], "utf-8")
    return folder / "page.html"


def load(driver, page: Path, width: int = 1280, dark: bool = False) -> None:
    """Open a page again, and wait until its table stands."""
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    size = dict(width=width, height=1000, deviceScaleFactor=1, mobile=False)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    driver.execute_script("sessionStorage.clear()")
    driver.get_log("browser")
    driver.get("about:blank")
    driver.get(page.as_uri())
    until(driver, lambda: driver.execute_script("return document.documentElement.dataset.ready"))


def until(driver, condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, driver.get_log("browser")
        time.sleep(0.02)
    return value


def names(driver) -> list[str]:
    return [e.text.split("\n")[0] for e in driver.find_elements(By.CSS_SELECTOR, ".runs tbody th")]


def accuracies(driver) -> list[float]:
    heads = driver.find_elements(By.CSS_SELECTOR, ".runs thead th")
    place = next(i for i, head in enumerate(heads) if head.find_elements(By.CSS_SELECTOR, "[data-sort=acc]"))
    cells = "return [...document.querySelectorAll('.runs tbody tr')].map(tr => tr.children[arguments[0]].textContent)"
    return [float(text.split()[0]) for text in driver.execute_script(cells, place)]


def see_all(driver) -> None:
    """Scroll through the page until every chart is drawn."""
    for plot in driver.find_elements(By.CSS_SELECTOR, ".plot"):
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        until(driver, lambda plot=plot: not plot.is_displayed() or plot.find_elements(By.CSS_SELECTOR, ".main-svg"))


def test_it_loads_sorts_and_filters(driver, small):
    load(driver, small)
    assert [s.get_attribute("id") for s in driver.find_elements(By.CSS_SELECTOR, "section[id]")] == SECTIONS.split()
    assert not driver.find_elements(By.CSS_SELECTOR, "section:not(#comparison) .plot:not([aria-label])")
    accuracy = driver.find_element(By.CSS_SELECTOR, "[data-sort=acc]")
    accuracy.click()
    assert (downwards := accuracies(driver)) == sorted(downwards, reverse=True) and len(downwards) == 6
    assert accuracy.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    accuracy.send_keys(Keys.ENTER)  # the keyboard does the same
    assert accuracies(driver) == downwards[::-1]
    Select(driver.find_element(By.CSS_SELECTOR, "[data-facet=loss]")).select_by_visible_text("tet")
    assert sorted(names(driver)) == ["table1_cifar10_tet", "tet"]
    assert "2 of 6 rows" in driver.find_element(By.CSS_SELECTOR, ".count").text
    driver.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("table1")
    assert names(driver) == ["table1_cifar10_tet"]
    # no click: a chart that is drawn again moves the page
    driver.find_element(By.XPATH, "//button[text()='Clear filters']").send_keys(Keys.ENTER)
    assert len(names(driver)) == 6 and EVIL in names(driver)
    driver.find_element(By.XPATH, f'//label[text()="{EVIL}"]').click()  # what a user wrote is shown and does nothing
    see_all(driver)
    assert driver.execute_script("return window.hacked") is None and not driver.find_elements(By.CSS_SELECTOR, "img")
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width, dark", [(1280, True), (390, False)])
def test_it_fits_the_screen_and_axe_has_no_serious_complaint(driver, small, width, dark):
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe looks at the page: pip install axe-core-python")
    load(driver, small, width, dark)
    for name in ("sdt", "trained"):
        driver.find_element(By.XPATH, f"//label[text()='{name}']").click()
    driver.execute_script("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    see_all(driver)
    page = "document.documentElement"
    wide, seen = driver.execute_script(f"return [{page}.scrollWidth, {page}.clientWidth]")
    assert wide == seen <= width
    found = axe.Axe().run(driver)["violations"]
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == [] and driver.get_log("browser") == []


DIFFERENCES = {  # in points from the baseline, by seed
    "better": (5, 6, 4, 5, 5), "equivalent": (0, 0.5, -0.5, 0, 0), "cannot": (5, -5, 2, 0, -3),
    "worse": (-9, -8, -9, -9.5, -9),
}  # fmt: skip


def test_two_ticked_rows_have_the_verdict_of_the_statistics_and_a_link_restores_them(driver, tmp_path):
    measured: dict[str, list[list[float]]] = {}  # [readout, steps...] by seed, in percent
    more = dict(code=dict(commit="c0ffee" * 7, dirty=False, numbers=0))
    for name, by_seed in {"base": (0, 0, 0, 0, 0), **DIFFERENCES}.items():
        values = [0.7 + (k + d) / 100 for k, d in enumerate(by_seed)]
        made = [fake_run(tmp_path, f"name={name}", seed=k, acc=a, extra=more) for k, a in enumerate(values)]
        measured[name] = [[100 * a for a in (run["acc_last"], *run["acc_step"])] for run in made]
    page = tmp_path / "page.html"
    page.write_text(render([tmp_path], 0)[0], "utf-8")
    load(driver, page, 1400)
    said = lambda: driver.find_element(By.CSS_SELECTOR, "#comparison [role=status]").text  # noqa: E731
    tick = lambda name: driver.find_element(By.XPATH, f"//label[text()='{name}']").click()  # noqa: E731
    cells = (
        "return [...document.querySelectorAll('#comparison tbody tr')].map(r => [...r.children].map(c => c.innerText))"
    )
    tick("base")
    assert "exactly two rows" in said()
    for name in DIFFERENCES:
        tick(name)
        pairs = list(zip(zip(*measured["base"], strict=True), zip(*measured[name], strict=True), strict=True))
        expected = [*verdicts(pairs[:1], 0.5), *verdicts(pairs[1:], 0.5)]
        for v, (_, _, _, mean, interval, p, _, word) in zip(expected, driver.execute_script(cells)[:5], strict=True):
            assert (word.split(",")[0], mean.replace("−", "-")) == (v.word, f"{v.found.mean:+.2f}")
            assert interval.replace("−", "-") == f"{v.found.low:+.2f} to {v.found.high:+.2f}"
            assert p == ("< 0.001" if v.p < 0.001 else f"{v.p:.3f}")
        assert expected[0].word.split()[0] == name and name in (verdict := said())
        tick(name)
    tick("worse")
    driver.find_element(By.XPATH, "//button[text()='Command']").click()
    command, address = driver.find_element(By.CSS_SELECTOR, "#comparison pre").text, driver.current_url
    assert command == f"python scripts/compare.py base worse --in {tmp_path}" and "#rows=" in address
    load(driver, page)
    assert "exactly two rows" in said()
    driver.get(address)
    until(driver, lambda: said() == verdict)
    see_all(driver)
    point = driver.find_elements(By.CSS_SELECTOR, "#accuracy_steps .scatterlayer .point")[-1]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(driver).move_to_element(point).pause(0.5).click().perform()
    until(driver, lambda: "c0ffeec0ffee" in driver.find_element(By.CSS_SELECTOR, ".figures [role=status]").text)
    assert driver.get_log("browser") == []


def test_the_slider_shows_the_numbers_of_anytime_json(driver, tmp_path):
    runs = {name: [fake_anytime(tmp_path, name, seed) for seed in (0, 1)] for name in ("a", "bb", "ccc")}
    (page := tmp_path / "page.html").write_text(render([tmp_path], 0)[0], "utf-8")
    load(driver, page, 1400)
    for name in ("bb", "ccc"):
        driver.find_element(By.XPATH, f"//label[text()='{name}']").click()
    see_all(driver)
    slide = "const s = $('#anytime [type=range]'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    cells = "return [...$('#anytime .at tbody').rows].map(r => [...r.cells].map(c => c.innerText.replaceAll(',', '')))"
    drawn = """const { data, layout } = $('#anytime .plot'), front = data.find(t => t.line?.shape === 'hv');
        return [front.x.map((x, i) => [x, front.y[i]]), layout.annotations.map(a => [a.x, a.y])]"""
    costs = {"confidence, readout": ("operations", 2), "entropy, mean": ("steps", 1)}
    for (rule, (cost, k)), at in itertools.product(costs.items(), (35, 80)):
        for key, value in (("rule", rule), ("cost", cost)):
            Select(driver.find_element(By.CSS_SELECTOR, f"[data-anytime={key}]")).select_by_value(value)
        driver.execute_script(slide, at)
        rows = [sum(run[rule] for run in runs[name]) / 2 for name in ("bb", "ccc")]
        rows = [[acc.round(2), steps.round(2), operations.round()] for acc, steps, operations in rows]
        for row, (name, seeds, *shown) in zip(rows, driver.execute_script(cells), strict=True):
            assert seeds == "2" and name.split()[-1] in ("bb", "ccc")
            assert [float(text) for text in shown] == [measure[at] for measure in row]
        line = [[c, a] for c, a, _ in front((c, a, 0) for row in rows for c, a in zip(row[k], row[0], strict=True))]
        wanted = [line, [[row[k][at], row[0][at]] for row in rows]]
        until(driver, lambda wanted=wanted: driver.execute_script(drawn) == wanted)
    assert driver.get_log("browser") == []
