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

function remember() {
  try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* storage is disabled */ }
}

function recall() {
  try { Object.assign(state, JSON.parse(sessionStorage.getItem(KEY) || "{}")); } catch { /* storage is disabled */ }
}

// ---------------------------------------------------------------- colours and symbols: each row has both

// from Okabe and Ito's palette, each at least 3:1 against the background
const COLOURS = {
  light: ["#0072b2", "#c44e00", "#00806a", "#a3408c", "#8a6400", "#4b3fa8", "#a01f3c", "#4d4d4d"],
  dark: ["#56b4e9", "#ff9b57", "#35c9a4", "#e79ed0", "#e6c34a", "#aaa4f7", "#f58fa5", "#c4c4c4"],
};
const SIGNS = [["circle", "●"], ["square", "■"], ["diamond", "◆"], ["cross", "✚"], ["pentagon", "⬟"], ["star", "★"], ["hexagon", "⬢"], ["triangle-down", "▼"]];
const DASHES = ["solid", "dash", "dot"];
const darkness = matchMedia("(prefers-color-scheme: dark)");

const colour = (place) => COLOURS[darkness.matches ? "dark" : "light"][place % 8];
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
    type: "scatter", ...rest, x, name, line: { color: ink, width: 2, dash: DASHES[Math.floor(place / 8) % 3] },
    marker: { color: ink, maxdisplayed: mark ? 0 : 14, size: mark ? mark.map((sign) => (sign ? 13 : 7)) : 7, symbol: mark ? mark.map((sign) => sign || SIGNS[place % 8][0]) : SIGNS[place % 8][0] },
  };
  if (rest.type === "bar") main.marker = { color: ink };
  if (rest.type === "box") Object.assign(main, { line: { color: ink, width: 1.5 }, fillcolor: ink + "40", boxpoints: false });
  if (seed !== undefined) main.opacity = 0.8;
  if (!sd) return [main];
  const edge = (sign) => ({
    type: "scatter", x, y: rest.y.map((y, i) => y + sign * sd[i]), mode: "lines", line: { width: 0 }, hoverinfo: "skip",
    fill: sign > 0 ? "none" : "tonexty", fillcolor: ink + "2e",
  });
  return [edge(1), edge(-1), main];
}

// the rows that charts show: the selected ones, else the first of the table
function shownRows(having) {
  const chosen = [...new Set(state.chosen.map((id) => entries[id]?.row).filter((row) => row !== undefined))];
  const wanted = (chosen.length ? chosen : tableRows()).filter((row) => having(row));
  return { rows: chosen.length ? wanted : wanted.slice(0, MOST), of: wanted.length, chosen: chosen.length > 0 };
}

function legend(shown) {
  const which = shown.chosen ? "the selected rows" : shown.of > shown.rows.length ? `the first ${shown.rows.length} of ${shown.of} rows in table order; select others in the table` : "all rows of the table with these data";
  return el("div", { class: "legend" }, el("p", {}, `Shown: ${which}.`),
    el("ul", {}, ...shown.rows.map((row, place) => {
      const sign = el("span", { "aria-hidden": "true" }, SIGNS[place % 8][1]);
      sign.style.color = colour(place);
      return el("li", {}, sign, " ", page.rows[row]);
    })));
}

function numbers(chart, shown) {
  const keys = ["x", "y", "sd", "lowerfence", "q1", "median", "q3", "upperfence", "mean"];
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

function addCharts(name, charts) {
  const place = $(".place", document.getElementById(name));
  const plot = el("div", { class: "plot", role: "img" }), below = el("div"), above = el("div", { class: "controls" });
  const current = () => charts.find((chart) => chart.name === state.charts[name]) || charts[0];
  if (charts.length > 1) {
    const menu = el("select", { onchange: () => { state.charts[name] = menu.value; remember(); redraw(); } },
      ...charts.map((chart) => el("option", { value: chart.name }, chart.name)));
    menu.value = current().name;
    above.append(el("label", {}, "Show ", menu));
  }
  place.append(above, plot, below);
  const redraw = whenVisible(place, async () => {
    const chart = current(), shown = shownRows((row) => row in chart.traces);
    plot.setAttribute("aria-label", `${chart.name}: ${chart.y} against ${chart.x}, ${shown.rows.length} rows; numbers in the table below`);
    below.replaceChildren(legend(shown), numbers(chart, shown));
    plot.hidden = !shown.rows.length;
    if (!shown.rows.length) return below.replaceChildren(el("p", { class: "empty" }, "None of these rows has these data."));
    const Plotly = await loadPlotly();
    const traces = shown.rows.flatMap((row, i) => chart.traces[row].flatMap((trace) => dressed(trace, row, i)));
    Plotly.react(plot, traces, layout(chart, plot.clientWidth < 600), CONFIG);
  });
  listeners.push(redraw);
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

