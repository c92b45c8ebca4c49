// Before the first paint: the theme that the reader chose, else the system's.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("asearch-theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
