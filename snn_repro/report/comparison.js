// Two rows, paired over their common seeds, as snn_repro/paper/statistics.py does it: a test compares the numbers of both.

const NO_SPREAD = 1e-12; // of differences that agree up to rounding

// P(T > t) of Student's t, df >= 1 a whole number (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)
function tTail(t, df) {
  const angle = Math.atan(Math.abs(t) / Math.sqrt(df)), odd = df % 2 === 1, c = Math.cos(angle), s = Math.sin(angle);
  let term = odd ? c : 1, sum = df === 1 ? 0 : term;
  for (let k = odd ? 3 : 2; k <= df - 2; k += 2) { term *= c * c * (k - 1) / k; sum += term; }
  const within = odd ? 2 / Math.PI * (angle + s * sum) : s * sum;
  return t >= 0 ? (1 - within) / 2 : (1 + within) / 2;
}

function paired(a, b, quantiles) {
  const d = b.map((value, i) => value - a[i]), n = d.length, mean = d.reduce((sum, x) => sum + x, 0) / n;
  if (n === 1) return { mean, n, sd: null, low: null, high: null, p: null };
  const sd = Math.sqrt(d.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (n - 1)), half = quantiles[n] * sd / Math.sqrt(n);
  const flip = n > 16 ? null : Math.abs(mean) <= NO_SPREAD ? 1 : 2 / 2 ** n; // exact sign flips of equal differences
  const p = sd > NO_SPREAD ? 2 * tTail(Math.abs(mean) * Math.sqrt(n) / sd, n - 1) : flip;
  return { mean, n, sd, low: mean - half, high: mean + half, p };
}

function equivalence({ mean, sd, n }, margin) {
  if (sd === null) return null;
  const inside = margin - Math.abs(mean);
  return sd <= NO_SPREAD ? (inside > 0 ? 0 : 1) : tTail(inside * Math.sqrt(n) / sd, n - 1);
}

function holm(values) { // null stays null
  const order = values.map((p, i) => i).filter((i) => values[i] !== null).sort((i, j) => values[i] - values[j]);
  const adjusted = values.map(() => null);
  let above = 0;
  order.forEach((i, k) => { adjusted[i] = above = Math.max(above, Math.min(1, values[i] * (order.length - k))); });
  return adjusted;
}

// measures of one family: [[values of A, values of B], ...] over the same seeds
function verdicts(pairs, { margin, level, quantiles }) {
  const found = pairs.map(([a, b]) => paired(a, b, quantiles)), ps = holm(found.map(({ p }) => p)), same = holm(found.map((f) => equivalence(f, margin)));
  return found.map((f, i) => {
    const differs = ps[i] !== null && ps[i] <= level, alike = same[i] !== null && same[i] <= level;
    const word = differs ? (f.mean > 0 ? "better" : "worse") : alike ? "equivalent" : "cannot be said";
    return { ...f, adjusted: ps[i], equivalent: same[i], word, small: differs && alike };
  });
}

const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
const pText = (p) => (p === null ? "" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const interval = (v) => (v.low === null ? "" : `${signed(v.low)} to ${signed(v.high)}`);
const average = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

scripts.comparison = (section, packed) => {
  const data = JSON.parse(packed), place = $(".place", section);
  const plot = el("div", { class: "plot", role: "img" }), shownText = el("pre", { tabindex: "0", hidden: true });
  const sides = el("div"), said = el("p", { role: "status" }), box = el("div"); // the verdict is read out when it changes
  place.append(sides, said, box);
  let current = null;

  function compared(a, b) { // ids of rows; a sentence where they cannot be paired
    const [one, other] = [data.rows[a], data.rows[b]];
    if (!one || !other) return `${page.rows[one ? b : a]} has no finished run without a debug key.`;
    const differ = Object.keys(one.test).filter((key) => one.test[key] !== other.test[key]);
    if (differ.length) return `The rows were not tested on the same data: ${differ.map((key) => `${key} ${one.test[key]} and ${other.test[key]}`).join(", ")}.`;
    const seeds = Object.keys(one.seeds).filter((seed) => seed in other.seeds);
    if (!seeds.length) return "The rows have no seed in common.";
    const T = Math.min(...seeds.flatMap((seed) => [one, other].map((row) => row.seeds[seed].length - 1)));
    const values = (row, i) => seeds.map((seed) => row.seeds[seed][i]);
    const at = (i) => [values(one, i), values(other, i)];
    const pairs = Array.from({ length: T + 1 }, (_, i) => at(i));
    const found = [...verdicts(pairs.slice(0, 1), data), ...verdicts(pairs.slice(1), data)];
    const lines = found.map((v, i) => ({ ...v, at: i ? `step ${i}` : "readout", a: average(pairs[i][0]), b: average(pairs[i][1]) }));
    return { a, b, seeds, T, lines, names: [page.rows[a], page.rows[b]], causes: causes(a, b) };
  }

  function causes(a, b) { // settings in which the rows differ, apart from initial potential and loss: [key, of A, of B]
    const { facts, method } = page.sections.runs.data;
    return Object.entries(facts).filter(([key, of]) => !method.includes(key) && String(of[a]) !== String(of[b]) && of[a] !== null && of[b] !== null)
      .map(([key, of]) => [key, of[a], of[b]]);
  }

  function verdict({ lines: [readout, ...steps], seeds }) {
    const how = {
      better: "B is better than A at the readout", worse: "B is worse than A at the readout",
      equivalent: `A and B are equivalent at the readout: they differ by less than ${data.margin} points`,
      "cannot be said": "Whether A or B is better at the readout cannot be said",
    }[readout.word] + (readout.small ? `, by less than ${data.margin} points` : "");
    const p = readout.p === null ? ", one common seed: an interval needs two" : `, 95 % interval ${interval(readout)}, p ${readout.p < 0.001 ? "" : "= "}${pText(readout.p)}, ${seeds.length} common seeds`;
    const words = [...new Set(steps.map(({ word }) => word))];
    const by = words.map((word) => `${word} at ${steps.flatMap((v, i) => (v.word === word ? [i + 1] : [])).join(", ")}`);
    return `${how} (B − A = ${signed(readout.mean)} points${p}).` + (by.length ? ` B by time step: ${by.join("; ")}.` : "");
  }

  const hashes = (row, seeds) => seeds.map((seed) => data.rows[row].hashes[seed]).join(", ");
  const caption = ({ a, b, seeds, T, names }) => `B − A in points of test accuracy: mean and 95 % interval of the paired t-test over seed${seeds.length > 1 ? "s" : ""} ${seeds.join(", ")}; `
    + `p${T ? ` by Holm's correction over ${T} steps` : ""}; equivalent: within ${data.margin} points. `
    + `A: ${names[0]}, config hashes ${hashes(a, seeds)}. B: ${names[1]}, config hashes ${hashes(b, seeds)}.`;

  const head = ["at", "A %", "B %", "B − A", "95 % interval", "p", "p of equivalence", "verdict"];
  const cells = (v) => [v.at, v.a.toFixed(2), v.b.toFixed(2), signed(v.mean), interval(v), pText(v.adjusted), pText(v.equivalent), v.word + (v.small ? `, by less than ${data.margin}` : "")];

  function latex(found) {
    const safe = (text) => text.replace(/[\\&%$#_{}~^]/g, (c) => ({ "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" }[c] || "\\" + c)).replace(/−/g, "$-$").replace(/</g, "$<$");
    const line = (texts) => `  ${texts.map(safe).join(" & ")} \\\\`;
    return ["% \\usepackage{booktabs}", "\\begin{table}", "  \\centering\\small", `  \\caption{${safe(caption(found))}}`, `  \\begin{tabular}{l${"r".repeat(head.length - 2)}l}`, "  \\toprule",
      line(head), "  \\midrule", ...found.lines.map((v) => line(cells(v))), "  \\bottomrule", "  \\end{tabular}", "\\end{table}"].join("\n");
  }

  function command({ names, causes }) { // a row is its name with the keys that tell it from others
    const quoted = (word) => (/^[\w./=,-]+$/.test(word) ? word : `'${word.replace(/'/g, "'\\''")}'`);
    const said = (name, i) => {
      const keys = causes.filter(([key]) => !["threads", "processes"].includes(key) && !name.includes(`${key}=`)).map((cause) => `${cause[0]}=${cause[i + 1]}`);
      return !keys.length ? name : name.endsWith("]") ? `${name.slice(0, -1)}, ${keys.join(", ")}]` : [name, ...keys].join(",");
    };
    return ["python scripts/compare.py", ...names.map((name, i) => quoted(said(name, i))), ...data.places.map((path) => `--in ${quoted(path)}`)].join(" ");
  }

  function chart({ lines: [, ...steps], T }) {
    const x = steps.map((_, i) => i + 1), ink = colour(0), edge = (key, fill) => ({
      type: "scatter", mode: "lines", x, y: steps.map((v) => v[key]), line: { width: 0 }, hoverinfo: "skip", fill, fillcolor: ink + "2e",
    });
    const line = (y, dash) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: variable("--soft"), width: 1, dash } });
    const made = layout({ x: "time step", y: "B − A, points" }, plot.clientWidth < 600);
    made.xaxis.dtick = T < 17 ? 1 : undefined;
    made.shapes = [line(0, "solid"), line(data.margin, "dot"), line(-data.margin, "dot")];
    const band = steps[0].low === null ? [] : [edge("low", "none"), edge("high", "tonexty")];
    const traces = [...band, { type: "scatter", mode: "lines+markers", x, y: steps.map((v) => v.mean), name: "B − A", line: { color: ink, width: 2 }, marker: { color: ink, size: 8 },
      text: steps.map((v) => `step ${v.at.slice(5)}: ${signed(v.mean)} (${interval(v)}), ${v.word}`), hoverinfo: "text" }];
    return { traces, layout: made };
  }

  async function picture(found) { // on white, with the caption below the axis
    const Plotly = await loadPlotly(), { traces, layout: made } = chart(found), ink = "#1c2430", axis = { color: ink, gridcolor: "#d8dce2", linecolor: "#d8dce2" };
    const words = caption(found).split(" "), lines = [""];
    for (const word of words) if ((lines.at(-1) + word).length < 105) lines.push(`${lines.pop()}${word} `); else lines.push(word + " ");
    Object.assign(made, { paper_bgcolor: "#fff", plot_bgcolor: "#fff", font: { ...made.font, color: ink }, xaxis: { ...made.xaxis, ...axis, automargin: false, title: { ...made.xaxis.title, standoff: 6 } }, yaxis: { ...made.yaxis, ...axis } });
    made.margin = { ...made.margin, b: 60 + 15 * lines.length };
    made.annotations = [{ text: plain(lines.join("\n")).replace(/\n/g, "<br>"), align: "left", showarrow: false, font: { size: 11 }, xref: "paper", yref: "paper", x: 0, y: 0, xanchor: "left", yanchor: "top", yshift: -50 }];
    await Plotly.downloadImage({ data: traces, layout: made }, { format: "svg", width: 700, height: 380 + 15 * lines.length, filename: "comparison" });
  }

  function show(text) { // and put it on the clipboard, where the browser allows it
    shownText.textContent = text;
    shownText.hidden = false;
    getSelection().selectAllChildren(shownText);
    navigator.clipboard?.writeText(text).catch(() => {});
  }

  const redraw = whenVisible(plot, async () => {
    if (!current?.T) return;
    const Plotly = await loadPlotly(), { traces, layout: made } = chart(current);
    Plotly.react(plot, traces, made, CONFIG);
  });

  function update() {
    const chosen = state.chosen.map((id) => entries[id]), two = chosen.length === 2 && chosen.every((entry) => entry.seed === undefined);
    const found = two ? compared(chosen[0].row, chosen[1].row) : "Select exactly two rows in the table.";
    shownText.hidden = true;
    current = typeof found === "string" ? null : found;
    said.textContent = current ? verdict(current) : found;
    said.className = current ? "verdict" : "empty";
    sides.replaceChildren(...["A", "B"].flatMap((letter, i) => (current ? [el("p", { class: "sides" }, el("b", {}, letter), ` ${current.names[i]}`)] : [])));
    if (!current) return box.replaceChildren();
    plot.hidden = !current.T;
    plot.setAttribute("aria-label", `B − A by time step with its 95 % interval: ${current.lines.slice(1).map((v, i) => `${i + 1}: ${signed(v.mean)} (${interval(v)})`).join(", ")}`);
    const button = (text, onclick) => el("button", { type: "button", onclick }, text), more = current.causes;
    box.replaceChildren(...(more.length ? [el("p", { class: "causes" }, `The rows differ in more than initial potential and loss, so that the difference has more than one cause: ${more.map(([key, a, b]) => `${key} ${a} and ${b}`).join("; ")}.`)] : []),
      plot, plainTable(head, current.lines.map(cells), "Comparison of two rows"),
      el("div", { class: "controls" }, ...(current.T ? [button("Picture (SVG)", () => picture(current))] : []), button("LaTeX table", () => show(latex(current))), button("Command", () => show(command(current)))),
      shownText, el("p", { class: "notes" }, caption(current)), el("details", {}, el("summary", {}, "Commands, commits and data of these runs"), origin(current.a), origin(current.b)));
    redraw();
  }
  update();
  listeners.push(update);
};
