// The confusion matrix: rows are labels, columns are predictions.

function drawConfusion(section, model, data) {
  const matrix = buildMatrix(model, data);
  const images = listedImages(model, data);
  const holder = el("div", { className: "scroll" });
  const detail = el("div", { id: "cell", className: "card", tabIndex: -1, "aria-live": "polite" });
  const position = el("span", { className: "quiet" });
  let order = matrix.orders.data();
  let start = 0;
  let focus = null; // { classes, title }: classes around some, shown instead of a window of the order
  let selected = null;

  const visible = () => focus?.classes ?? order.slice(start, start + WINDOW);
  const redraw = () => {
    holder.replaceChildren(matrixTable(matrix, data, visible(), selected, select));
    position.textContent = focus
      ? `${focus.classes.length} classes around ${focus.title}`
      : `classes ${start + 1} to ${Math.min(start + WINDOW, matrix.size)} of ${formatCount(matrix.size)}`;
    overview?.draw(order, visible());
  };
  const select = (selection) => {
    selected = selection;
    const { title, count, has } = describeSelection(selection, matrix, data, model, visible());
    detail.replaceChildren(
      el("h3", {}, title),
      ...(count
        ? imageList(model, data, images.filter(has), count)
        : [el("p", { className: "empty" }, "No images.")]),
    );
    for (const cell of holder.querySelectorAll("[data-key]"))
      cell.classList.toggle("selected", cell.dataset.key === keyOf(selection));
  };
  const focusOn = (selection, classes) => {
    if (matrix.size > WINDOW) {
      focus = { classes: findNeighbors(matrix, classes), title: classes.map((n) => data.classes[n]).join(" and ") };
    }
    selected = selection;
    redraw();
    select(selection);
  };
  const move = (by) => {
    start = Math.max(0, start + by < matrix.size ? start + by : start);
    focus = null;
    redraw();
  };

  const sorts = { data: "data", confused: "most confused", accuracy: "accuracy", name: "name" };
  const controls = el(
    "div",
    { className: "controls" },
    choice("Order", sorts, "data", (by) => {
      order = matrix.orders[by]();
      start = 0;
      focus = null;
      redraw();
    }),
  );
  let overview = null;
  if (matrix.size > WINDOW) {
    const step = (text, by) => el("button", { type: "button", onclick: () => move(by) }, text);
    controls.append(el("div", { className: "choice" }, step("◂ previous", -WINDOW), step("next ▸", WINDOW), position));
    overview = matrixOverview(matrix, (label, pred) => focusOn({ label, pred }, [...new Set([label, pred])]));
  }
  const frequent = model.confusions.map(([label, pred, title, count]) => {
    const link = el(
      "a",
      { href: "#cell" },
      name(data.classes[label]),
      " predicted as ",
      name(title || data.classes[pred]),
    );
    const outside = title ? model.outside.indexOf(title) : null;
    link.addEventListener("click", () =>
      focusOn({ label, pred, outside }, pred === OUTSIDE ? [label] : [label, pred]),
    );
    return el(
      "li",
      {},
      link,
      " ",
      quiet(`${formatCount(count)} of ${formatCount(matrix.images[label])}`),
      title ? quiet(", not in the data") : "",
    );
  });
  detail.append(
    el(
      "p",
      { className: "quiet" },
      "Click a number, a class or a pair to list its images here. In the matrix, the arrow keys move and Enter selects.",
      data.root ? [" File names are relative to ", el("code", {}, name(data.root)), "."] : "",
    ),
  );
  section.append(
    el(
      "p",
      { className: "quiet" },
      "Rows: labels. Columns: predictions. Blue: correct; orange: wrong; a stronger color is a larger fraction of the row.",
    ),
    controls,
    el(
      "div",
      { className: matrix.size > 11 ? "split wide" : "split" },
      el("div", {}, holder),
      detail,
      el(
        "div",
        {},
        el("h3", {}, "Most frequent confusions"),
        frequent.length
          ? el("ol", { className: "confusions" }, frequent)
          : el("p", { className: "empty" }, "No mistakes."),
      ),
      overview?.node ?? "",
    ),
  );
  redraw();
  return {
    showClass(n) {
      focusOn({ label: n }, [n]);
      section.scrollIntoView();
      detail.focus({ preventScroll: true });
    },
  };
}
