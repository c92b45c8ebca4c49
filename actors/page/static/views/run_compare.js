/** Several runs side by side: the ones that are chosen are drawn over the curves. */

import { fill, h } from "../modules/dom.js";
import { count, duration, fixed, when } from "../modules/format.js";
import { STATE_MARKS } from "../modules/frame.js";
import { colourName } from "../modules/palette.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";

const MOST = 6;

/**
 * @param {HTMLElement} root
 * @param {any[]} runs
 * @param {string} here
 * @param {string[]} chosen besides the one that is here, in order of their colours
 * @param {(chosen: string[]) => void} choose
 */
export function runTable(root, runs, here, chosen, choose) {
  const row = (run) => {
    const mine = run.run === here;
    const place = mine ? 0 : chosen.indexOf(run.run) + 1;
    const drawn = mine || place > 0;
    const toggle = () => choose(chosen.includes(run.run) ? chosen.filter((each) => each !== run.run) : [...chosen, run.run].slice(0, MOST));
    return h("tr", { class: mine ? "here" : null },
      h("td", null, h("input", { type: "checkbox", checked: drawn, disabled: mine || (!drawn && chosen.length >= MOST), "aria-label": `draw ${run.run} over the curves`, on: { change: toggle } })),
      h("th", { scope: "row" }, h("span", { class: "key", css: drawn ? { "border-color": `var(${colourName(place)})` } : { visibility: "hidden" } }), h("a", { href: to(run.run) }, foreign(run.run))),
      h("td", null, `${STATE_MARKS[run.state] ?? ""} ${run.state}`),
      h("td", null, foreign(run.recipe ?? "")),
      h("td", { class: "num" }, String(run.seed ?? "–")),
      h("td", { class: "num" }, count(run.steps), run.planned_steps ? h("span", { class: "unit" }, ` of ${count(run.planned_steps)}`) : null),
      h("td", { class: "num" }, fixed(run.accuracy_before, 2)),
      h("td", { class: "num" }, fixed(run.accuracy_after, 2)),
      h("td", { class: "num" }, duration(run.wall_s)),
      h("td", { class: "num" }, when(run.created_ns)));
  };
  const ordered = [...runs].sort((a, b) => (b.created_ns ?? 0) - (a.created_ns ?? 0));
  const heads = ["", "run", "state", "recipe", "seed", "steps", "accuracy before", "after", "wall time", "began"];
  fill(root, h("h2", null, "Runs", h("span", { class: "aside" }, "tick runs to draw them over the curves")),
    h("div", { class: "scroll-x" }, h("table", { class: "runs" },
      h("thead", null, h("tr", null, heads.map((name, i) => h("th", { scope: "col", class: i > 3 ? "num" : null }, name)))),
      h("tbody", null, ordered.map(row)))));
}
