// The page: its sections are drawn for one model, and again when another is selected.

function draw(section, render, ...values) {
  section.hidden = false;
  section.querySelectorAll(":scope > :not(h2)").forEach((node) => node.remove());
  return render(section, ...values);
}

function showModel(model) {
  const { data } = report;
  const section = (id) => document.getElementById(id);
  const matrix = draw(section("confusion"), drawConfusion, model, data);
  draw(section("classes"), drawClasses, model, data, matrix.showClass);
  draw(section("reliability"), drawReliability, model);
  for (const kind of Object.keys(GALLERIES)) if (section(kind)) draw(section(kind), drawGallery, model, data, kind);
}

if (report.models.length > 1) {
  const holder = document.getElementById("models");
  const names = Object.fromEntries(report.models.map((model, n) => [`${n}`, model.name]));
  holder.append(choice("Model", names, "0", (n) => showModel(report.models[n])));
  holder.hidden = false;
}
if (report.curves) draw(document.getElementById("curves"), drawCurves, report.curves);
showModel(report.models[0]);
