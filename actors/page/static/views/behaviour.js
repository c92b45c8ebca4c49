/** What the policy does, over a run: how often it plans, checks, asks again; how long it searches. By rules that are shown. */

import { api, get } from "../modules/api.js";
import { Chart } from "../modules/charts.js";
import { fill, h } from "../modules/dom.js";
import { count, known, percent, short } from "../modules/format.js";
import { colourName } from "../modules/palette.js";
import { to } from "../modules/router.js";
import { visible } from "../modules/text.js";

const AGAIN_MS = 1500;
const ON_MS = 60;
const LIVE_AGAIN_MS = 15_000;
const COUNTS = { n_turns: "turns", n_searches: "searches", n_reads: "pages read", n_tokens: "generated tokens" };
const named = (name) => name.replace(/^n_/, "").replaceAll("_", " ");

/** @param {any} page */
export async function show({ root, route, store, router, keys, signal }) {
  const progress = h("p", { class: "faint", role: "status" });
  const flags = h("div", { class: "behaviours" });
  const counts = h("div", { class: "charts" });
  fill(root, h("h1", null, "Behaviour", h("span", { class: "aside" }, "what the policy does in its episodes, by rules on the trace")), progress,
    h("h2", null, "How long it searches", h("span", { class: "aside" }, "mean and most of an episode, training, by policy step")), counts,
    h("h2", null, "What it does", h("span", { class: "aside" }, "share of episodes that show it")), flags);
  keys.setView("Behaviour", [{ keys: ["u", "Escape"], does: "back to the run", run: () => router.back(to(route.run)) }]);
  const charts = new Map();
  const chart = (name, spec) => {
    if (!charts.has(name)) charts.set(name, new Chart({ xLabel: "step", sync: "behaviour", min: 0, ...spec }, signal));
    return charts.get(name);
  };
  let timer = 0;
  const update = async () => {
    let found;
    try {
      found = await get(api(route.run, "behaviour"), signal);
    } catch (error) {
      if (signal.aborted) return;
      progress.textContent = error.message;
      timer = setTimeout(update, AGAIN_MS);
      return;
    }
    if (signal.aborted) return;
    progress.textContent = found.done ? `${count(found.n)} episodes` : `reading episodes: ${count(found.n)} of ${count(found.n_episodes)}`;
    draw(found, { flags, counts, chart });
    if (!found.done) timer = setTimeout(update, ON_MS);
    else if (store.isLive) timer = setTimeout(update, LIVE_AGAIN_MS);
  };
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  store.addEventListener("again", () => void update(), { signal });
  await update();
}

/** @param {any} found @param {{flags: HTMLElement, counts: HTMLElement, chart: (name: string, spec: any) => Chart}} parts */
function draw(found, { flags, counts, chart }) {
  const summary = found.summary ?? {};
  const buckets = summary.by_step ?? found.by_step ?? [];
  const groups = [["train", summary.train], ...Object.entries(summary.by_label ?? {})].filter(([, each]) => each?.n);
  if (!groups.length) {
    fill(flags, h("p", { class: "faint" }, "no graded episode yet"));
    return;
  }
  const x = buckets.map((bucket) => (bucket.first_step + bucket.last_step) / 2);
  for (const name of Object.keys(groups[0][1].counts ?? {})) {
    const each = chart(name, { title: COUNTS[name] ?? named(name), unit: "per episode", about: COUNTS[name] });
    if (!each.element.isConnected) counts.append(h("div", { class: "with-numbers" }, each.element, h("dl", { class: "facts small", data: { name } })));
    each.show([
      { label: "mean", colour: colourName(0), x, y: buckets.map((bucket) => bucket.counts?.[name]?.mean ?? null) },
      { label: "most", colour: colourName(1), dash: [5, 4], x, y: buckets.map((bucket) => bucket.counts?.[name]?.max ?? null) },
    ]);
    fill(counts.querySelector(`dl[data-name="${CSS.escape(name)}"]`), groups.map(([label, group]) => [h("dt", null, visible(label)), h("dd", null, short(group.counts[name]?.mean), h("span", { class: "unit" }, " mean  "), short(group.counts[name]?.max), h("span", { class: "unit" }, " most"))]));
  }
  for (const name of Object.keys(groups[0][1].flags ?? {})) {
    let card = flags.querySelector(`[data-name="${CSS.escape(name)}"]`);
    const each = chart(`flag-${name}`, { title: named(name), unit: "share of episodes", max: 1, format: percent });
    if (!card) {
      const rule = found.rules?.[name];
      card = h("section", { class: "behaviour", data: { name } }, each.element, h("table", { class: "shares" }), rule ? ruleText(rule) : null);
      flags.append(card);
    }
    each.show([{ label: "training", colour: colourName(0), x, y: buckets.map((bucket) => bucket.flags?.[name]?.share ?? null) }]);
    fill(card.querySelector("table"), h("tbody", null, groups.map(([label, group]) => {
      const flag = group.flags[name] ?? {};
      return h("tr", null, h("th", { scope: "row" }, visible(label)), h("td", { class: "bar-cell" }, h("span", { class: "bar", css: { width: known(flag.share) ? `${(100 * flag.share).toFixed(1)}%` : "0" } })),
        h("td", { class: "num" }, percent(flag.share)), h("td", { class: "num faint" }, `${count(flag.n)} of ${count(group.n)}`));
    })));
  }
}

/** The first sentence, and the rest on demand. @param {string} rule */
function ruleText(rule) {
  const [first, ...rest] = rule.trim().split(/\n\s*\n/);
  const flat = (text) => visible(text.replace(/\s+/g, " ").trim());
  return h("div", { class: "rule" }, h("p", null, flat(first)), rest.length ? h("details", null, h("summary", null, "the rule"), rest.map((part) => h("p", null, flat(part)))) : null);
}

