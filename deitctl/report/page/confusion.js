// The confusion matrix: rows are what the images are, columns what they are taken for.

function drawConfusion(section, model, data) {
  const matrix = matrixOf(model, data);
  const found = listedImages(model, data);
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
    position.textContent = focus
      ? `${focus.classes.length} classes around ${focus.asked}`
      : `classes ${start + 1} to ${Math.min(start + WINDOW, matrix.size)} of ${whole(matrix.size)}`;
    overview?.draw(order, visible());
  };
  const select = (choice) => {
    selected = choice;
    const { title, count, has } = describe(choice, matrix, data, model, visible());
    detail.replaceChildren(
      el("h3", {}, title),
      ...(count
        ? imageList(model, data, found.filter(has), count)
        : [el("p", { className: "empty" }, "No image.")]),
    );
    for (const cell of holder.querySelectorAll("[data-key]"))
      cell.classList.toggle("selected", cell.dataset.key === keyOf(choice));
  };
  const lookAt = (choice, classes) => {
    if (matrix.size > WINDOW) {
      focus = { classes: around(matrix, classes), asked: classes.map((n) => data.classes[n]).join(" and ") };
    }
    selected = choice;
    redraw();
    select(choice);
  };
  const move = (by) => {
    start = Math.max(0, start + by < matrix.size ? start + by : start);
    focus = null;
    redraw();
  };

  const sorts = { data: "as in the data", confused: "most confused", accuracy: "accuracy", name: "name" };
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
    overview = matrixOverview(matrix, (label, answer) => lookAt({ label, answer }, [...new Set([label, answer])]));
  }
  const frequent = model.confused.map(([label, answer, outside, count]) => {
    const link = el(
      "a",
      { href: "#cell" },
      name(data.classes[label]),
      " taken for ",
      name(outside || data.classes[answer]),
    );
    const foreign = outside ? model.outside.indexOf(outside) : null;
    link.addEventListener("click", () =>
      lookAt({ label, answer, foreign }, answer === OUTSIDE ? [label] : [label, answer]),
    );
    return el(
      "li",
      {},
      link,
      " ",
      quiet(`${whole(count)} of ${whole(matrix.images[label])}`),
      outside ? quiet(", not in the data") : "",
    );
  });
  detail.append(
    el(
      "p",
      { className: "quiet" },
      "A click on a number, a class or a pair lists its images here. In the matrix, the arrow keys move and Enter chooses.",
      data.root ? [" Names of files are below ", el("code", {}, name(data.root)), "."] : "",
    ),
  );
  section.append(
    el(
      "p",
      { className: "quiet" },
      "Rows: what the images are. Columns: what they are taken for. Blue: right; orange: mistaken; the stronger the color, the larger the share of the row.",
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
        el("h3", {}, "Most often confused"),
        frequent.length
          ? el("ol", { className: "confused" }, frequent)
          : el("p", { className: "empty" }, "No mistake was made."),
      ),
      overview?.node ?? "",
    ),
  );
  redraw();
  return {
    showClass(n) {
      lookAt({ label: n }, [n]);
      section.scrollIntoView();
      detail.focus({ preventScroll: true });
    },
  };
}
