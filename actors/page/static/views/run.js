/** The run: how it learns, whether its accounts add up, who works for it, what it cost. */

import { get } from "../modules/api.js";
import { fill, h } from "../modules/dom.js";
import { to } from "../modules/router.js";
import { Curves } from "./run_curves.js";
import { figures, identities, drops } from "./run_accounts.js";
import { actorTable, evaluation, queues, timeline } from "./run_parts.js";
import { runTable } from "./run_compare.js";

/** @param {any} page what `main.js` gives every view */
export async function show({ root, route, store, router, keys, signal }) {
  const curves = new Curves(store, signal);
  const parts = {
    figures: h("section", { class: "figures", "aria-label": "Figures" }),
    identities: h("section", { class: "sheet", "aria-label": "Accounting" }),
    evaluation: h("section", { class: "sheet", "aria-label": "Evaluation" }),
    timeline: h("section", { class: "sheet", "aria-label": "Policy timeline" }),
    actors: h("section", { class: "sheet", "aria-label": "Actors" }),
    queues: h("section", { class: "sheet", "aria-label": "Queues" }),
    drops: h("section", { class: "sheet", "aria-label": "Drops and discards" }),
    runs: h("section", { class: "sheet", "aria-label": "Runs" }),
  };
  fill(root, h("h1", { class: "unseen" }, `Run ${route.run}`), parts.figures,
    h("div", { class: "sheets" }, h("div", { class: "sheet-column" }, parts.identities, parts.drops), h("div", { class: "sheet-column" }, parts.evaluation)), curves.element,
    h("div", { class: "sheets" }, h("div", { class: "sheet-column" }, parts.actors, parts.runs), h("div", { class: "sheet-column" }, parts.timeline, parts.queues)));
  keys.setView("Run", [{ keys: ["Enter"], does: "see its episodes", run: () => router.go(to(route.run, "episodes")) }]);

  let steps = -1;
  const drawn = new Map();
  // A part is built again only when what it shows has changed, so that a link keeps the focus.
  const draw = (name, build, run, ...shown) => {
    const state = JSON.stringify(shown);
    if (drawn.get(name) === state) return;
    drawn.set(name, state);
    build(parts[name], run);
  };
  const update = (run) => {
    const { report } = run;
    draw("figures", figures, run, report, run.rates, run.ages, run.cost);
    draw("identities", identities, run, report.accounting_by_purpose, report.accounting, report.identities_broken);
    draw("drops", drops, run, report.reasons, run.dead_letters);
    draw("evaluation", evaluation, run, report.eval);
    draw("timeline", timeline, run, run.timeline);
    draw("actors", actorTable, run, run.actors, run.state);
    draw("queues", queues, run, run.queues, run.streams);
    if (run.report?.steps !== steps) {
      steps = run.report?.steps;
      void curves.update();
    }
  };
  const chosen = () => (new URLSearchParams(location.search).get("with") ?? "").split(",").filter((run) => run && run !== route.run);
  const choose = (others) => {
    router.amend(others.length ? `${to(route.run)}?with=${others.map(encodeURIComponent).join(",")}` : to(route.run));
    void curves.choose([route.run, ...others]);
    void listRuns();
  };
  const listRuns = async () => {
    try {
      const { runs } = await get("/api/runs", signal);
      runTable(parts.runs, runs, route.run, chosen(), choose);
    } catch {
      // The banner says why.
    }
  };
  await store.ready;
  if (signal.aborted) return;
  store.watch(update, signal);
  void curves.choose([route.run, ...chosen()]);
  void listRuns();
  const timer = setInterval(() => !document.hidden && void listRuns(), 10_000);
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });
  store.addEventListener("again", () => void listRuns(), { signal });
}
