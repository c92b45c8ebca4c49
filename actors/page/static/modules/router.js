/** Where the reader is. The address has all of it, so that a link to a view is the view. */

/**
 * @typedef {{view: "start" | "run" | "episodes" | "episode" | "tokens" | "group" | "behaviour" | "lost", run: string,
 *   episode: string, group: string, query: URLSearchParams}} Route
 */

/** @param {string} path @param {string} search @returns {Route} */
export function parse(path, search) {
  const route = { view: "lost", run: "", episode: "", group: "", query: new URLSearchParams(search) };
  let parts;
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    return route;
  }
  const [first, run = "", part, name = "", last] = parts;
  route.run = run;
  if (parts.length === 0) route.view = "start";
  else if (first !== "runs" || !run) return route;
  else if (parts.length === 2) route.view = "run";
  else if (part === "episodes" && parts.length === 3) route.view = "episodes";
  else if (part === "episodes" && (parts.length === 4 || (parts.length === 5 && last === "tokens"))) {
    route.view = last ? "tokens" : "episode";
    route.episode = name;
  } else if (part === "groups" && parts.length === 4) {
    route.view = "group";
    route.group = name;
  } else if (part === "behaviour" && parts.length === 3) route.view = "behaviour";
  return route;
}

/** The path of a view. @param {string} run @param {...string} parts */
export const to = (run, ...parts) => ["/runs", run, ...parts].map((part, i) => (i ? encodeURIComponent(part) : part)).join("/");

export class Router {
  /** @param {(route: Route) => void} onRoute */
  constructor(onRoute) {
    this.onRoute = onRoute;
    this.depth = 0;
    history.scrollRestoration = "manual";
    addEventListener("popstate", () => this.#enter());
    document.addEventListener("click", (event) => this.#clicked(event));
  }

  start() {
    this.#enter();
  }

  get here() {
    return location.pathname + location.search;
  }

  /** @param {string} path @param {{replace?: boolean}} [how] */
  go(path, { replace = false } = {}) {
    if (replace) history.replaceState(null, "", path);
    else {
      history.pushState({ depth: ++this.depth }, "", path);
    }
    this.#enter();
  }

  /** Change the address of the view that is shown, which goes on. @param {string} path */
  amend(path) {
    history.replaceState(history.state, "", path);
  }

  /** Keep something with this place of the history, such as how far the list was scrolled. @param {Record<string, unknown>} kept */
  remember(kept) {
    history.replaceState({ ...history.state, kept }, "", this.here);
  }

  /** What was kept with this place. @returns {Record<string, any> | null} */
  get kept() {
    return history.state?.kept ?? null;
  }

  /** Back to where the reader came from; a view that was opened by its link goes up. @param {string} up */
  back(up) {
    if ((history.state?.depth ?? 0) > 0) history.back();
    else this.go(up);
  }

  #enter() {
    this.depth = history.state?.depth ?? 0;
    this.onRoute(parse(location.pathname, location.search));
  }

  /** @param {MouseEvent} event */
  #clicked(event) {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
    const path = link?.getAttribute("href") ?? "";
    if (!path.startsWith("/") || path.startsWith("/api/") || link?.hasAttribute("download") || link?.hasAttribute("target")) return;
    event.preventDefault();
    this.go(path);
  }
}
