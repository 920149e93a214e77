"use strict";
// Shared by all sections: unpacking, elements (text only: nothing is ever parsed as HTML), selection of rows, charts.

const $ = (selector, root = document) => root.querySelector(selector);

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

async function unpack(id) {
  const packed = await fetch("data:application/octet-stream;base64," + document.getElementById(id).textContent);
  return new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).text();
}

// ---------------------------------------------------------------- state, restored when the page reloads

const KEY = "snn_repro " + location.pathname;
const MOST = 8; // rows in a chart when none are selected
const state = { view: "rows", sort: ["", 1], query: "", facets: {}, chosen: [], charts: {}, sample: {} };
let page = null;
const listeners = []; // called when the rows that charts show change

const ROWS = "#rows="; // what is chosen stands in the address, so that a link shows the same

function remember() {
  const address = state.chosen.length ? ROWS + state.chosen.join(",") : "";
  if (address ? location.hash !== address : location.hash.startsWith(ROWS)) history.replaceState(null, "", address || location.pathname + location.search);
  try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* storage is disabled */ }
}

function recall() {
  try { Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) || "{}")); } catch { /* storage is disabled */ }
  if (location.hash.startsWith(ROWS)) state.chosen = decodeURIComponent(location.hash.slice(ROWS.length)).split(",");
}

// ---------------------------------------------------------------- colours and symbols: each row has both

// from Okabe and Ito's palette: each at least 3:1 against the background, and any two differ by at least 15 (CIE76)
// as normal, protanopic and deuteranopic eyes see them (Machado et al. 2009)
const COLOURS = {
  light: ["#0072d6", "#d65f00", "#009e73", "#b05090", "#794e00", "#3b2f8f", "#740f21", "#4d4d4d"],
  dark: ["#55c8ff", "#e0702a", "#35c89a", "#e18bbd", "#f0e442", "#8e81ed", "#d05070", "#d4d4d4"],
};
// seven signs and eight colours: the row that has the first colour again has another sign and another dash
const SIGNS = [["circle", "●"], ["square", "■"], ["diamond", "◆"], ["cross", "✚"], ["pentagon", "⬟"], ["star", "★"], ["triangle-down", "▼"]];
const DASHES = ["solid", "dash", "dot"];
const darkness = matchMedia("(prefers-color-scheme: dark)");

const colour = (place) => COLOURS[darkness.matches ? "dark" : "light"][place % 8];
const sign = (place) => SIGNS[place % SIGNS.length];
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---------------------------------------------------------------- charts

let plotly = null;
function loadPlotly() {
  plotly ??= unpack("plotly").then((source) => {
    document.head.append(el("script", {}, source));
    return window.Plotly;
  });
  return plotly;
}

// Plotly interprets some tags in text, so < and & of a name are escaped
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// names of layers and rows have any length: long ones are truncated
const short = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);

function layout(chart, narrow) {
  const ink = variable("--ink"), grid = variable("--line");
  const axis = { gridcolor: grid, zeroline: false, linecolor: grid, automargin: true, color: ink };
  const made = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: ink }, height: narrow ? 300 : 380,
    margin: { l: 56, r: 12, t: 12, b: 48 }, boxmode: "group", dragmode: narrow ? false : "zoom",
    hoverlabel: { align: "left", namelength: -1 },
    xaxis: { ...axis, title: { text: plain(chart.x) } }, yaxis: { ...axis, title: { text: plain(chart.y) } },
  };
  for (const [key, value] of Object.entries(chart.layout || {})) made[key] = { ...made[key], ...value };
  return made;
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };

function dressed(trace, row, place) {
  const ink = colour(place), name = plain(short(page.rows[row], 60)) + (trace.seed === undefined ? "" : `, seed ${trace.seed}`);
  const { sd, mark, seed, mean, ...rest } = trace;
  const x = typeof rest.x[0] === "string" ? rest.x.map(plain) : rest.x;
  const main = {
    type: "scatter", ...rest, x, name, meta: { row, seed }, line: { color: ink, width: 2, dash: DASHES[Math.floor(place / 8) % 3] },
    marker: { color: ink, maxdisplayed: mark ? 0 : 14, size: mark ? mark.map((own) => (own ? 13 : 7)) : 7, symbol: mark ? mark.map((own) => own || sign(place)[0]) : sign(place)[0] },
  };
  if (rest.type === "bar") main.marker = { color: ink };
  if (rest.type === "box") Object.assign(main, { line: { color: ink, width: 1.5 }, fillcolor: ink + "40", boxpoints: false });
  if (seed !== undefined) main.opacity = 0.8;
  if (!sd) return [main];
  const edge = (way) => ({
    type: "scatter", x, y: rest.y.map((y, i) => y + way * sd[i]), mode: "lines", line: { width: 0 }, hoverinfo: "skip",
    fill: way > 0 ? "none" : "tonexty", fillcolor: ink + "2e",
  });
  return [edge(1), edge(-1), main];
}

// a row beyond the first of a panel: a thin line without a colour
function faint(trace, row) {
  return { type: "scatter", mode: "lines", x: trace.x, y: trace.y, meta: { row }, name: plain(short(page.rows[row], 60)), line: { color: variable("--soft"), width: 0.8 }, opacity: 0.35 };
}

// the rows that charts show: the selected ones, else the first of the table (of each panel), and the rest of them
function shownRows(having, panels = {}) {
  const chosen = [...new Set(state.chosen.map((id) => entries[id]?.row).filter((row) => row !== undefined))];
  const wanted = (chosen.length ? chosen : tableRows()).filter((row) => having(row));
  const counts = {}, rows = [], rest = [];
  for (const row of wanted) {
    const n = counts[panels[row]] = (counts[panels[row]] || 0) + 1;
    (chosen.length || n <= MOST ? rows : rest).push(row);
  }
  return { rows, rest, chosen: chosen.length > 0 };
}

function which(shown, panels) {
  if (shown.chosen) return "Shown: the selected rows.";
  if (!shown.rest.length) return "Shown: all rows of the table with these data.";
  const first = `the first ${panels ? `${MOST} rows of each panel` : `${shown.rows.length} of ${shown.rows.length + shown.rest.length} rows`} in table order`;
  return `Shown: ${first}${panels ? ", the others in grey" : ""}; select others in the table.`;
}

function legend(rows, onclick) {
  return el("ul", { class: "legend" }, ...rows.map((row, place) => {
    const mark = el("span", { "aria-hidden": "true" }, sign(place)[1]);
    mark.style.color = colour(place);
    return el("li", {}, mark, " ", el("button", { type: "button", title: "Show the runs behind it", onclick: () => onclick(row) }, page.rows[row]));
  }));
}

// what made the runs of a row (or one of them)
function origin(row, seed) {
  const runs = (page.sections.runs?.data.runs || []).filter((run) => run.row === row && (seed === undefined || run.seed === seed));
  const none = "not recorded", keys = ["command", "commit", "data", "config", "folder"];
  return el("div", { class: "origin" }, el("p", {}, `Runs of ${page.rows[row]}; data and config are hashes`),
    plainTable(["seed", ...keys], runs.map((run) => [run.seed, ...keys.map((key) => run[key] || none)]), `Runs of ${page.rows[row]}`));
}

function numbers(chart, shown) {
  const keys = ["threshold", "x", "y", "sd", "lowerfence", "q1", "median", "q3", "upperfence", "mean"];
  const box = el("details", { class: "numbers" }, el("summary", {}, "Numbers of this chart"));
  box.addEventListener("toggle", () => {
    if (!box.open || box.children.length > 1) return;
    const traces = shown.rows.flatMap((row) => chart.traces[row].map((trace) => [row, trace]));
    const used = keys.filter((key) => traces.some(([, trace]) => trace[key]));
    const name = { x: chart.x, y: chart.y, lowerfence: "5 %", q1: "25 %", q3: "75 %", upperfence: "95 %" };
    const head = ["row", ...(traces.some(([, t]) => t.seed !== undefined) ? ["seed"] : []), ...used.map((key) => name[key] || key)];
    const body = traces.flatMap(([row, trace]) => trace.x.map((_, i) => [
      page.rows[row], ...(head[1] === "seed" ? [trace.seed] : []), ...used.map((key) => trace[key]?.[i] ?? ""),
    ]));
    box.append(plainTable(head, body, "Numbers of this chart"));
  });
  return box;
}

const LONG = 40; // characters of a cell that may wrap

function plainTable(head, body, label) {
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...body.map((line) => el("tr", {}, ...line.map((value) =>
        el("td", { class: typeof value === "number" ? "number" : String(value).length > LONG ? "long" : null }, String(value))))))));
}

// draws when the element comes near the window, and again when its data have changed; hidden elements never come near
function whenVisible(element, draw) {
  let near = false, stale = true;
  const update = () => { if (near && stale) { stale = false; draw(); } };
  new IntersectionObserver((seen) => { near = seen[seen.length - 1].isIntersecting; update(); }, { rootMargin: "300px" }).observe(element);
  return () => { stale = true; update(); };
}

// what a panel shows, in words: it is there before the chart is drawn
function inWords(chart, title, rows) {
  const last = (row) => chart.traces[row][0].y?.at(-1);
  const best = rows.filter((row) => typeof last(row) === "number").sort((a, b) => last(b) - last(a))[0];
  return `${title || chart.name}: ${chart.y} against ${chart.x}, ${rows.length} row${rows.length === 1 ? "" : "s"}; `
    + (best === undefined ? "" : `highest at the end: ${page.rows[best]}, ${last(best)}; `) + "numbers in the table below";
}

function addCharts(name, charts) {
  const place = $(".place", document.getElementById(name));
  const figures = el("div", { class: "figures" }), below = el("div"), above = el("div", { class: "controls" });
  const current = () => charts.find((chart) => chart.name === state.charts[name]) || charts[0];
  if (charts.length > 1) {
    const menu = el("select", { onchange: () => { state.charts[name] = menu.value; remember(); update(); } },
      ...charts.map((chart) => el("option", { value: chart.name }, chart.name)));
    menu.value = current().name;
    above.append(el("label", {}, "Show ", menu));
  }
  place.append(above, figures, below);
  const made = {}; // title of a panel: its figure
  function figure(title) {
    const plot = el("div", { class: "plot", role: "img" }), list = el("div"), runs = el("div", { role: "status" }), heading = title ? el("h3", {}, title) : null;
    return made[title] ??= { plot, list, runs, box: el("div", {}, heading, plot, list, runs) };
  }
  let panels = []; // of the current chart: {title, rows, rest}
  function describe() {
    const chart = current(), split = Object.keys(chart.panels).length > 0, shown = shownRows((row) => row in chart.traces, chart.panels);
    const title = (row) => chart.panels[row] || "";
    panels = [...new Set([...shown.rows, ...shown.rest].map(title))].map((each) => ({
      title: each, rows: shown.rows.filter((row) => title(row) === each), rest: split ? shown.rest.filter((row) => title(row) === each) : [],
    }));
    figures.classList.toggle("several", panels.length > 1);
    figures.replaceChildren(...panels.map(({ title, rows }) => {
      const { plot, list, runs, box } = figure(title);
      plot.setAttribute("aria-label", inWords(chart, title, rows));
      list.replaceChildren(legend(rows, (row) => runs.replaceChildren(origin(row))));
      runs.replaceChildren();
      return box;
    }));
    below.replaceChildren(...(panels.length ? [el("p", { class: "which" }, which(shown, split)), numbers(chart, shown)]
      : [el("p", { class: "empty" }, "None of these rows has these data.")]));
  }
  const redraw = whenVisible(place, async () => {
    const chart = current(), Plotly = await loadPlotly();
    for (const { title, rows, rest } of panels) {
      const { plot, runs } = figure(title), isNew = !plot.children.length;
      const traces = [...rest.map((row) => faint(chart.traces[row][0], row)),
        ...rows.flatMap((row, i) => chart.traces[row].flatMap((trace) => dressed(trace, row, i)))];
      await Plotly.react(plot, traces, layout(chart, plot.clientWidth < 600), CONFIG);
      Plotly.Plots.resize(plot); // the number of panels beside each other may have changed
      if (isNew) plot.on("plotly_click", ({ points: [{ data: { meta: { row, seed } } }] }) => runs.replaceChildren(origin(row, seed)));
    }
  });
  const update = () => { describe(); redraw(); };
  describe();
  listeners.push(update);
}

// ---------------------------------------------------------------- start

const scripts = {}; // of sections with more than text and charts: {name: (section, its data) => ...}
const entries = {}; // lines of the table by id
let tableRows = () => page.rows.map((_, row) => row);

async function start() {
  recall();
  page = JSON.parse(await unpack("data"));
  for (const [name, { charts, data }] of Object.entries(page.sections)) {
    if (charts.length) addCharts(name, charts);
    if (scripts[name]) scripts[name](document.getElementById(name), data);
  }
  darkness.addEventListener("change", () => listeners.forEach((listener) => listener()));
  document.documentElement.dataset.ready = performance.now().toFixed(0); // ms since navigation
}

