/** Parts of the run view: actors, queues, evaluation, the policy's timeline. */

import { fill, h } from "../modules/dom.js";
import { absolute, count, duration, fixed, percent, short, when } from "../modules/format.js";
import { versionMark } from "../modules/marks.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";

const STATES = { ready: "●", starting: "◌", draining: "◐", failed: "✖", silent: "▲" };

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function actorTable(root, run) {
  const live = run.state === "live";
  const rows = (run.actors ?? []).map((actor) => {
    const known = STATES[actor.state];
    return h("tr", null,
      h("th", { scope: "row" }, foreign(actor.id)),
      h("td", null, h("span", { class: `actor-state is-${known ? actor.state : "other"}` }, h("span", { "aria-hidden": "true" }, known ?? "?"), ` ${actor.state}`), actor.waiting_for ? [" ", h("span", { class: "faint" }, "waits for "), foreign(actor.waiting_for)] : null),
      h("td", null, versionMark(actor.version ?? "")),
      h("td", { class: "num" }, `${fixed(actor.age_s, 1)} s`),
      h("td", { class: "num" }, h("span", { class: "faint" }, String(actor.pid))),
      h("td", { class: "gauges" }, gauges(actor.gauges ?? {})));
  });
  fill(root, h("h2", null, "Actors", h("span", { class: "aside" }, live ? `${count(rows.length)} heard` : "none are heard: the run is not live")),
    rows.length ? h("div", { class: "scroll-x" }, h("table", { class: "actors" },
      h("thead", null, h("tr", null, ["actor", "state", "policy"].map((name) => h("th", { scope: "col" }, name)), h("th", { class: "num", scope: "col" }, "heard"), h("th", { class: "num", scope: "col" }, "pid"), h("th", { scope: "col" }, "gauges"))),
      h("tbody", null, rows))) : null);
}

const gaugeName = (name) => name.replaceAll("_", " ").replace(/^n /, "");

/** Those that are not zero; the others are named on hover. @param {Record<string, number>} all */
function gauges(all) {
  const zeros = Object.entries(all).filter(([, value]) => !value).map(([name]) => gaugeName(name));
  return [
    Object.entries(all).filter(([, value]) => value).map(([name, value]) => h("span", { class: "gauge" }, h("span", { class: "faint" }, gaugeName(name)), " ", h("b", null, short(value)))),
    zeros.length ? h("span", { class: "faint gauge", title: `0: ${zeros.join(", ")}` }, `${zeros.length} at 0`) : null,
  ];
}

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function queues(root, run) {
  const rows = Object.entries(run.queues ?? {}).sort().map(([name, queue]) => {
    const full = queue.max_ack_pending > 0 && queue.n_ack_pending >= queue.max_ack_pending;
    return h("tr", { class: full ? "full" : null },
      h("th", { scope: "row" }, name.replaceAll("_", " ")), h("td", { class: "num" }, count(queue.n_pending)),
      h("td", { class: "num" }, full ? "▲ " : "", count(queue.n_ack_pending), h("span", { class: "unit" }, queue.max_ack_pending > 0 ? ` of ${count(queue.max_ack_pending)}` : "")),
      h("td", { class: "num" }, count(queue.n_redelivered)));
  });
  const streams = Object.entries(run.streams ?? {}).map(([name, stream]) => h("tr", null, h("th", { scope: "row" }, name), h("td", { class: "num" }, count(stream.n_messages)),
    h("td", { class: "num" }, short((stream.n_bytes ?? 0) / 1e6), h("span", { class: "unit" }, " MB")), h("td", { class: "num" }, stream.max_bytes > 0 ? percent(stream.n_bytes / stream.max_bytes) : "–")));
  const head = (...names) => h("thead", null, h("tr", null, names.map((name, i) => h("th", { scope: "col", class: i ? "num" : null }, name))));
  fill(root, h("h2", null, "Queues and streams"),
    rows.length ? h("table", null, head("queue", "pending", "in work", "redelivered"), h("tbody", null, rows)) : h("p", { class: "faint" }, "no queue is heard"),
    streams.length ? h("table", null, head("stream", "messages", "size", "full"), h("tbody", null, streams)) : null);
}

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function evaluation(root, run) {
  const labels = Object.entries(run.report.eval ?? {});
  const rows = labels.flatMap(([label, result]) => [[label, result, true], ...Object.entries(result.by_hop ?? {}).map(([hop, part]) => [`${hop} hop${hop === "1" ? "" : "s"}`, part, false, label])]);
  fill(root, h("h2", null, "Evaluation", h("span", { class: "aside" }, "accuracy on held-out questions, 95 % interval")),
    rows.length ? h("table", { class: "evaluation" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, ""), h("th", { scope: "col", class: "ci-head" }, h("span", null, "0"), h("span", null, "1")), ["accuracy", "n", "searches", "reads", "tokens"].map((name) => h("th", { scope: "col", class: "num" }, name)))),
      h("tbody", null, rows.map(([name, result, top]) => h("tr", { class: top ? "top" : "part" },
        h("th", { scope: "row" }, top ? h("a", { href: `${to(run.run, "episodes")}?purpose=eval&label=${encodeURIComponent(name)}` }, foreign(name)) : name),
        h("td", null, ciBar(result)), h("td", { class: "num" }, fixed(result.accuracy, 2)), h("td", { class: "num" }, count(result.n)),
        h("td", { class: "num" }, short(result.searches_per_episode)), h("td", { class: "num" }, short(result.reads_per_episode)), h("td", { class: "num" }, short(result.tokens_per_episode)))))) : h("p", { class: "faint" }, "no evaluation yet"));
}

function ciBar(result) {
  const [low, high] = result.ci95 ?? [result.accuracy, result.accuracy];
  const at = (value) => `${(100 * Math.max(0, Math.min(1, value ?? 0))).toFixed(1)}%`;
  return h("span", { class: "ci", role: "img", title: `${fixed(result.accuracy, 3)} [${fixed(low, 3)}, ${fixed(high, 3)}]`, "aria-label": `accuracy ${fixed(result.accuracy, 2)}, 95 % interval ${fixed(low, 2)} to ${fixed(high, 2)}` },
    h("span", { class: "ci-range", css: { left: at(low), width: at(high - low) } }), h("span", { class: "ci-point", css: { left: at(result.accuracy) } }));
}

const MARKS = { claimed: ["▲", "claimed"], published: ["●", "published"], checkpoint: ["■", "checkpoint"] };

/** @param {HTMLElement} root @param {import("../modules/types.js").Run} run */
export function timeline(root, run) {
  const marks = run.timeline ?? [];
  const aside = h("span", { class: "aside" }, Object.entries(MARKS).map(([kind, [glyph, name]]) => [h("span", { class: `tl tl-${kind}`, "aria-hidden": "true" }, glyph), ` ${name}\u2003`]));
  if (!marks.length) return fill(root, h("h2", null, "Policy timeline"), h("p", { class: "faint" }, "no policy yet"));
  const first = marks[0].at_ns;
  const span = Math.max(1, marks.at(-1).at_ns - first);
  const kinds = ["claimed", "published", "checkpoint"];
  fill(root, h("h2", null, "Policy timeline", aside),
    h("div", { class: "timeline", role: "img", "aria-label": `${marks.length} events of the policy in ${duration(span / 1e9)}` },
      marks.map((mark) => h("span", {
        class: `tl tl-${kinds.includes(mark.kind) ? mark.kind : "other"}`,
        css: { left: `${(1 + (98 * (mark.at_ns - first)) / span).toFixed(2)}%`, top: `${4 + 18 * Math.max(0, kinds.indexOf(mark.kind))}px` },
        title: `${MARKS[mark.kind]?.[1] ?? mark.kind}: ${mark.version}, ${absolute(mark.at_ns)}`,
      }, MARKS[mark.kind]?.[0] ?? "?"))),
    h("div", { class: "timeline-ends" }, h("span", null, absolute(first)), h("span", null, duration(span / 1e9)), h("span", null, absolute(marks.at(-1).at_ns))),
    h("table", null, h("tbody", null, marks.slice(-5).reverse().map((mark) => h("tr", null,
      h("td", null, h("span", { class: `tl-${mark.kind}`, "aria-hidden": "true" }, MARKS[mark.kind]?.[0] ?? "?"), ` ${MARKS[mark.kind]?.[1] ?? mark.kind}`), h("td", null, versionMark(mark.version)), h("td", { class: "num" }, when(mark.at_ns)))))));
}
