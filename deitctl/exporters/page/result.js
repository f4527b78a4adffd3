// One image's card: what the model saw, where its tokens look, and the five likeliest classes. Names are set as text.

import { drawMap, drawView } from "./heat.js";

const MOST = 5;

/** Make an element with attributes and contents; a text among them is a text, whatever it holds. */
function make(tag, attributes = {}, ...contents) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...contents);
  return element;
}

/** A card for an image that has not been looked at. */
export function waiting(name) {
  return make("article", { class: "card", "data-state": "waiting" },
    make("h2", {}, make("bdi", {}, name)),
    make("p", { class: "quiet" }, "Waiting …"));
}

/** Say on a card why there is no answer. */
export function failed(card, why) {
  card.dataset.state = "failed";
  card.lastChild.replaceWith(make("p", { class: "failure" }, why));
}

/** Fill a card; returns the best class and its probability in words. */
export function answered(card, name, answer, about) {
  const { view, width, height, milliseconds } = answer;
  const order = [...answer.probabilities.keys()].sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  const best = order.slice(0, MOST).map((index) => ({
    index, label: about.labels[index], name: about.names?.[index], probability: answer.probabilities[index],
  }));
  const took = `${Math.round(milliseconds.view + milliseconds.network)} ms`;
  const parts = `decode and resize ${Math.round(milliseconds.view)}, network ${Math.round(milliseconds.network)}`;
  card.lastChild.replaceWith(make("p", { class: "quiet" }, `${width} × ${height} pixels, ${took} (${parts})`));
  card.append(make("div", { class: "answer" }, panels(answer, about, name), guesses(best)));
  card.dataset.state = "answered";
  return `${best[0].label}, ${percent(best[0].probability)}`;
}

function panels({ view, attention }, about, name) {
  const side = about.preprocessing.imgSize;
  const seen = figure(`${name}, as the model sees it`, "as the model sees it", (canvas) => drawView(canvas, view, side));
  const maps = about.tokens.map((token, t) => {
    const map = attention.data.subarray(t * attention.grid ** 2, (t + 1) * attention.grid ** 2);
    return figure(`${name}: ${spot(map, attention.grid, token)}`, `${token}, last block`, (canvas) => drawMap(canvas, view, side, map));
  });
  return make("div", { class: "panels" }, seen, ...maps);
}

function figure(description, caption, draw) {
  const canvas = make("canvas", { role: "img", "aria-label": description });
  draw(canvas);
  return make("figure", {}, canvas, make("figcaption", {}, caption));
}

/** Say where a map is brightest, for those who do not see it. */
function spot(map, grid, token) {
  const at = map.indexOf(Math.max(...map));
  const third = (n) => Math.min(2, Math.floor((3 * (n + 0.5)) / grid));
  const place = [["top", "middle", "bottom"][third(Math.floor(at / grid))], ["left", "center", "right"][third(at % grid)]];
  return `the ${token} looks most at the ${place.join(" ")}`;
}

function guesses(best) {
  const rows = best.map(({ index, label, name, probability }) => {
    const bar = make("span", { class: "score", "aria-hidden": "true" });
    bar.style.width = `${100 * probability}%`;
    const own = name && name !== label ? [" ", make("small", { class: "quiet" }, name)] : [];
    return make("li", { "data-index": index, "data-probability": probability },
      make("span", {}, make("bdi", {}, label), ...own),
      make("span", { class: "number" }, percent(probability)),
      make("span", { class: "rail" }, bar));
  });
  return make("ol", { class: "guesses", "aria-label": "The likeliest classes" }, ...rows);
}

function percent(probability) {
  const value = 100 * probability;
  return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}
