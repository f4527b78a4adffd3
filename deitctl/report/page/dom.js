"use strict";
// Elements. Text reaches the page only as text nodes and properties, so no name can become markup.

const report = JSON.parse(document.getElementById("contents").textContent);

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const name = (text) => el("bdi", {}, text);
const quiet = (...children) => el("span", { className: "quiet" }, ...children);
const percent = (fraction) =>
  fraction >= 0.9995 && fraction < 1
    ? `${Math.min(100 * fraction, 99.99).toFixed(2)} %`
    : `${(100 * fraction).toFixed(1)} %`;
const formatCount = (number) => number.toLocaleString("en");
const countImages = (count) => `${formatCount(count)} image${count === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** A row of buttons, one of them pressed: `choices` maps values to labels. */
function choice(label, choices, pressed, onChoose) {
  const buttons = Object.entries(choices).map(([value, text]) =>
    el("button", { type: "button", value, "aria-pressed": String(value === pressed) }, text),
  );
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      onChoose(button.value);
    });
  }
  return el("div", { className: "choice", role: "group", "aria-label": label }, quiet(label), ...buttons);
}

/** A list of the first `limit` items with a button for the others; `render` makes an item's element. */
function shortenedList(tag, items, limit, render, className = "") {
  const list = el(tag, { className }, items.slice(0, limit).map(render));
  if (items.length <= limit) return [list];
  const more = el("button", { type: "button", className: "more" }, `Show all ${formatCount(items.length)}`);
  more.addEventListener("click", () => {
    list.append(...items.slice(limit).map(render));
    more.remove();
  });
  return [list, more];
}

function help(text) {
  return el("details", { className: "help" }, el("summary", {}, "How to read this"), el("p", {}, text));
}
