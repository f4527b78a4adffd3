// The confusion matrix: rows are what the pictures are, columns what they are taken for.

const WINDOW = 20; // classes in sight at a time
const OTHERS = -2; // the column of the classes that are out of sight

/** The matrix as maps, and the orders its classes can stand in. */
function matrixOf(model, data) {
  const [labels, answers, counts] = model.cells;
  const rows = data.classes.map(() => new Map());
  const columns = data.classes.map(() => new Map());
  labels.forEach((label, n) => {
    rows[label].set(answers[n], counts[n]);
    if (answers[n] !== OUTSIDE) columns[answers[n]].set(label, counts[n]);
  });
  const [images, right, said] = model.perClass;
  const numbers = data.classes.map((_, n) => n);
  const accuracy = (n) => (images[n] ? right[n] / images[n] : 2);
  const orders = {
    data: () => numbers,
    confused: () => pairsFirst(labels, answers, counts, numbers),
    accuracy: () => numbers.toSorted((a, b) => accuracy(a) - accuracy(b)),
    name: () => numbers.toSorted((a, b) => data.classes[a].localeCompare(data.classes[b], "en", { numeric: true })),
  };
  return { rows, columns, images, right, said, orders, outside: answers.includes(OUTSIDE), size: numbers.length };
}

/** Classes in the order of the pairs most often taken for each other, so that these stand side by side. */
function pairsFirst(labels, answers, counts, numbers) {
  const pairs = new Map();
  labels.forEach((label, n) => {
    if (answers[n] === OUTSIDE || answers[n] === label) return;
    const pair = Math.min(label, answers[n]) * numbers.length + Math.max(label, answers[n]);
    pairs.set(pair, (pairs.get(pair) ?? 0) + counts[n]);
  });
  const order = new Set();
  for (const [pair] of [...pairs].sort((a, b) => b[1] - a[1])) {
    order.add(Math.floor(pair / numbers.length)).add(pair % numbers.length);
  }
  return [...order, ...numbers.filter((n) => !order.has(n))];
}

/** The classes to show around some: first they, then those most often taken for them or they for. */
function around(matrix, classes) {
  const near = new Map();
  for (const n of classes) {
    for (const [other, count] of [...matrix.rows[n], ...matrix.columns[n]]) {
      if (other !== OUTSIDE && !classes.includes(other)) near.set(other, (near.get(other) ?? 0) + count);
    }
  }
  return [...classes, ...[...near].sort((a, b) => b[1] - a[1]).map(([other]) => other)].slice(0, WINDOW);
}

function drawConfusion(section, model, data) {
  const matrix = matrixOf(model, data);
  const found = listedPictures(model, data);
  const holder = el("div", { className: "scroll" });
  const detail = el("div", { id: "cell", className: "card", tabIndex: -1, "aria-live": "polite" });
  const position = el("span", { className: "quiet" });
  let order = matrix.orders.data();
  let start = 0;
  let focus = null; // { classes, asked }: those around the classes asked for, instead of a stretch of the order
  let selected = null;

  const visible = () => focus?.classes ?? order.slice(start, start + WINDOW);
  const redraw = () => {
    holder.replaceChildren(matrixTable(matrix, data, visible(), selected, select));
    position.textContent = focus ? `${focus.classes.length} classes around ${focus.asked}` : `classes ${start + 1} to ${Math.min(start + WINDOW, matrix.size)} of ${whole(matrix.size)}`;
    overview?.draw(order, visible());
  };
  const select = (choice) => {
    selected = choice;
    const { title, count, has } = describe(choice, matrix, data, model, visible());
    detail.replaceChildren(el("h3", {}, title), ...(count ? pictureList(model, data, found.filter(has), count) : [el("p", { className: "empty" }, "No picture.")]));
    for (const cell of holder.querySelectorAll("[data-key]")) cell.classList.toggle("selected", cell.dataset.key === keyOf(choice));
  };
  const lookAt = (choice, classes) => {
    if (matrix.size > WINDOW) {
      focus = { classes: around(matrix, classes), asked: classes.map((n) => data.classes[n]).join(" and ") };
    }
    selected = choice;
    redraw();
    select(choice);
  };
  const move = (by) => { start = Math.max(0, Math.min(start + by, matrix.size - 1)); focus = null; redraw(); };

  const sorts = { data: "as in the data", confused: "most confused", accuracy: "accuracy", name: "name" };
  const controls = el("div", { className: "controls" }, choice("Order", sorts, "data", (by) => { order = matrix.orders[by](); start = 0; focus = null; redraw(); }));
  let overview = null;
  if (matrix.size > WINDOW) {
    const step = (text, by) => el("button", { type: "button", onclick: () => move(by) }, text);
    controls.append(el("div", { className: "choice" }, step("◂ previous", -WINDOW), step("next ▸", WINDOW), position));
    overview = matrixOverview(matrix, (label, answer) => lookAt({ label, answer }, [...new Set([label, answer])]));
  }
  const frequent = model.confused.map(([label, answer, outside, count]) => {
    const link = el("a", { href: "#cell" }, name(data.classes[label]), " taken for ", name(outside || data.classes[answer]));
    const foreign = outside ? model.outside.indexOf(outside) : null;
    link.addEventListener("click", () => lookAt({ label, answer, foreign }, answer === OUTSIDE ? [label] : [label, answer]));
    return el("li", {}, link, " ", quiet(`${whole(count)} of ${whole(matrix.images[label])}`), outside ? quiet(", not in the data") : "");
  });
  detail.append(el("p", { className: "quiet" }, "A click on a number, a class or a pair lists its pictures here. In the matrix, the arrow keys move and Enter chooses.",
    data.root ? [" Names of files are below ", el("code", {}, name(data.root)), "."] : ""));
  section.append(
    el("p", { className: "quiet" }, "Rows: what the pictures are. Columns: what they are taken for. Blue: right; orange: mistaken; the stronger the colour, the larger the share of the row."),
    controls,
    el("div", { className: matrix.size > 11 ? "split wide" : "split" },
      el("div", {}, holder),
      detail,
      el("div", {}, el("h3", {}, "Most often confused"), frequent.length ? el("ol", { className: "confused" }, frequent) : el("p", { className: "empty" }, "No mistake was made.")),
      overview?.node ?? ""));
  redraw();
  return { showClass(n) { lookAt({ label: n }, [n]); section.scrollIntoView(); detail.focus({ preventScroll: true }); } };
}

const keyOf = ({ label, answer }) => `${label ?? ""}/${answer ?? ""}`;

/** What a choice means: its heading, how many pictures it has, and which of the listed pictures belong to it. */
function describe({ label, answer, foreign }, matrix, data, model, visible) {
  const hidden = (a) => a !== OUTSIDE && !visible.includes(a);
  const row = label === undefined ? null : matrix.rows[label];
  const title = (count, ...words) => [`${pictures(count)}: `, ...words];
  if (row === null) {
    const count = matrix.said[answer] - matrix.right[answer];
    return { title: title(count, "wrongly taken for ", name(data.classes[answer])), count, has: (p) => p.answer === answer && p.label !== answer };
  }
  const what = name(data.classes[label]);
  if (answer === undefined) {
    const count = matrix.images[label] - matrix.right[label];
    return { title: title(count, what, " taken for something else"), count, has: (p) => p.label === label && p.answer !== label };
  }
  if (answer === OTHERS) {
    const count = sum([...row].filter(([a]) => hidden(a)).map(([, c]) => c));
    return { title: title(count, what, " taken for a class that is not in sight"), count, has: (p) => p.label === label && hidden(p.answer) };
  }
  if (answer === OUTSIDE && (foreign ?? null) !== null) {
    const pair = model.confused.find(([l, a, o]) => l === label && a === OUTSIDE && o === model.outside[foreign]);
    return { title: title(pair[3], what, " taken for ", name(model.outside[foreign])), count: pair[3], has: (p) => p.label === label && p.foreign === foreign };
  }
  const count = row.get(answer) ?? 0;
  const words = answer === label ? [what, " answered right"] : [what, " taken for ", answer === OUTSIDE ? "a class that is not in the data" : name(data.classes[answer])];
  return { title: title(count, ...words), count, has: (p) => p.label === label && p.answer === answer };
}

function matrixTable(matrix, data, classes, selected, select) {
  const others = classes.length < matrix.size;
  const columns = [...classes, ...(others ? [OTHERS] : []), ...(matrix.outside ? [OUTSIDE] : [])];
  const heading = (n) => (n === OTHERS ? "classes not in sight" : n === OUTSIDE ? "not in the data" : data.classes[n]);
  const button = (choice, text, label) => {
    const node = el("button", { type: "button", tabIndex: -1, title: label, "aria-label": label, onclick: () => select(choice) }, text);
    node.dataset.key = keyOf(choice);
    if (selected && keyOf(selected) === node.dataset.key) node.classList.add("selected");
    return node;
  };
  const head = el("tr", {}, el("th", { className: "corner" }), columns.map((n) => el("th", { scope: "col" },
    n < 0 ? el("span", { className: "column quiet" }, heading(n)) : el("span", { className: "column" }, button({ answer: n }, heading(n), `all wrongly taken for ${heading(n)}`)))),
  el("th", { scope: "col" }, el("span", { className: "column quiet" }, "pictures")));
  const body = classes.map((label) => {
    const row = matrix.rows[label];
    const total = matrix.images[label];
    const hidden = sum([...row].filter(([answer]) => answer !== OUTSIDE && !classes.includes(answer)).map(([, count]) => count));
    return el("tr", {}, el("th", { scope: "row" }, button({ label }, data.classes[label], `all mistakes on ${data.classes[label]}`)),
      columns.map((answer) => {
        const count = answer === OTHERS ? hidden : row.get(answer) ?? 0;
        if (!count) return el("td", {});
        const cell = button({ label, answer }, whole(count), `${data.classes[label]} ${answer === label ? "answered right" : `taken for ${heading(answer)}`}: ${count} of ${total}`);
        const weight = answer === label ? 12 + 88 * (count / total) : 26 + 74 * Math.sqrt(count / total);
        cell.style.background = `color-mix(in oklab, var(--${answer === label ? "right" : "wrong"}) ${weight}%, var(--card))`;
        cell.classList.toggle("strong", weight > 82);
        return el("td", {}, cell);
      }), el("td", { className: "total" }, whole(total)));
  });
  const table = el("table", { className: "matrix", "aria-label": "Confusion matrix" }, el("thead", {}, head), el("tbody", {}, body));
  withArrowKeys(table);
  return table;
}

/** One stop of the Tab key for the whole table; the arrow keys go on from there to the next cell that has a number. */
function withArrowKeys(table) {
  const first = table.querySelector("tbody button");
  if (first) first.tabIndex = 0;
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  table.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const cell = event.target.closest("td, th");
    if (!step || !cell) return;
    event.preventDefault();
    let [row, column] = [cell.parentNode.rowIndex + step[0], cell.cellIndex + step[1]];
    for (; table.rows[row]?.cells[column]; row += step[0], column += step[1]) {
      const next = table.rows[row].cells[column].querySelector("button");
      if (next) { event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); return; }
    }
  });
}

/** All classes as one small picture; a click goes to the nearest mistake. */
function matrixOverview(matrix, open) {
  const side = 320;
  const canvas = el("canvas", { width: 2 * side, height: 2 * side, role: "img", "aria-label": "Overview of the whole matrix; the list of confusions and the classes lead to the same places" });
  let place = new Map();
  const dots = [];
  const draw = (order, visible) => {
    place = new Map(order.map((n, at) => [n, at]));
    const scale = canvas.width / matrix.size;
    const dot = Math.max(3, scale);
    const colours = getComputedStyle(canvas);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    dots.length = 0;
    matrix.rows.forEach((row, label) => row.forEach((count, answer) => {
      if (answer === OUTSIDE) return;
      const [x, y] = [place.get(answer) * scale, place.get(label) * scale];
      context.globalAlpha = answer === label ? 0.25 + 0.75 * (count / matrix.images[label]) : 0.25 + 0.75 * Math.sqrt(count / matrix.images[label]);
      context.fillStyle = colours.getPropertyValue(answer === label ? "--right" : "--wrong");
      context.fillRect(x, y, dot, dot);
      if (answer !== label) dots.push([x, y, label, answer]);
    }));
    context.globalAlpha = 1;
    context.strokeStyle = "#888";
    context.lineWidth = 3;
    const at = visible.map((n) => place.get(n));
    const [low, high] = [Math.min(...at), Math.max(...at) + 1];
    if (high - low === visible.length) context.strokeRect(low * scale, low * scale, (high - low) * scale, (high - low) * scale);
  };
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) * (canvas.width / box.width), (event.clientY - box.top) * (canvas.height / box.height)];
    const nearest = dots.reduce((best, dot) => { const d = (dot[0] - x) ** 2 + (dot[1] - y) ** 2; return d < best[0] ? [d, dot] : best; }, [Infinity, null])[1];
    if (nearest) open(nearest[2], nearest[3]);
  });
  const node = el("figure", { className: "overview" }, canvas, el("figcaption", { className: "quiet" }, "All classes in this order. A click goes to the nearest mistake."));
  return { node, draw };
}
