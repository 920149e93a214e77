// Early exit: accuracy against its cost by threshold, the Pareto front of the rows shown, and their numbers at one threshold.

// places in points [[cost, accuracy], ...] of the Pareto front, by rising cost, as `front` of snn_repro/report/anytime.py finds it
function paretoFront(points) {
  const order = points.map((_, i) => i).sort((i, j) => points[i][0] - points[j][0] || points[j][1] - points[i][1]);
  const found = [];
  for (const i of order) if (!found.length || points[i][1] > points[found.at(-1)][1]) found.push(i);
  return found;
}

scripts.anytime = (section, data) => {
  const place = $(".place", section), last = data.thresholds.length - 1;
  const costs = { operations: "mean synaptic operations per sample", steps: "mean time steps" };
  const kept = state.anytime = { rule: data.first, cost: "operations", at: Math.round(0.9 * last), ...state.anytime };
  if (!data.names.includes(kept.rule)) kept.rule = data.first;

  const menu = (key, choices, label) => {
    const made = el("select", { "data-anytime": key, onchange: () => { kept[key] = made.value; remember(); update(); } },
      ...choices.map(([value, text]) => el("option", { value }, text)));
    made.value = kept[key];
    return el("label", {}, `${label} `, made);
  };
  const said = (name) => name.replace(", mean", " of the mean output so far").replace(", readout", " of the loss's readout");
  const slider = el("input", { type: "range", min: 0, max: last, step: 1, oninput: () => { kept.at = Number(slider.value); remember(); move(); draw(marks); } });
  const threshold = el("output");
  slider.value = kept.at;
  const figures = el("div", { class: "figures" }), below = el("div");
  place.append(el("div", { class: "controls" }, menu("rule", data.names.map((name) => [name, said(name)]), "Rule"), menu("cost", Object.entries(costs), "Against"),
    el("label", {}, "Threshold ", slider, " ", threshold)), figures, below);

  const of = (row) => data.rows[row].rules[data.names.indexOf(kept.rule)];
  const cells = (row, i) => [of(row).acc[i].toFixed(2), of(row).steps[i].toFixed(2), of(row).operations[i].toLocaleString("en")];
  const made = {}; // by title of a panel: its elements
  function figure(title) {
    const plot = el("div", { class: "plot", role: "img" }), listed = el("div"), front = el("p", { class: "which" }), runs = el("div", { role: "status" });
    return made[title] ??= { plot, listed, front, runs, box: el("div", {}, el("h3", {}, title), plot, listed, front, runs) };
  }
  let panels = []; // {title, rows, rest, lines: {row: cells of the table that move}, points: [cost, accuracy, row, threshold] on the front}

  function table(panel) {
    const head = ["row", "seeds", "accuracy %", "mean time steps", "operations"];
    const body = panel.rows.map((row, place) => {
      const mark = el("span", { "aria-hidden": "true" }, sign(place)[1]), [n, all] = data.rows[row].seeds;
      mark.style.color = colour(place);
      panel.lines[row] = head.slice(2).map(() => el("td", { class: "number" }));
      const name = el("button", { type: "button", title: "Show the runs behind it", onclick: () => figure(panel.title).runs.replaceChildren(origin(row)) }, page.rows[row]);
      return el("tr", {}, el("th", { scope: "row" }, el("div", { class: "named" }, mark, name)), el("td", { class: "number" }, n === all ? n : `${n} of ${all}`), ...panel.lines[row]);
    });
    return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": `Mean over seeds at the threshold, ${panel.title}` },
      el("table", { class: "at" }, el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { scope: "col", class: i ? "number" : null }, text)))), el("tbody", {}, ...body)));
  }

  function describe() {
    const titles = Object.fromEntries(Object.entries(data.rows).map(([row, { panel }]) => [row, panel]));
    const shown = shownRows((row) => row in data.rows, titles);
    panels = [...new Set([...shown.rows, ...shown.rest].map((row) => titles[row]))].map((title) => {
      const [rows, rest] = [shown.rows, shown.rest].map((several) => several.filter((row) => titles[row] === title));
      const points = rows.flatMap((row) => of(row).acc.map((acc, i) => [of(row)[kept.cost][i], acc, row, i]));
      return { title, rows, rest, lines: {}, points: paretoFront(points).map((i) => points[i]) };
    });
    figures.classList.toggle("several", panels.length > 1);
    figures.replaceChildren(...panels.map((panel) => {
      const { plot, listed, front, runs, box } = figure(panel.title), counts = panel.rows.map((row) => [row, panel.points.filter((point) => point[2] === row).length]);
      listed.replaceChildren(table(panel));
      front.textContent = `Points on the front of these rows: ${counts.filter(([, n]) => n).map(([row, n]) => `${page.rows[row]} (${n})`).join(", ")}.`;
      plot.setAttribute("aria-label", `${panel.title}: test accuracy against ${costs[kept.cost]} by threshold, ${said(kept.rule)}. ${front.textContent} `
        + `At threshold 1: ${panel.rows.map((row) => `${page.rows[row]} ${of(row).acc[last].toFixed(2)} %`).join(", ")}.`);
      runs.replaceChildren();
      return box;
    }));
    const chart = { x: costs[kept.cost], y: "test accuracy %", traces: Object.fromEntries(shown.rows.map((row) => [row, [{ threshold: data.thresholds, ...curve(row) }]])) };
    below.replaceChildren(...(panels.length ? [el("p", { class: "which" }, which(shown, true)), numbers(chart, shown)]
      : [el("p", { class: "empty" }, "None of these rows has these data.")]));
  }

  function curve(row) {
    const { acc, sd } = of(row), several = data.rows[row].seeds[0] > 1;
    return { x: of(row)[kept.cost], y: acc, ...(several ? { sd } : {}) };
  }

  // a sign above each curve, at the threshold
  const signs = ({ rows }) => rows.map((row, i) => ({
    x: of(row)[kept.cost][kept.at], y: of(row).acc[kept.at], text: sign(i)[1], font: { color: colour(i), size: 20 }, ax: 0, ay: -26, arrowhead: 0, arrowwidth: 2, arrowcolor: colour(i),
  }));

  function traces(panel) {
    const { rows, rest, points } = panel, ink = variable("--ink");
    const text = (row) => data.thresholds.map((value, i) => {
      const [acc, steps, operations] = cells(row, i), sd = data.rows[row].seeds[0] > 1 ? ` ± ${of(row).sd[i].toFixed(2)}` : "";
      return `${plain(short(page.rows[row], 60))}<br>threshold ${value.toFixed(2)}: ${acc}${sd} %, ${steps} steps, ${operations} operations`;
    });
    return [...rest.map((row) => faint(curve(row), row)),
      { type: "scatter", mode: "lines", x: points.map(([x]) => x), y: points.map(([, y]) => y), hoverinfo: "skip", opacity: 0.3, line: { color: ink, width: 10, shape: "hv" } },
      ...rows.flatMap((row, i) => dressed({ ...curve(row), mode: "lines+markers", text: text(row), hoverinfo: "text" }, row, i))];
  }

  async function whole(Plotly, panel) {
    const { plot, runs } = figure(panel.title), isNew = !plot.children.length;
    const base = layout({ x: costs[kept.cost], y: "test accuracy %" }, plot.clientWidth < 600);
    base.width = plot.clientWidth || undefined; // the number of panels beside each other may have changed
    await Plotly.react(plot, traces(panel), { ...base, annotations: signs(panel) }, CONFIG);
    if (isNew) plot.on("plotly_click", ({ points: [{ data: { meta: { row } } }] }) => runs.replaceChildren(origin(row)));
  }

  async function marks(Plotly, panel) {
    const { plot } = figure(panel.title);
    if (plot.data) await Plotly.relayout(plot, { annotations: signs(panel) });
  }

  let next = null, busy = false; // one drawing at a time: a slider moves faster than charts are drawn
  async function draw(what) {
    next = next === whole ? whole : what;
    if (busy) return;
    busy = true;
    try {
      const Plotly = await loadPlotly();
      while (next) {
        const now = next;
        next = null;
        for (const panel of panels) await now(Plotly, panel);
      }
    } finally { busy = false; }
  }
  const redraw = whenVisible(place, () => draw(whole));

  function move() { // only the numbers at the threshold
    slider.setAttribute("aria-valuetext", threshold.textContent = data.thresholds[kept.at].toFixed(2));
    for (const { lines } of panels) {
      for (const [row, line] of Object.entries(lines)) cells(row, kept.at).forEach((text, i) => { line[i].textContent = text; });
    }
  }

  const update = () => { describe(); move(); redraw(); };
  update();
  listeners.push(update);
};
