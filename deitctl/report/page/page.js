// The page: its sections are drawn for one model, and again when another is chosen.

function draw(section, ...make) {
  section.hidden = false;
  section.querySelectorAll(":scope > :not(h2)").forEach((node) => node.remove());
  return make[0](section, ...make.slice(1));
}

function showModel(model) {
  const data = report.data[model.data];
  const section = (id) => document.getElementById(id);
  const matrix = draw(section("confusion"), drawConfusion, model, data);
  draw(section("classes"), drawClasses, model, data, matrix.showClass);
  draw(section("reliability"), drawReliability, model);
  for (const kind of Object.keys(GALLERIES)) if (section(kind)) draw(section(kind), drawGallery, model, data, kind);
}

function themeButton(button) {
  const root = document.documentElement;
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} colors`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  button.hidden = false;
  label();
}

themeButton(document.getElementById("theme"));
if (report.evaluated.length > 1) {
  const holder = document.getElementById("models");
  const names = Object.fromEntries(report.evaluated.map((model, n) => [`${n}`, model.name]));
  holder.append(choice("Details of", names, "0", (n) => showModel(report.evaluated[n])));
  holder.hidden = false;
}
const underTheBar = () => {
  const height = document.querySelector(".bar").offsetHeight;
  document.documentElement.style.scrollPaddingTop = `${height + 12}px`; // so that no heading ends up below it
};
addEventListener("resize", underTheBar);
underTheBar();
if (report.curves) draw(document.getElementById("curves"), drawCurves, report.curves);
showModel(report.evaluated[0]);
