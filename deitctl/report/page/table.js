// The confusion matrix as a table of buttons, and as one small image of all its classes.

function matrixTable(matrix, data, classes, selected, select) {
  const others = classes.length < matrix.size;
  const columns = [...classes, ...(others ? [OTHERS] : []), ...(matrix.outside ? [OUTSIDE] : [])];
  const heading = (n) => (n === OTHERS ? "classes not shown" : n === OUTSIDE ? "not in the data" : data.classes[n]);
  const button = (choice, text, label) => {
    const node = el(
      "button",
      { type: "button", tabIndex: -1, title: label, "aria-label": label, onclick: () => select(choice) },
      text,
    );
    node.dataset.key = keyOf(choice);
    if (selected && keyOf(selected) === node.dataset.key) node.classList.add("selected");
    return node;
  };
  const head = el(
    "tr",
    {},
    el("th", { className: "corner" }),
    columns.map((n) =>
      el(
        "th",
        { scope: "col" },
        n < 0
          ? el("span", { className: "column quiet" }, heading(n))
          : el(
              "span",
              { className: "column" },
              button({ pred: n }, heading(n), `all wrongly predicted as ${heading(n)}`),
            ),
      ),
    ),
    el("th", { scope: "col" }, el("span", { className: "column quiet" }, "images")),
  );
  const body = classes.map((label) => {
    const row = matrix.rows[label];
    const total = matrix.images[label];
    const hidden = sum(
      [...row].filter(([pred]) => pred !== OUTSIDE && !classes.includes(pred)).map(([, count]) => count),
    );
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, button({ label }, data.classes[label], `all mistakes on ${data.classes[label]}`)),
      columns.map((pred) => {
        const count = pred === OTHERS ? hidden : (row.get(pred) ?? 0);
        if (!count) return el("td", {});
        const cell = button(
          { label, pred },
          formatCount(count),
          `${data.classes[label]} ${pred === label ? "predicted correctly" : `predicted as ${heading(pred)}`}: ${count} of ${total}`,
        );
        const weight = pred === label ? 12 + 88 * (count / total) : 26 + 74 * Math.sqrt(count / total);
        cell.style.background = `color-mix(in oklab, var(--${pred === label ? "correct" : "wrong"}) ${weight}%, var(--card))`;
        cell.classList.toggle("strong", weight > 82);
        return el("td", {}, cell);
      }),
      el("td", { className: "total" }, formatCount(total)),
    );
  });
  const table = el(
    "table",
    { className: "matrix", "aria-label": "Confusion matrix" },
    el("thead", {}, head),
    el("tbody", {}, body),
  );
  addArrowKeys(table);
  return table;
}

/** The table is one stop of the Tab key; the arrow keys move from there to the next cell with a number. */
function addArrowKeys(table) {
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
      if (next) {
        event.target.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
        return;
      }
    }
  });
}

/** All classes as one small image; a click selects the nearest confusion. */
function matrixOverview(matrix, open) {
  const side = 320;
  const canvas = el("canvas", {
    width: 2 * side,
    height: 2 * side,
    role: "img",
    "aria-label": "Overview of the whole matrix; the lists of confusions and of classes select the same cells",
  });
  let place = new Map();
  const dots = [];
  const draw = (order, visible) => {
    place = new Map(order.map((n, at) => [n, at]));
    const scale = canvas.width / matrix.size;
    const dot = Math.max(3, scale);
    const colors = getComputedStyle(canvas);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    dots.length = 0;
    matrix.rows.forEach((row, label) =>
      row.forEach((count, pred) => {
        if (pred === OUTSIDE) return;
        const [x, y] = [place.get(pred) * scale, place.get(label) * scale];
        context.globalAlpha =
          pred === label
            ? 0.25 + 0.75 * (count / matrix.images[label])
            : 0.25 + 0.75 * Math.sqrt(count / matrix.images[label]);
        context.fillStyle = colors.getPropertyValue(pred === label ? "--correct" : "--wrong");
        context.fillRect(x, y, dot, dot);
        if (pred !== label) dots.push([x, y, label, pred]);
      }),
    );
    context.globalAlpha = 1;
    context.strokeStyle = "#888";
    context.lineWidth = 3;
    const at = visible.map((n) => place.get(n));
    const [low, high] = [Math.min(...at), Math.max(...at) + 1];
    if (high - low === visible.length)
      context.strokeRect(low * scale, low * scale, (high - low) * scale, (high - low) * scale);
  };
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [
      (event.clientX - box.left) * (canvas.width / box.width),
      (event.clientY - box.top) * (canvas.height / box.height),
    ];
    const nearest = dots.reduce(
      (best, dot) => {
        const d = (dot[0] - x) ** 2 + (dot[1] - y) ** 2;
        return d < best[0] ? [d, dot] : best;
      },
      [Infinity, null],
    )[1];
    if (nearest) open(nearest[2], nearest[3]);
  });
  const node = el(
    "figure",
    { className: "overview" },
    canvas,
    el("figcaption", { className: "quiet" }, "All classes in this order. Click to select the nearest confusion."),
  );
  return { node, draw };
}
