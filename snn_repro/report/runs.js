// The table of rows or runs: filters, order, selection, and the keys in which selected rows differ.
scripts.runs = (section, data) => {
  for (const entry of [...data.rows, ...data.runs]) entries[entry.id] = entry;
  const absent = state.chosen.filter((id) => !(id in entries)).length;
  state.chosen = state.chosen.filter((id) => id in entries);
  const place = $(".place", section);
  const nameOf = (entry) => page.rows[entry.row] + (entry.seed === undefined ? "" : ` · seed ${entry.seed}`);
  for (const entry of Object.values(entries)) {
    entry.name = nameOf(entry);
    entry.words = [entry.name, entry.folder || "", ...Object.values(entry.cells).map(([text]) => text)].join(" ").toLowerCase();
  }

  // -- filters
  const query = el("input", { type: "search", placeholder: "words, e.g. lif tet", oninput: () => { state.query = query.value; update(); } });
  query.value = state.query;
  const menus = data.facets.flatMap((key) => {
    const values = [...new Map(data.rows.map(({ cells }) => cells[key])).keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    if (values.length < 2) { delete state.facets[key]; return []; }
    const menu = el("select", { "data-facet": key, onchange: () => { state.facets[key] = menu.value; update(); } },
      el("option", { value: "" }, "any"), ...values.map((value) => el("option", { value }, value)));
    menu.value = values.includes(state.facets[key]) ? state.facets[key] : (state.facets[key] = "");
    return [menu];
  });
  const title = (key) => data.columns.find(([column]) => column === key)[1];
  const view = el("fieldset", { class: "view" }, el("legend", {}, "One line per"), ...[["rows", "row (mean over seeds)"], ["runs", "run"]].map(([value, text]) => {
    const radio = el("input", { type: "radio", name: "view", value, onchange: () => { state.view = value; update(); } });
    radio.checked = state.view === value;
    return el("label", {}, radio, " ", text);
  }));
  const clear = el("button", { type: "button", onclick: () => {
    state.query = query.value = "";
    for (const menu of menus) menu.value = state.facets[menu.dataset.facet] = "";
    update();
  } }, "Clear filters");
  const none = el("button", { type: "button", onclick: () => { state.chosen = []; update(); } }, "Clear selection");
  const count = el("p", { class: "count", role: "status" });
  if (absent) place.append(el("p", { class: "absent" }, `${absent} of the rows that the address names ${absent === 1 ? "is" : "are"} not on this page.`));
  place.append(view, el("div", { class: "filters" }, el("label", { class: "search" }, "Search ", query),
    ...menus.map((menu) => el("label", {}, title(menu.dataset.facet) + " ", menu)), clear), el("div", { class: "chosen" }, count, none));

  // -- table: settings that a row's name says have no column, and the others are below the name
  const values = (key) => new Set(data.rows.map(({ cells }) => cells[key][0]));
  const same = data.rows.length > 1 ? data.columns.filter(([key, , kind]) => kind !== "percent" && values(key).size === 1) : [];
  const different = data.columns.filter((column) => !same.includes(column));
  const folded = different.filter(([key]) => data.folded.includes(key));
  const constant = same.map(([key, text]) => [text, [...values(key)][0]]).filter(([, value]) => value).map((words) => words.join(" "));
  if (constant.length) place.append(el("p", { class: "same" }, `Same in all rows: ${constant.join(", ")}.`));
  const all = el("input", { type: "checkbox", onchange: () => { state.all = all.checked; remember(); fold(); } });
  all.checked = Boolean(state.all);
  if (folded.length) place.append(el("label", {}, all, ` Columns for ${folded.map(([, text]) => text).join(", ")}`));
  const columns = [["name", "row", "text"], ...different];
  const classes = (key, kind) => [kind === "text" ? "" : "number", folded.some(([other]) => other === key) ? "folded" : ""].join(" ").trim() || null;
  const heads = columns.map(([key, text, kind]) => el("th", { scope: "col", class: classes(key, kind) },
    el("button", { type: "button", "data-sort": key, onclick: () => { state.sort = [key, state.sort[0] === key ? -state.sort[1] : kind === "percent" ? -1 : 1]; update(); } }, text)));
  const body = el("tbody");
  const table = el("table", { class: "runs" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, "selected")), ...heads)), body);
  place.append(el("div", { class: "wide tall", tabindex: "0", role: "region", "aria-label": "Table of runs" }, table));
  const fold = () => table.classList.toggle("short", !all.checked);
  fold();
  const unsaid = (entry) => { // values of folded columns that the name lacks; no name says that the initial state is zero
    const words = entry.name.split(/[-_ =,[\]]+/), full = entry.name;
    return folded.map(([key, text]) => [key, text, entry.cells[key][0]])
      .filter(([key, , value]) => !(words.includes(value) || (value.includes("_") && full.includes(value)) || (key === "initial" && value === "zero")))
      .map(([, text, value]) => `${text} ${value}`);
  };
  const lines = {}; // made once per entry
  const line = (entry) => lines[entry.id] ??= (() => {
    const box = el("input", { type: "checkbox", id: "choose-" + entry.id, onchange: () => {
      state.chosen = box.checked ? [...state.chosen, entry.id] : state.chosen.filter((id) => id !== entry.id);
      update(true);
    } });
    const tr = el("tr", {}, el("td", {}, box), el("th", { scope: "row" }, el("label", { for: box.id, title: entry.folder }, ...nameParts(entry.name),
      ...(unsaid(entry).length ? [el("small", { class: "unsaid" }, unsaid(entry).join(", "))] : []))),
      ...different.map(([key, , kind]) => el("td", { class: classes(key, kind) }, entry.cells[key][0])));
    return { tr, box };
  })();
  const nameParts = (name) => { // the suffix that distinguishes rows of one name is smaller
    const [, start, rest] = /^(.*?)( \[.*)?$/s.exec(name);
    return rest ? [start, el("small", {}, rest)] : [name];
  };
  const value = (entry, key) => (key === "name" ? entry.name : entry.cells[key][1]);
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));

  let visible = [];
  function filtered() {
    const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = data[state.view].filter((entry) => words.every((word) => entry.words.includes(word))
      && Object.entries(state.facets).every(([key, wanted]) => !wanted || entry.cells[key][0] === wanted));
    const [key, sign] = state.sort;
    if (!columns.some(([column]) => column === key)) return kept;
    return kept.sort((one, other) => { // entries without a value come last, in both orders
      const a = value(one, key), b = value(other, key);
      return a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b);
    });
  }
  tableRows = () => [...new Set(visible.map((entry) => entry.row))];

  // -- differences between selected entries
  const differences = el("div", { class: "differences" });
  place.append(differences);
  function compareChosen() {
    const chosen = state.chosen.map((id) => entries[id]);
    differences.replaceChildren(el("h3", {}, "Differences within the selection"));
    if (chosen.length < 2) return differences.append(el("p", { class: "empty" }, "Select two or more rows or runs in the table."));
    const of = (entry, key) => (key === "seed" ? entry.seed ?? "mean" : data.facts[key][entry.row] ?? "—");
    const keys = [...(chosen.some((entry) => entry.seed !== undefined) ? ["seed"] : []), ...Object.keys(data.facts)];
    const apart = keys.filter((key) => new Set(chosen.map((entry) => String(of(entry, key)))).size > 1);
    const recipe = apart.filter((key) => key !== "seed" && !data.method.includes(key)
      && !(["images_per_statistic", "data"].includes(key) && chosen.some((entry) => of(entry, key) === "—")));
    differences.append(el("p", {}, !apart.length ? "No recorded setting differs."
      : recipe.length ? "Not only initial potential and loss differ, but also the keys marked ◆: a difference in accuracy has more than one cause, unless you compare these keys."
        : "Same recipe: only the initial potential, the loss or the seed differ."));
    if (apart.length) differences.append(plainTable(["key", ...chosen.map((entry) => entry.name)],
      apart.map((key) => [(recipe.includes(key) ? "◆ " : "") + key, ...chosen.map((entry) => String(of(entry, key)))]), "Keys that differ"));
  }

  let rowsBefore = "";
  function update(chosenOnly = false) {
    remember();
    if (!chosenOnly) {
      visible = filtered();
      body.replaceChildren(...visible.map((entry) => line(entry).tr));
      columns.forEach(([key], i) => heads[i].setAttribute("aria-sort", state.sort[0] !== key ? "none" : state.sort[1] > 0 ? "ascending" : "descending"));
    }
    const chosen = new Set(state.chosen);
    for (const [id, { tr, box }] of Object.entries(lines)) { box.checked = chosen.has(id); tr.classList.toggle("on", box.checked); }
    const things = state.view === "rows" ? "rows" : "runs", all = data[state.view].length;
    count.textContent = `${visible.length === all ? all : `${visible.length} of ${all}`} ${things}; ${state.chosen.length || "none"} selected`;
    none.hidden = !state.chosen.length;
    compareChosen();
    const rows = JSON.stringify([shownRows(() => true), state.chosen]);
    if (rows !== rowsBefore) { rowsBefore = rows; listeners.forEach((listener) => listener()); }
  }
  addEventListener("hashchange", () => { // another link, or a section of this page: then the rows are put back
    if (location.hash.startsWith(ROWS)) { recall(); state.chosen = state.chosen.filter((id) => id in entries); }
    update(true);
  });
  update();
};

