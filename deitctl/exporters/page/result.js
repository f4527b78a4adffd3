// The card of one image: the network's input, its attention maps, and the top-5 classes, or of a multi-label model every class
// that reaches its threshold among the likeliest. Names are set as text, never HTML.

import { drawMap, drawView } from "./heat.js";

const TOP_K = 5;
const NO_LABEL = "No class reaches its threshold.";

/** Make an element with attributes and contents; strings become text nodes, never HTML. */
function make(tag, attributes = {}, ...contents) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...contents);
  return element;
}

/** Make the card of an image that waits to be classified. */
export function makeCard(name) {
  return make("article", { class: "card", "data-state": "waiting" },
    make("h2", {}, make("bdi", {}, name)),
    make("p", { class: "quiet" }, "Waiting …"));
}

/** Show on a card why its image was not classified. */
export function showFailure(card, reason) {
  card.dataset.state = "failed";
  card.lastChild.replaceWith(make("p", { class: "failure" }, reason));
}

/** Show a result on a card; return as text the top-1 class and its probability, or all labels of a multi-label model. */
export function showResult(card, name, result, about) {
  const { view, width, height, milliseconds } = result;
  const order = [...result.probabilities.keys()].sort((a, b) => result.probabilities[b] - result.probabilities[a]);
  const isPredicted = (index) => Boolean(result.labels?.[index]);
  const best = order.filter((index, rank) => rank < TOP_K || isPredicted(index)).map((index) => ({
    index, label: about.labels[index], name: about.class_names?.[index], probability: result.probabilities[index],
    threshold: about.thresholds?.[index], isPredicted: isPredicted(index),
  }));
  const took = `${Math.round(milliseconds.view + milliseconds.network)} ms`;
  const parts = `decode and resize ${Math.round(milliseconds.view)}, network ${Math.round(milliseconds.network)}`;
  card.lastChild.replaceWith(make("p", { class: "quiet" }, `${width} × ${height} pixels, ${took} (${parts})`));
  card.append(make("div", { class: "result" }, makePanels(result, about, name), makePredictions(best)));
  card.dataset.state = "done";
  if (!result.labels) return `${best[0].label}, ${percent(best[0].probability)}`;
  return best.filter((c) => c.isPredicted).map((c) => `${c.label}, ${percent(c.probability)}`).join("; ") || NO_LABEL;
}

function makePanels({ view, attention }, about, name) {
  const side = about.preprocessing.img_size;
  const input = makeFigure(`${name}, the model's input`, "model input", (canvas) => drawView(canvas, view, side));
  const maps = about.tokens.map((token, t) => {
    const map = attention.data.subarray(t * attention.grid ** 2, (t + 1) * attention.grid ** 2);
    return makeFigure(`${name}: ${describeMap(map, attention.grid, token)}`, `${token}, last block`, (canvas) => drawMap(canvas, view, side, map));
  });
  return make("div", { class: "panels" }, input, ...maps);
}

function makeFigure(description, caption, draw) {
  const canvas = make("canvas", { role: "img", "aria-label": description });
  draw(canvas);
  return make("figure", {}, canvas, make("figcaption", {}, caption));
}

/** Describe where a map is brightest, for screen readers. */
function describeMap(map, grid, token) {
  const at = map.indexOf(Math.max(...map));
  const third = (n) => Math.min(2, Math.floor((3 * (n + 0.5)) / grid));
  const place = [["top", "middle", "bottom"][third(Math.floor(at / grid))], ["left", "center", "right"][third(at % grid)]];
  return `the ${token} attends most to the ${place.join(" ")}`;
}

function makePredictions(best) {
  const rows = best.map((scored) => (scored.threshold === undefined ? makeRow(scored) : makeLabelRow(scored)));
  const classes = make("ol", { class: "predictions", "aria-label": "Top-5 classes" }, ...rows);
  if (best[0].threshold === undefined) return classes;
  classes.setAttribute("aria-label", "Likeliest classes, and whether each reaches its threshold");
  return make("div", { class: "labels" }, ...(best.some((c) => c.isPredicted) ? [] : [make("p", { class: "none" }, NO_LABEL)]), classes);
}

function makeRow({ index, label, name, probability }) {
  const bar = make("span", { class: "score", "aria-hidden": "true" });
  bar.style.width = `${100 * probability}%`;
  const own = name && name !== label ? [" ", make("small", { class: "quiet" }, name)] : [];
  return make("li", { "data-index": index, "data-probability": probability },
    make("span", {}, make("bdi", {}, label), ...own),
    make("span", { class: "number" }, percent(probability)),
    make("span", { class: "rail" }, bar));
}

/** Make the row of a multi-label model's class: its threshold is a mark on the rail, and is said where it is not reached. */
function makeLabelRow(scored) {
  const row = makeRow(scored);
  row.dataset.predicted = scored.isPredicted;
  const mark = make("span", { class: "threshold", title: `threshold ${percent(scored.threshold)}` });
  mark.style.left = `${100 * scored.threshold}%`;
  row.lastChild.append(mark);
  row.children[1].textContent += `, ${scored.isPredicted ? "at least" : "below"} ${percent(scored.threshold)}`;
  return row;
}

function percent(probability) {
  const value = 100 * probability;
  return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}
