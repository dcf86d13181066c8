// Draws the page of `python -m minillava.look`. The data was measured by collect() in look.py, from a real model.
// Text from the model and the user reaches the page only through textContent, never as HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);

// ---- Numbers ----------------------------------------------------------------------------------------------------

function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Kind(bytes.buffer);
}

const attention = unpack(data.attention, Uint16Array); // fixed point: 65535 is 1
const maps = { rollout: unpack(data.rollout, Float32Array), relevancy: unpack(data.relevancy, Float32Array) };
const falls = unpack(data.falls, Float32Array); // (regions, answer tokens)
const topIds = unpack(data.topIds, Int32Array); // (answer tokens, K)
const topLogits = unpack(data.topLogits, Float32Array);
const tail = unpack(data.tail, Float32Array); // (answer tokens, groups)

const T = data.ids.length, N = T - data.start, patches = data.side * data.side;
const K = topIds.length / N, groups = data.tailSizes.length;
const range = (count) => Array.from({ length: count }, (_, index) => index);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const triangle = (row) => row * (row + 1) / 2; // weights in the rows before `row`: row i has i + 1

// The attention weights from token `row` to tokens 0..row. head = -1 is the mean over heads.
function weightsOf(layer, head, row) {
  if (head < 0) {
    const every = range(data.heads).map((one) => weightsOf(layer, one, row));
    return every[0].map((_, token) => sum(every.map((weights) => weights[token])) / every.length);
  }
  const size = triangle(T) - triangle(data.firstRow);
  const begin = (layer * data.heads + head) * size + triangle(row) - triangle(data.firstRow);
  return Array.from(attention.subarray(begin, begin + row + 1), (value) => value / 65535);
}

// The probabilities of the next token: [id, probability, whether top-p keeps it], the likeliest first. The logits that
// are not in the page are in groups of neighbours; each token of a group counts with the group's mean.
function nextToken(step, temperature, topP) {
  const logits = topLogits.subarray(step * K, (step + 1) * K), best = logits[0];
  const weight = (logit) => temperature > 0 ? Math.exp((logit - best) / temperature) : Number(logit === best);
  const rest = range(groups).map((group) => [weight(tail[step * groups + group]), data.tailSizes[group]]);
  const all = sum(Array.from(logits, weight)) + sum(rest.map(([one, size]) => one * size));
  let before = 0, kept = 0; // the probability of all likelier tokens: a token is kept as long as this is below topP
  const every = range(K).map((k) => {
    const probability = weight(logits[k]) / all, keep = before < topP;
    before += probability;
    if (keep) kept += probability;
    return [topIds[step * K + k], probability, keep];
  });
  for (const [one, size] of rest) {
    kept += before < topP ? one / all * Math.min(size, Math.ceil((topP - before) * all / one)) : 0;
    before += one / all * size;
  }
  return every.map(([id, probability, keep]) => [id, keep ? probability / kept : 0, keep]);
}

// ---- What is selected -------------------------------------------------------------------------------------------

// row: the token that looks; the token after it is the one it chooses.
const state = { row: data.start - 1, layer: 0, head: -1, patch: null, region: null, temperature: 1, topP: 1 };
const step = () => state.row - (data.start - 1); // which token of the answer the row chooses; outside 0..N-1: none
const inAnswer = () => step() >= 0 && step() < N;

// The page opens at the token of the answer that a region of the picture matters to most, with that region painted
// over, and at the layer that looks at the picture most for this token.
function start() {
  const most = (values) => values.indexOf(Math.max(...values));
  const place = most(Array.from(falls)), [top, left] = data.boxes[Math.floor(place / N)];
  Object.assign(state, { row: state.row + place % N, region: Math.floor(place / N), patch: top * data.side + left });
  state.layer = most(range(data.layers).map((layer) => sum(overPicture(weightsOf(layer, -1, state.row)))));
}

function select(change) {
  Object.assign(state, change);
  render();
}

// ---- Drawing ----------------------------------------------------------------------------------------------------

const picture = new Image();

function show(id) { // a token as text in which new lines and control characters can be seen
  return (data.words[id] || "").replace(/\n/g, "⏎").replace(/[\u0000-\u001f\u007f]/g, "�") || "∅";
}

const percent = (probability) => `${(100 * probability).toFixed(2)} %`;
const named = (id) => show(id).replace(/ /g, "·"); // and spaces

function make(parent, tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.assign(made, attributes);
  parent.append(made);
  return made;
}

function openCanvas(canvas) {
  canvas.width = canvas.height = data.side * Math.ceil(Math.max(320, picture.width) / data.side);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  return context;
}

function square(canvas, context, box, colour) { // box: top, left, bottom, right, in patches
  const unit = canvas.width / data.side, [top, left, bottom, right] = box;
  context.fillStyle = colour;
  context.fillRect(left * unit, top * unit, (right - left) * unit, (bottom - top) * unit);
}

const boxOf = (patch) => {
  const y = Math.floor(patch / data.side), x = patch % data.side;
  return [y, x, y + 1, x + 1];
};

// The picture, darkened, and orange where a value is high: values for each box of `boxes`. Negative values are blue.
function drawMap(canvas, values, boxes) {
  const context = openCanvas(canvas), most = Math.max(1e-9, ...values.map(Math.abs));
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  values.forEach((value, index) => {
    const share = Math.abs(value) / most;
    square(canvas, context, boxes[index], `rgba(18, 20, 28, ${0.75 * (1 - share)})`);
    square(canvas, context, boxes[index], `rgba(${value < 0 ? "60, 110, 255" : "255, 140, 0"}, ${0.6 * share})`);
  });
}

function drawColours(canvas, colours) {
  const context = openCanvas(canvas);
  colours.forEach((rgb, patch) => square(canvas, context, boxOf(patch), `rgb(${rgb.join()})`));
  outline(canvas, context);
}

function frame(canvas, context, [top, left, bottom, right], colour, width) {
  const unit = canvas.width / data.side;
  context.strokeStyle = colour;
  context.lineWidth = canvas.width * width;
  context.strokeRect(left * unit, top * unit, (right - left) * unit, (bottom - top) * unit);
}

function outline(canvas, context) { // the patch that is selected
  if (state.patch !== null) frame(canvas, context, boxOf(state.patch), "#fff", 0.015);
}

const changes = (region) => data.answers[region] !== data.answer; // whether painting over it changes the answer
const patchBoxes = range(patches).map(boxOf);
const overPicture = (weights) => range(patches).map((patch) => weights[data.firstPatch + patch] || 0);

function clickPatches(canvas) { // a click on a canvas selects a patch and the region around it
  canvas.addEventListener("click", (event) => {
    const area = canvas.getBoundingClientRect();
    const at = (distance, size) => Math.min(data.side - 1, Math.max(0, Math.floor(distance / size * data.side)));
    const x = at(event.clientX - area.left, area.width), y = at(event.clientY - area.top, area.height);
    const inside = ([top, left, bottom, right]) => top <= y && y < bottom && left <= x && x < right;
    select({ patch: y * data.side + x, region: data.boxes.findIndex(inside) });
  });
}

// ---- The page ---------------------------------------------------------------------------------------------------

function tokenButton(parent, index, row) { // a token of the row; a click makes `row` the row that looks
  const kind = data.kinds[index], isPatch = kind === "picture";
  const button = make(parent, "button", isPatch ? "" : show(data.ids[index]), { className: kind, type: "button" });
  button.title = isPatch ? `visual token ${index - data.firstPatch}` : `token ${index}`;
  button.disabled = row < data.firstRow;
  button.dataset.row = row;
  button.addEventListener("click", () => select({ row }));
  return button;
}

function build() {
  element("prompt").textContent = data.prompt;
  range(N).forEach((index) => tokenButton(element("answer"), data.start + index, data.start + index - 1));
  if (data.cut) make(element("answer"), "span", " …");
  range(T).forEach((index) => tokenButton(element("row"), index, index));
  data.hColours.forEach((rgb, patch) => {
    element("row").children[data.firstPatch + patch].style.backgroundColor = `rgb(${rgb.join()})`;
  });
  element("heads").style.gridTemplateColumns =
    data.heads > 1 ? `auto repeat(${data.heads}, minmax(0, 84px))` : "repeat(auto-fill, minmax(56px, 84px))";
  for (const layer of range(data.layers)) {
    if (data.heads > 1) make(element("heads"), "span", layer);
    for (const head of range(data.heads)) {
      const button = make(element("heads"), "button", "", { type: "button", title: `layer ${layer}, head ${head}` });
      button.dataset.place = `${layer} ${head}`;
      button.append(document.createElement("canvas"));
      const again = () => state.layer === layer && state.head === head; // a second click: the mean over heads
      button.addEventListener("click", () => select({ layer, head: again() || data.heads === 1 ? -1 : head }));
    }
  }
  for (const id of ["picture", "zv", "hv", "attention", "rollout", "relevancy", "occlusion", "painted"]) {
    clickPatches(element(id));
  }
  for (const name of ["temperature", "topP"]) {
    element(name).addEventListener("input", (event) => select({ [name]: Number(event.target.value) }));
  }
  const changed = data.boxes.filter((_, region) => changes(region)).length;
  element("paintText").textContent =
    `Click a region: the answer without it. ${changed} of ${data.boxes.length} regions change it; they have a frame.`;
  const size = data.sizes;
  element("patches").textContent = `${data.side} × ${data.side} patches. Click one.`;
  element("zText").textContent =
    `What the tower sees: ${patches} vectors of ${size.Z} numbers. Colours: their three principal components.`;
  element("hText").textContent =
    `Projected: ${patches} visual tokens of ${size.H} numbers, as words have. The words nearest to the framed one:`;
  const first = data.kinds.indexOf("picture") < data.kinds.indexOf("question");
  element("rowText").textContent = `${T} tokens; of equation 1's two orders, ` +
    `${first ? "the picture before the question" : "the question before the picture"}. ` + (data.firstRow
    ? "Click a token of the answer: shaded is what it looks at."
    : "Click any token: shaded is what it looks at.");
}

function renderRow(weights) {
  const most = Math.max(...weights);
  [...element("row").children].forEach((button, index) => {
    button.setAttribute("aria-pressed", index === state.row);
    if (data.kinds[index] === "picture") return;
    button.style.backgroundColor = `rgba(var(--heat), ${index <= state.row ? 0.9 * weights[index] / most : 0})`;
  });
  [...element("answer").children].forEach((button) => {
    button.setAttribute("aria-pressed", Number(button.dataset.row) === state.row);
  });
}

function renderHeads() {
  for (const button of element("heads").querySelectorAll("button")) {
    const [layer, head] = button.dataset.place.split(" ").map(Number);
    const here = layer === state.layer && (head === state.head || state.head < 0);
    button.setAttribute("aria-pressed", here);
    drawMap(button.firstElementChild, overPicture(weightsOf(layer, head, state.row)), patchBoxes);
  }
  const name = state.head < 0 ? "the mean of its heads" : `head ${state.head}`;
  element("headsText").textContent = data.heads > 1
    ? `A row for each of ${data.layers} layers, a column for each head. Click one; click again for the mean.`
    : `${data.layers} layers, from the first to the last; the mean of each layer's heads.`;
  return `layer ${state.layer}, ${name}`;
}

function renderNext() {
  element("temperatureValue").textContent = state.temperature;
  element("topPValue").textContent = state.topP;
  element("next").replaceChildren();
  if (!inAnswer()) {
    make(element("next"), "p", "Click a token of the answer.");
    return;
  }
  for (const [id, probability, kept] of nextToken(step(), state.temperature, state.topP).slice(0, 10)) {
    const chosen = id === data.ids[state.row + 1];
    const bar = make(element("next"), "div", "", { className: `bar ${kept ? "" : "out"} ${chosen ? "chosen" : ""}` });
    bar.dataset.id = id;
    bar.dataset.probability = probability;
    make(bar, "b", named(id));
    make(bar, "i", "").style.width = `${100 * probability}%`;
    make(bar, "span", percent(probability));
  }
}

function renderMaps(weights, name) {
  drawMap(element("attention"), overPicture(weights), patchBoxes);
  const share = sum(overPicture(weights));
  element("attentionText").textContent = `${(100 * share).toFixed(0)} % of it goes to the picture, in ${name}.`;
  for (const kind of ["rollout", "relevancy"]) {
    const values = inAnswer() ? maps[kind].subarray(step() * T, (step() + 1) * T) : [];
    drawMap(element(kind), overPicture(values), patchBoxes);
  }
  const fall = data.boxes.map((_, region) => (inAnswer() ? falls[region * N + step()] : 0));
  drawMap(element("occlusion"), fall, data.boxes);
  for (const id of ["rollout", "relevancy", "occlusion"]) element(id).style.opacity = inAnswer() ? 1 : 0.2;

  const canvas = element("painted"), context = openCanvas(canvas);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  data.boxes.forEach((box, region) => changes(region) && frame(canvas, context, box, "#ff9632", 0.006));
  if (state.region === null) {
    element("instead").textContent = data.answer;
    return;
  }
  square(canvas, context, data.boxes[state.region], `rgb(${data.paint.join()})`);
  element("instead").textContent = data.answers[state.region];
  if (!inAnswer()) return;
  const id = data.ids[state.row + 1], before = nextToken(step(), 1, 1).find(([other]) => other === id)[1];
  element("instead").textContent +=
    `\np(“${named(id)}”): ${percent(before)}, painted over ${percent(before * Math.exp(-fall[state.region]))}`;
}

function renderPatches() {
  const canvas = element("picture"), context = openCanvas(canvas);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  patchBoxes.forEach((box) => frame(canvas, context, box, "rgba(255, 255, 255, 0.35)", 0.003));
  outline(canvas, context);
  drawColours(element("zv"), data.zColours);
  drawColours(element("hv"), data.hColours);
  const patch = state.patch;
  element("near").textContent = patch === null ? "" : data.near[patch].map(
    (id, place) => `“${named(id)}” ${data.cosines[patch][place].toFixed(2)}`).join("\n");
}

function render() {
  const weights = weightsOf(state.layer, state.head, state.row);
  renderPatches();
  renderRow(weights);
  renderMaps(weights, renderHeads());
  renderNext();
  element("chosen").textContent = inAnswer()
    ? `Token ${step() + 1} of ${N}: “${named(data.ids[state.row + 1])}”. Click another: where did the model look?`
    : `Looking from ${data.kinds[state.row] === "picture" ? "a visual token" : `“${named(data.ids[state.row])}”`}.`;
}

picture.onload = () => {
  build();
  start();
  render();
};
picture.src = data.picture;
