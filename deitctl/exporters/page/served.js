// Opened as a file, a page may load neither modules nor WebAssembly: say what helps. A classic script, which may run.
if (location.protocol === "file:") {
  document.body.dataset.state = "broken";
  document.getElementById("progress").hidden = true;
  document.getElementById("choose").disabled = true;
  document.getElementById("state").textContent =
    "This folder has to be served: run “python -m http.server --bind 127.0.0.1” in it and open http://127.0.0.1:8000.";
}
