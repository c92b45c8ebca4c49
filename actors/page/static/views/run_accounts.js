/** Figures of a run in numbers: where it is, whether both identities hold, what was dropped and why, what it cost. */

import { fill, h, withUnit } from "../modules/dom.js";
import { count, duration, fixed, known, percent, short } from "../modules/format.js";
import { versionMark } from "../modules/marks.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function figures(root, run) {
  const { report, rates, ages, cost } = run;
  const staleness = report.staleness ?? {};
  const tokens = report.tokens ?? {};
  const list = [
    ["step", [count(report.steps), run.planned_steps ? h("span", { class: "unit" }, ` of ${count(run.planned_steps)}`) : null], report.empty_steps ? `${count(report.empty_steps)} empty` : ""],
    ["policy", versionMark(report.policy_version ?? ""), report.lineages > 1 ? `${report.lineages} lineages` : ""],
    ["training accuracy", percent(report.training?.accuracy), interval(report.training)],
    ["staleness", [count(staleness.max), h("span", { class: "unit" }, ` max of η ${count(report.eta)}`)], known(staleness.mean) ? `mean ${fixed(staleness.mean, 2)}` : ""],
    ["engine", withUnit(short(rates?.engine_tokens_per_s), "tokens/s"), `${short(tokens.generated)} generated`],
    ["trainer", withUnit(short(rates?.trainer_tokens_per_s), "tokens/s"), `${short(tokens.trained)} trained`],
    ["trainer idle", percent(report.trainer_idle_fraction), "since its first batch"],
    ["groups admitted", short(groupsAdmitted(report)), `${count(report.groups?.refills)} refills`],
    ["episodes", withUnit(short(rates?.episodes_per_s), "/s"), `${count(report.accounting?.in_flight)} in flight`],
    ["oldest open", duration(ages?.open_s), `oldest queued ${duration(ages?.queued_s)}`],
    ["tokens per correct", short(cost?.tokens_per_correct), `${short(cost?.tool_calls_per_correct)} tool calls`],
    ["tokens not trained", percent(cost?.wasted_share), `of ${short(tokens.generated)} generated`],
  ];
  fill(root, h("dl", null, list.map(([name, value, more]) => h("div", null, h("dt", null, name), h("dd", null, value), h("dd", { class: "more" }, more)))));
}

const groupsAdmitted = (report) => Object.values(report.groups?.admitted ?? {}).reduce((sum, n) => sum + n, 0);

function interval(sums) {
  const ci = sums?.ci95;
  return ci ? `95 %: ${percent(ci[0])} – ${percent(ci[1])}` : "";
}

const FIRST = [["requested", "="], ["graded", "+"], ["dropped", "+"], ["dead", "+"], ["in_flight", ""]];
const SECOND = [["graded", "="], ["counted", "+"], ["discarded", "+"], ["queued", ""]];

/** Whether the first term is the sum of the others. @param {Record<string, number>} terms @param {string[][]} names */
function holds(terms, names) {
  const [[whole], ...parts] = names;
  return terms[whole] === parts.reduce((sum, [name]) => sum + (terms[name] ?? 0), 0);
}

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function identities(root, run) {
  const { accounting, accounting_by_purpose, identities_broken } = run.report;
  const rows = [["all", accounting], ...Object.entries(accounting_by_purpose ?? {}).sort()];
  const ok = rows.every(([, terms]) => holds(terms, FIRST) && holds(terms, SECOND)) && !identities_broken?.length;
  const head = (names) => names.map(([name, operator]) => [h("th", { class: "num", scope: "col" }, name.replace("_", " ")), operator ? h("th", { class: "operator", "aria-hidden": "true" }, operator) : null]);
  const cells = (terms, names) => names.map(([name, operator]) => [
    h("td", { class: `num ${terms[name] ? "" : "zero"}` }, count(terms[name])), operator ? h("td", { class: "operator", "aria-hidden": "true" }, operator) : null]);
  const sign = (good) => h("td", { class: `sign ${good ? "yes" : "no"}` }, good ? "✓ holds" : "✗ broken");
  fill(root,
    h("h2", null, "Accounting", h("span", { class: `aside ${ok ? "yes" : "no"}` }, ok ? "✓ both identities hold, episode for episode" : "✗ an identity is broken")),
    h("div", { class: "scroll-x" }, h("table", { class: "identities" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "episodes"), head(FIRST), h("th", { scope: "col" }, ""), h("th", { class: "gap", "aria-hidden": "true" }), head(SECOND), h("th", { scope: "col" }, ""))),
      h("tbody", null, rows.map(([name, terms]) => h("tr", null,
        h("th", { scope: "row" }, name), cells(terms, FIRST), sign(holds(terms, FIRST)), h("td", { class: "gap" }), cells(terms, SECOND), sign(holds(terms, SECOND)))))),
    ),
    identities_broken?.length ? h("ul", { class: "broken" }, identities_broken.map((text) => h("li", null, foreign(text)))) : null);
}

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function drops(root, run) {
  const reasons = run.report.reasons ?? {};
  const rows = ["dropped", "dead", "discarded"].flatMap((kind) => Object.entries(reasons[kind] ?? {}).map(([reason, n]) => [kind, reason, n]));
  rows.sort((a, b) => b[2] - a[2]);
  const most = Math.max(1, ...rows.map((row) => row[2]));
  fill(root, h("h2", null, "Drops and discards", h("span", { class: "aside" }, "episodes, by reason")),
    rows.length ? h("table", { class: "bars" }, h("tbody", null, rows.map(([kind, reason, n]) => h("tr", null,
      h("td", null, kind), h("th", { scope: "row" }, h("a", { href: `${to(run.run, "episodes")}?reason=${encodeURIComponent(reason)}` }, foreign(reason.replaceAll("_", " ")))),
      h("td", { class: "bar-cell" }, h("span", { class: "bar", css: { width: `${(100 * n) / most}%` } })), h("td", { class: "num" }, count(n)))))) : h("p", { class: "faint" }, "none"),
    run.dead_letters ? h("p", { class: "warn-text" }, `▲ ${count(run.dead_letters)} refused messages: `, h("code", null, `asearch dead list ${run.run}`)) : null);
}
