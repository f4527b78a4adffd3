"use strict";
// Making elements. Text reaches the page as text nodes and properties alone, so no name can become markup.

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
const percent = (share) =>
  share >= 0.9995 && share < 1 ? `${Math.min(100 * share, 99.99).toFixed(2)} %` : `${(100 * share).toFixed(1)} %`;
const whole = (number) => number.toLocaleString("en");
const countImages = (count) => `${whole(count)} image${count === 1 ? "" : "s"}`;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** A row of buttons of which one is pressed: `choices` maps values to labels. */
function choice(label, choices, chosen, onChoose) {
  const buttons = Object.entries(choices).map(([value, text]) =>
    el("button", { type: "button", value, "aria-pressed": String(value === chosen) }, text),
  );
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      onChoose(button.value);
    });
  }
  return el("div", { className: "choice", role: "group", "aria-label": label }, quiet(label), ...buttons);
}

/** A list that shows its first `most` items and a button for the others; `make` gets an item. */
function shortened(tag, items, most, make, className = "") {
  const list = el(tag, { className }, items.slice(0, most).map(make));
  if (items.length <= most) return [list];
  const more = el("button", { type: "button", className: "more" }, `Show all ${whole(items.length)}`);
  more.addEventListener("click", () => {
    list.append(...items.slice(most).map(make));
    more.remove();
  });
  return [list, more];
}

function help(text) {
  return el("details", { className: "help" }, el("summary", {}, "How to read it"), el("p", {}, text));
}
