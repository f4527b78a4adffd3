// The page of several labels an image: its sections are drawn for one model, and again when another is selected.

function fill(id, render, value) {
  const section = document.getElementById(id);
  section.hidden = false;
  section.querySelectorAll(":scope > :not(h2)").forEach((node) => node.remove());
  render(section, value);
}

function showLabels(model) {
  fill("classes", drawLabelClasses, model);
  fill("thresholds", drawThresholds, model);
  fill("confusions", drawCoConfusions, model);
  fill("hard", drawHardImages, model);
}

if (report.models.length > 1) {
  const holder = document.getElementById("models");
  const names = Object.fromEntries(report.models.map((model, n) => [`${n}`, model.name]));
  holder.append(choice("Model", names, "0", (n) => showLabels(report.models[n])));
  holder.hidden = false;
}
if (report.curves) fill("curves", drawCurves, report.curves);
showLabels(report.models[0]);
