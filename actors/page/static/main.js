/** The page: its frame, and the view that the address names. */

import { get } from "./modules/api.js";
import { Banner } from "./modules/banner.js";
import { fill, h } from "./modules/dom.js";
import { tick } from "./modules/format.js";
import { Frame } from "./modules/frame.js";
import { Keys } from "./modules/keys.js";
import { Router, to } from "./modules/router.js";
import { RunStore } from "./modules/runstore.js";
import { followSystem, toggleTheme } from "./modules/theme.js";

const VIEWS = {
  run: () => import("./views/run.js"),
  episodes: () => import("./views/episodes.js"),
  episode: () => import("./views/episode.js"),
  tokens: () => import("./views/tokens.js"),
  group: () => import("./views/group.js"),
  behaviour: () => import("./views/behaviour.js"),
};

const main = document.getElementById("main");
const banner = new Banner(document.getElementById("banner"));
const keys = new Keys();
const router = new Router((route) => void show(route));
const frame = new Frame(document.getElementById("bar"), { onTheme: toggleTheme, onHelp: () => keys.help(), onRun: (run) => router.go(to(run)) });

/** @type {RunStore | null} */
let store = null;
/** @type {AbortController | null} */
let scope = null;
/** @type {import("./modules/router.js").Route | null} */
let shown = null;

/** @param {import("./modules/router.js").Route} route */
async function show(route) {
  if (shown && scope && !scope.signal.aborted && shown.moved?.(route)) return;
  scope?.abort();
  const mine = (scope = new AbortController());
  shown = null;
  keys.setView("", []);
  if (route.view === "start") return begin(mine.signal);
  frame.route(route);
  if (route.view === "lost") return lost("There is no such view.", "Choose a run above.");
  if (store?.run !== route.run) {
    store?.close();
    store = new RunStore(route.run, banner);
    store.watch((run) => frame.run(run), store.scope.signal);
  }
  const view = await VIEWS[route.view]();
  if (mine.signal.aborted) return;
  fill(main);
  main.className = `view-${route.view}`;
  scrollTo(0, 0);
  try {
    shown = (await view.show({ root: main, route, store, router, keys, banner, signal: mine.signal, announce })) ?? null;
  } catch (error) {
    if (mine.signal.aborted) return;
    lost(error.message, error.status === 404 ? "Choose another above, or go to the list with g e." : "It is asked again when the viewer is back.");
    store.addEventListener("again", () => show(route), { signal: mine.signal, once: true });
  }
}

/** The run that this viewer was started for. @param {AbortSignal} signal */
async function begin(signal) {
  try {
    const { here, runs } = await get("/api/runs", signal);
    const run = here || runs.at(-1)?.run;
    if (run) router.go(to(run), { replace: true });
    else lost("There is no run yet.", "Start one with `asearch up`.");
  } catch (error) {
    if (signal.aborted) return;
    lost(error.message, "It is asked again in a moment.");
    setTimeout(() => !signal.aborted && begin(signal), 1000);
  }
}

/** @param {string} title @param {string} todo */
function lost(title, todo) {
  main.className = "view-lost";
  fill(main, h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), h("p", { class: "faint" }, todo)));
}

/** Say something to readers who do not see the page. @param {string} text */
function announce(text) {
  document.getElementById("says").textContent = text;
}

const here = () => store?.run ?? "";
keys.ofPage = [
  { keys: ["g r"], does: "go to the run", run: () => here() && router.go(to(here())) },
  { keys: ["g e"], does: "go to the episodes", run: () => here() && router.go(to(here(), "episodes")) },
  { keys: ["g b"], does: "go to behaviour", run: () => here() && router.go(to(here(), "behaviour")) },
  { keys: ["d"], does: "dark or light", run: toggleTheme },
  { keys: ["?"], does: "this help", run: () => keys.help() },
];
followSystem();
setInterval(tick, 2000);
router.start();
