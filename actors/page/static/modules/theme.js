/** Dark or light: the system's choice until the reader makes one, which is kept. */

const KEY = "asearch-theme";
const watchers = new EventTarget();

export const isDark = () => document.documentElement.dataset.theme === "dark";

/** @param {boolean} dark */
function apply(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  watchers.dispatchEvent(new Event("change"));
}

export function toggleTheme() {
  apply(!isDark());
  try {
    localStorage.setItem(KEY, isDark() ? "dark" : "light");
  } catch {
    // The choice then lives as long as the page.
  }
}

/** @param {() => void} listener @param {AbortSignal} signal */
export function onTheme(listener, signal) {
  watchers.addEventListener("change", listener, { signal });
}

export function followSystem() {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    let chosen = null;
    try {
      chosen = localStorage.getItem(KEY);
    } catch {
      // Nothing is kept, so nothing was chosen.
    }
    if (!chosen) apply(event.matches);
  });
}

/** The value of a colour of the theme. @param {string} name such as `--ink` */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
