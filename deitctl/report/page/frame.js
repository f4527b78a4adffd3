// What every report page has: a button for light and dark, and links that end below the bar.

function addThemeButton(button) {
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

addThemeButton(document.getElementById("theme"));
const padScroll = () => {
  const height = document.querySelector(".bar").offsetHeight;
  document.documentElement.style.scrollPaddingTop = `${height + 12}px`; // else a link puts its heading below the bar
};
addEventListener("resize", padScroll);
padScroll();
