// Draws the page about a training from the data that Report.data() in report.py has collected.
// Text of models and files reaches the page only through textContent, never as HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const LEFT = 52, RIGHT = 12, TOP = 8, BOTTOM = 22, HEIGHT = 240; // of a chart, in pixels
const LOOKS = { "each step": "noise", "running mean": "main", "learning rate": "main", "held-out rows": "other" };
const STALE = 10 * 60; // seconds without a new page

function make(parent, tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.assign(made, attributes);
  parent.append(made);
  return made;
}

function shape(parent, tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

// ---- How far it is ----------------------------------------------------------------------------------------------

function renderState() {
  const steps = `${data.step.toLocaleString("en")} of ${data.steps.toLocaleString("en")} steps`;
  const words = {
    running: `Running: ${steps}${data.left && `, about ${data.left} left`}.`,
    finished: `Finished: ${steps}.`,
    stopped: `Stopped ${data.why} after ${steps}. The same command with --resume goes on.`,
    failed: `Failed after ${steps}: ${data.why}`,
  };
  const age = Date.now() / 1000 - data.written, running = data.state === "running";
  document.title = `${data.name}: ${data.state}`;
  element("title").textContent = `Training ${data.name}`;
  element("state").textContent = words[data.state];
  element("state").className = data.state;
  Object.assign(element("bar"), { max: data.steps, value: data.step });
  element("written").textContent = `Written ${new Date(1000 * data.written).toLocaleString()}.` +
    (running && age > STALE ? " That is long ago: the training may have been killed." : "");
  if (running) setTimeout(() => location.reload(), 15000);
}

// ---- Curves -----------------------------------------------------------------------------------------------------

function drawChart(svg, chart, at) { // with a line at step `at`, unless it is null
  svg.replaceChildren();
  const width = svg.clientWidth, { low, high } = chart.y;
  const scale = (value) => (chart.log ? Math.log10(value) : value);
  const x = (step) => LEFT + (width - LEFT - RIGHT) * step / chart.x.high;
  const y = (place) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (place - low) / (high - low || 1);
  for (const [place, label] of chart.y.ticks) {
    shape(svg, "line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(place), y2: y(place) });
    shape(svg, "text", { x: LEFT - 6, y: y(place) + 4, "text-anchor": "end" }, label);
  }
  for (const [step, label] of chart.x.ticks.filter(([step]) => step <= chart.x.high)) {
    shape(svg, "text", { x: x(step), y: HEIGHT - 6, "text-anchor": "middle" }, label);
  }
  for (const { name, points } of chart.lines) {
    const places = points.map(([step, value]) => `${x(step).toFixed(1)},${y(scale(value)).toFixed(1)}`);
    shape(svg, "path", { class: LOOKS[name], d: `M${places.join("L")}h0` }); // h0: one point is a dot
  }
  for (const step of chart.lost) { // a value that is not finite: a mark at the top
    shape(svg, "path", { class: "lost", d: `M${x(step) - 4},${TOP}h8l-4,7z` });
  }
  if (at !== null) shape(svg, "line", { class: "cursor", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM });
}

function nearest(points, step) {
  const distance = (point) => Math.abs(point[0] - step);
  return points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
}

function buildChart(chart, index) {
  const section = make(element("charts"), "section", "", { className: index === 0 ? "wide" : "" });
  make(section, "h3", chart.title);
  const svg = shape(section, "svg", { role: "img", "aria-label": chart.title });
  const readout = make(section, "p", "", { className: "readout" });

  function show(at) { // the values at step `at`, or if it is null the last ones
    readout.replaceChildren();
    for (const { name, points } of chart.lines) {
      const [step, value] = nearest(points, at ?? chart.x.high), item = make(readout, "span");
      make(item, "i", "", { className: `key ${LOOKS[name]}` });
      item.append(`${name} ${value} (step ${step.toLocaleString("en")})`);
    }
    if (chart.lost.length) make(readout, "span", "▼ not finite");
    drawChart(svg, chart, at);
  }

  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect(), share = (event.clientX - area.left - LEFT) / (area.width - LEFT - RIGHT);
    show(Math.min(1, Math.max(0, share)) * chart.x.high);
  });
  svg.addEventListener("pointerleave", () => show(null));
  new ResizeObserver(() => show(null)).observe(svg);
}

// ---- Answers and settings ---------------------------------------------------------------------------------------

function buildCard({ picture, question, reference, answers }) {
  const card = make(element("cards"), "section", "", { className: picture ? "card" : "card text" });
  if (picture) make(card, "img", "", { src: picture, alt: "held-out picture" });
  const words = make(card, "div");
  make(words, "b", question);
  make(words, "p", `In the file: ${reference}`);
  const list = make(card, "ol");
  for (const [step, answer] of answers) {
    const line = make(list, "li", "", { className: answer === reference ? "right" : "" });
    make(line, "span", `step ${step.toLocaleString("en")}`);
    make(line, "span", answer || "(nothing)");
  }
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function buildScores(scores) {
  const columns = ["exact", "meaning"].filter((name) => name in scores);
  if (scores.types) {
    const head = make(element("scores"), "tr");
    for (const name of ["type", "questions", ...columns]) make(head, name === "type" ? "th" : "td", name);
    for (const [kind, count] of Object.entries(scores.types)) {
      const row = make(element("scores"), "tr");
      make(row, "th", kind);
      make(row, "td", count);
      for (const name of columns) make(row, "td", percent(scores[name][kind]));
    }
  }
  if (scores.descriptions) {
    element("named").textContent = `${scores.descriptions} descriptions: ${percent(scores.precision)} of the things ` +
      `that they name are in the picture; they name ${percent(scores.recall)} of the things in it.`;
  }
}

function buildTable([title, rows]) {
  const section = make(element("tables"), "section");
  make(section, "h3", title);
  const table = make(section, "table", "", { className: "facts" });
  for (const [name, value] of rows) {
    const row = make(table, "tr");
    make(row, "th", name);
    make(row, "td", value);
  }
}

renderState();
data.charts.forEach(buildChart);
data.cards.forEach(buildCard);
element("asked").hidden = !data.cards.length;
buildScores(data.scores);
element("scored").hidden = !Object.keys(data.scores).length;
Object.entries(data.tables).filter(([, rows]) => rows.length).forEach(buildTable);
