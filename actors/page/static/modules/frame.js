/** The bar at the top: which run, which view, how the run is. */

import { get } from "./api.js";
import { fill, h, say } from "./dom.js";
import { count } from "./format.js";
import { visible } from "./text.js";
import { to } from "./router.js";

const TABS = [["run", "Run", "g r"], ["episodes", "Episodes", "g e"], ["behaviour", "Behaviour", "g b"]];
const TAB_OF = { run: "run", behaviour: "behaviour", episodes: "episodes", episode: "episodes", tokens: "episodes", group: "episodes" };
export const STATE_MARKS = { live: "●", ended: "■", crashed: "✕", preparing: "◌" };

export class Frame {
  /** @param {HTMLElement} element @param {{onTheme: () => void, onHelp: () => void, onRun: (run: string) => void}} actions */
  constructor(element, { onTheme, onHelp, onRun }) {
    this.choice = h("select", { "aria-label": "Run", class: "run-choice", on: { change: () => onRun(this.choice.value), pointerdown: () => this.#runs(), focus: () => this.#runs() } });
    this.tabs = h("nav", { "aria-label": "Views" });
    this.state = h("span", { class: "pill", role: "status" });
    fill(element,
      h("a", { class: "wordmark", href: "/", title: "the live run" }, mark(), "asearch"),
      this.choice,
      this.tabs,
      this.state,
      h("span", { class: "grow" }),
      h("button", { type: "button", class: "icon", title: "Dark or light (d)", "aria-label": "Dark or light", on: { click: onTheme } }, "◐"),
      h("button", { type: "button", class: "icon", title: "Keyboard (?)", "aria-label": "Keyboard help", on: { click: onHelp } }, "?"),
    );
    this.known = "";
  }

  /** @param {import("./router.js").Route} route */
  route(route) {
    const current = TAB_OF[route.view];
    const title = { run: "", episodes: "episodes", behaviour: "behaviour", episode: route.episode, tokens: `tokens of ${route.episode}`, group: route.group }[route.view];
    document.title = [title, route.run, "asearch"].filter(Boolean).join(" · ");
    fill(this.tabs, route.run ? TABS.map(([name, text, key]) =>
      h("a", { href: name === "run" ? to(route.run) : to(route.run, name), title: key, "aria-current": name === current ? "page" : null }, text)) : null);
    if (route.run !== this.known) {
      this.known = route.run;
      fill(this.choice, h("option", { value: route.run, selected: true }, route.run));
      fill(this.state);
      this.#runs();
    }
  }

  async #runs() {
    let found;
    try {
      found = (await get("/api/runs")).runs;
    } catch {
      return;
    }
    const wanted = found.map((run) => [run.run, `${STATE_MARKS[run.state] ?? ""} ${run.run}`]);
    if (!found.some((run) => run.run === this.known)) wanted.push([this.known, this.known]);
    if (JSON.stringify(wanted) === this.listed) return;
    this.listed = JSON.stringify(wanted);
    fill(this.choice, wanted.reverse().map(([value, text]) => h("option", { value, selected: value === this.known }, visible(text).map((part) => part.textContent ?? part))));
  }

  /** @param {import("./types.js").Run} run */
  run(run) {
    const steps = `step ${count(run.report?.steps ?? 0)}${run.planned_steps ? `/${count(run.planned_steps)}` : ""}`;
    const phase = run.state === "live" ? run.phase || "live" : run.state === "ended" ? `ended: ${run.ended?.reason ?? ""}` : run.state;
    this.state.className = `pill state-${run.state}`;
    say(this.state, `${STATE_MARKS[run.state] ?? ""} ${phase} · ${steps}`);
  }
}

function mark() {
  return h("img", { src: "/static/icon.svg", alt: "", width: "16", height: "16" });
}
