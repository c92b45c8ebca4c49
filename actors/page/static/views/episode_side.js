/** Beside an episode: how it ended, its reward, its group, its times, where else it can be seen. */

import { h } from "../modules/dom.js";
import { count, duration, fixed, when } from "../modules/format.js";
import { advantageBar, correctMark, fateMark, rewardBar, stageMark, versionMark } from "../modules/marks.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";

const line = (name, ...value) => [h("dt", null, name), h("dd", null, value)];

/**
 * @param {string} run
 * @param {{row: any, group: any, trained: any, trace_id: string, story: import("./story.js").Story}} known
 */
export function side(run, { row, group, trained, trace_id, story }) {
  const outcome = story.outcome;
  return [
    h("section", { class: "side-part" }, h("h2", null, "Outcome"), verdict(outcome, story, row)),
    group?.members?.length ? groupPart(run, group, row) : null,
    h("section", { class: "side-part" }, h("h2", null, "Learning"), h("dl", { class: "facts" },
      line("fate", row?.fate ? [fateMark(row.fate), row.reason ? h("span", { class: "faint" }, ` ${row.reason.replaceAll("_", " ")}`) : null] : h("span", { class: "faint" }, "none yet")),
      row?.step === null || row?.step === undefined ? null : line("update of step", count(row.step)),
      trained ? line("advantage", advantageBar(trained.advantage, Math.max(1, Math.abs(trained.advantage ?? 0)))) : null,
      line("oldest tokens", versionMark(row?.version ?? "")),
      row ? line("admitted at", `step ${count(row.progress)}`) : null)),
    h("section", { class: "side-part" }, h("h2", null, "Times"), times(row, story)),
    h("section", { class: "side-part" }, h("h2", null, "Elsewhere"), elsewhere(run, row?.episode ?? "", trace_id)),
  ];
}

function verdict(outcome, story, row) {
  const dl = [];
  if (row) dl.push(line("stage", stageMark(row.stage)));
  if (outcome?.outcome === "graded") {
    dl.push(line("correct", correctMark(outcome.correct)), line("reward", rewardBar(outcome.reward)), line("ending", outcome.status));
  } else if (outcome) {
    dl.push(line(outcome.outcome, h("span", { class: "no" }, foreign(String(outcome.reason ?? "").replaceAll("_", " ")))));
    if (outcome.message) dl.push(line("why", foreign(outcome.message)));
  }
  const parts = outcome?.parts ?? [];
  return [
    h("dl", { class: "facts" }, dl),
    parts.length ? h("table", { class: "reward-parts" }, h("thead", null, h("tr", null, h("th", { scope: "col" }, "part"), h("th", { scope: "col", class: "num" }, "value"), h("th", { scope: "col", class: "num" }, "weight"))),
      h("tbody", null, parts.map((part) => h("tr", null, h("th", { scope: "row" }, foreign(part.name)), h("td", { class: "num" }, fixed(part.value, 3)), h("td", { class: "num" }, fixed(part.weight, 2)))))) : null,
    !outcome && story.finished ? h("p", { class: "faint" }, "finished; waits for its grade") : null,
  ];
}

function groupPart(run, group, row) {
  const most = Math.max(0.001, ...group.members.map((member) => Math.abs(member.advantage ?? 0)));
  return h("section", { class: "side-part" }, h("h2", null, "Group ", h("a", { href: to(run, "groups", group.group) }, foreign(group.group))),
    h("table", { class: "members" }, h("tbody", null, group.members.map((member) => h("tr", { class: member.episode === row?.episode ? "here" : null },
      h("th", { scope: "row" }, h("a", { href: to(run, "episodes", member.episode), "aria-current": member.episode === row?.episode ? "true" : null }, String(member.member))),
      h("td", null, rewardBar(member.reward)), h("td", null, advantageBar(member.advantage, most)), h("td", null, h("span", { class: "just-glyph" }, stageMark(member.stage))))))));
}

function times(row, story) {
  const turns = story.inOrder;
  const writes = turns.reduce((sum, turn) => sum + turn.generations.reduce((s, each) => s + (each.elapsed_ns ?? 0), 0), 0) / 1e9;
  const works = turns.reduce((sum, turn) => sum + turn.calls.reduce((s, call) => s + (call.returned?.elapsed_ns ?? 0), 0), 0) / 1e9;
  const waited = row && story.began_ns ? (story.began_ns - row.requested_ns) / 1e9 : null;
  return h("dl", { class: "facts" },
    row ? line("requested", when(row.requested_ns)) : null,
    line("waited", duration(waited)),
    line("generating", duration(writes)), line("tools", duration(works)),
    line("in all", duration(row?.elapsed_s ?? (story.finished ? story.finished.elapsed_ns / 1e9 : null))),
    story.takes.map((taken, i) => line(i ? `driver ${i + 1}` : "driver", foreign(taken.driver), taken.attempt ? h("span", { class: "faint" }, ` attempt ${taken.attempt + 1}`) : null)),
    story.deadline ? line("deadline", h("span", { class: "warn-text" }, "▲ neared"), " ", when(story.deadline.at_ns)) : null);
}

function elsewhere(run, episode, trace_id) {
  return [
    h("p", null, h("a", { href: to(run, "episodes", episode, "tokens") }, "token by token"), " ", h("kbd", null, "t")),
    h("p", null, h("a", { href: `/api${to(run, "export", `${episode}.html`)}`, download: true }, "as one HTML file")),
    h("p", { class: "command" }, h("code", null, `asearch show ${episode}`)),
    trace_id ? h("p", { class: "command" }, h("span", { class: "faint" }, "trace "), h("code", null, trace_id)) : null,
  ];
}
