// A few samples: input frames as a strip, spikes as a raster, outputs as lines over time steps.
scripts.samples = (section, data) => {
  const place = $(".place", section);
  const rowMenu = el("select", { onchange: () => { state.sample.row = rowMenu.value; fill(); } });
  const sampleMenu = el("select", { onchange: () => { state.sample.index = sampleMenu.value; describe(); redraw(); remember(); } });
  const strip = el("ol", { class: "strip" });
  const raster = el("div", { class: "plot", role: "img" }), outputs = el("div", { class: "plot", role: "img" });
  const rasterBox = el("div", {}, el("h3", {}, "Spikes of some neurons per layer"), raster), outputBox = el("div", {}, el("h3", {}, "Output by time step"), outputs);
  const caption = el("p", { role: "status" });
  place.append(el("div", { class: "controls" }, el("label", {}, "Run ", rowMenu), el("label", {}, "Sample ", sampleMenu)), caption, strip,
    el("div", { class: "pair" }, rasterBox, outputBox));

  const prediction = (sample) => sample.so_far[sample.so_far.length - 1];
  function rows() { // in table order, the selected ones first
    const order = [...shownRows((row) => row in data.rows).rows, ...tableRows(), ...Object.keys(data.rows).map(Number)];
    return [...new Set(order)].filter((row) => row in data.rows);
  }
  function fill() {
    rowMenu.replaceChildren(...rows().map((row) => el("option", { value: row }, `${short(page.rows[row], 90)} · seed ${data.rows[row].seed}`)));
    if (state.sample.row in data.rows) rowMenu.value = state.sample.row;
    const samples = data.rows[rowMenu.value].samples;
    sampleMenu.replaceChildren(...samples.map((sample, i) => el("option", { value: i },
      `${sample.index}: class ${sample.label}, predicted ${prediction(sample)} ${prediction(sample) === sample.label ? "✓" : "✗"}`)));
    sampleMenu.value = state.sample.index in samples ? state.sample.index : 0;
    remember();
    describe();
    redraw();
  }

  function describe() { // in words, before anything is drawn
    const sample = data.rows[rowMenu.value].samples[sampleMenu.value], steps = `over ${sample.so_far.length} time steps`;
    outputs.setAttribute("aria-label", `Outputs ${steps}, class ${sample.label} as a thick line; predicted by step: ${sample.so_far.join(", ")}`);
    raster.setAttribute("aria-label", `Spikes of ${sample.spikes.length} layers ${steps}: ${sample.spikes.map(({ layer }) => layer).join(", ")}`);
  }

  function frame(picture, t) {
    const [, channels, height, width] = picture.shape;
    const canvas = el("canvas", { width, height, "aria-hidden": "true" });
    const image = new ImageData(width, height), at = t * channels * height * width, size = height * width;
    const dark = darkness.matches;
    for (let i = 0; i < size; i++) {
      const value = (c) => picture.data[at + Math.min(c, channels - 1) * size + i];
      let rgb;
      if (picture.events) { // one polarity blue, the other orange, on the background
        const [a, b] = [value(0), channels > 1 ? value(1) : 0].map((v) => v && 0.35 + 0.65 * v / 255);
        const [blue, orange] = dark ? [[85, 200, 255], [224, 112, 42]] : [[0, 114, 214], [214, 95, 0]];
        const back = dark ? 20 : 255, left = Math.max(0, 1 - a - b), sum = Math.max(1, a + b);
        rgb = [0, 1, 2].map((k) => back * left + (a * blue[k] + b * orange[k]) / sum);
      } else rgb = [value(0), value(1), value(2)];
      image.data.set([...rgb, 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  function decode(picture) {
    picture.data ??= Uint8Array.from(atob(picture.bytes), (c) => c.charCodeAt(0));
    return picture;
  }

  const redraw = whenVisible(place, async () => {
    const run = data.rows[rowMenu.value], sample = run.samples[sampleMenu.value], steps = sample.so_far.length;
    const picture = decode(data.frames[sample.frames]);
    caption.textContent = `Test sample ${sample.index}, class ${sample.label}. `
      + (picture.events ? "Events by time step: one polarity blue, the other orange. " : "The same image is shown at every time step. ")
      + `Below each step: the class predicted from the outputs so far (readout: ${run.readout}).`;
    const images = picture ? picture.shape[0] : 0;
    strip.replaceChildren(...Array.from({ length: steps }, (_, t) => {
      const right = sample.so_far[t] === sample.label;
      return el("li", {}, ...(t < images ? [frame(picture, t)] : []), el("span", {}, `t=${t + 1}: ${sample.so_far[t]} `, el("b", { class: right ? "right" : "wrong" }, right ? "✓" : "✗", el("span", { class: "unseen" }, right ? " correct" : " wrong"))));
    }));
    strip.classList.toggle("still", images === 1);
    rasterBox.hidden = !sample.spikes.length;
    const Plotly = await loadPlotly(), narrow = place.clientWidth < 600;
    const base = layout({ x: "time step", y: "output (logit)" }, narrow), x = Array.from({ length: steps }, (_, t) => t + 1);
    base.xaxis.dtick = steps < 17 ? 1 : undefined;
    const others = sample.classes.filter((name) => name !== sample.label);
    Plotly.react(outputs, sample.classes.map((name, i) => {
      const label = name === sample.label, place = label ? 0 : 1 + others.indexOf(name);
      return {
        type: "scatter", mode: "lines+markers", x, y: sample.logits.map((step) => step[i]), name: `class ${name}${label ? " (label)" : ""}`,
        line: { color: colour(place), width: label ? 4 : 1.5, dash: place >= 8 ? "dot" : "solid" }, marker: { symbol: sign(place)[0], size: label ? 8 : 5, color: colour(place) },
      };
    }), { ...base, showlegend: true, legend: { orientation: "h", y: -0.25, font: { size: 11 } }, height: narrow ? 380 : 440 }, CONFIG);
    if (!sample.spikes.length) return;
    const rows = sample.spikes.flatMap(({ neurons }) => [...neurons, ""]).slice(0, -1); // an empty row between layers
    const ticks = []; let top = 0;
    for (const { layer, neurons } of sample.spikes) { ticks.push([top + neurons.length / 2 - 0.5, layer]); top += neurons.length + 1; }
    const dots = rows.flatMap((neuron, i) => [...neuron].map((n, t) => [t + 1, i, +n])).filter(([, , n]) => n);
    Plotly.react(raster, [{
      type: "scatter", mode: "markers", x: dots.map(([t]) => t), y: dots.map(([, i]) => i), text: dots.map(([, , n]) => `${n} spike${n > 1 ? "s" : ""}`),
      marker: { symbol: "line-ns-open", size: narrow ? 5 : 7, line: { width: 2.5, color: colour(0) }, color: colour(0) }, hoverinfo: "text+x",
    }], {
      ...base, height: narrow ? 380 : 440,
      xaxis: { ...base.xaxis, range: [0.5, steps + 0.5] },
      yaxis: { ...base.yaxis, title: undefined, autorange: false, range: [rows.length, -1], tickvals: ticks.map(([y]) => y), ticktext: ticks.map(([, layer]) => plain(layer)), showgrid: false },
      shapes: sample.spikes.slice(1).map((_, i) => { const y = sample.spikes.slice(0, i + 1).reduce((n, { neurons }) => n + neurons.length + 1, -1); return { type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: variable("--line"), width: 1 } }; }),
    }, CONFIG);
  });
  fill();
  listeners.push(fill);
};

