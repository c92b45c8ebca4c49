/** The episodes of one task side by side: what each did, what it got, how it stood against the others. */

import { api, get } from "../modules/api.js";
import { fill, h } from "../modules/dom.js";
import { count, fixed } from "../modules/format.js";
import { advantageBar, correctMark, fateMark, rewardBar, stageMark, versionMark } from "../modules/marks.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";
import { parts } from "./story.js";

const AGAIN_MS = 2000;
const TOOLS = { search: "⌕", access: "⇲", answer: "✎" };

/** @param {any} page */
export async function show({ root, route, store, router, keys, signal }) {
  const path = api(route.run, "groups", route.group);
  let group = await get(path, signal);
  if (signal.aborted) return;
  let at = 0;
  const members = () => [...root.querySelectorAll(".member")];
  const draw = () => {
    const focused = root.contains(document.activeElement) ? document.activeElement.closest(".member")?.id : null;
    const scrolled = root.querySelector(".members-grid")?.scrollLeft ?? 0;
    fill(root, head(route.run, group), grid(route.run, group));
    root.querySelector(".members-grid").scrollLeft = scrolled;
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };
  draw();
  const move = (by) => {
    const all = members();
    at = Math.max(0, Math.min(all.length - 1, at + by));
    all[at]?.focus();
    all[at]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  let timer = 0;
  const refresh = async () => {
    timer = 0;
    try {
      const next = await get(path, signal);
      if (JSON.stringify(next) !== JSON.stringify(group)) {
        group = next;
        draw();
      }
    } catch {
      // With the next change of the rows.
    }
  };
  const settled = () => group.members.every((member) => member.row?.ended_ns > 0) && !group.members.some((member) => member.row?.fate === "queued");
  store.watchRows(() => {
    if (!timer && !settled()) timer = setTimeout(refresh, AGAIN_MS);
  }, signal);
  signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  const openMember = () => {
    const name = members()[at]?.dataset.name;
    if (name) router.go(to(route.run, "episodes", name));
  };
  keys.setView("Group", [
    { keys: ["j", "ArrowRight", "l"], does: "next episode", run: () => move(1) },
    { keys: ["k", "ArrowLeft", "h"], does: "previous episode", run: () => move(-1) },
    { keys: ["Enter", "o"], does: "open it", run: openMember },
    { keys: ["Escape", "u"], does: "back", run: () => router.back(to(route.run, "episodes")) },
  ]);
}

function head(run, group) {
  const rewards = group.members.map((member) => member.reward).filter((reward) => reward !== null && reward !== undefined);
  const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
  return h("header", { class: "episode-head group-head" },
    h("nav", { class: "crumbs", "aria-label": "Place" }, h("a", { href: to(run, "episodes") }, "episodes"), " / ", h("a", { href: `${to(run, "episodes")}?task=${encodeURIComponent(group.task)}` }, foreign(group.task)), " / ", h("b", null, foreign(group.group))),
    h("h1", { class: "question" }, foreign(group.question)),
    h("p", { class: "numbers" }, h("span", null, h("b", null, count(group.n_members ?? group.members.length)), " episodes"), h("span", null, "mean reward ", h("b", null, fixed(mean, 3))),
      h("span", null, "admitted at step ", h("b", null, count(group.progress))), group.fate ? h("span", null, fateMark(group.fate), group.step === null ? null : ` by step ${group.step}`, group.reason ? `: ${group.reason.replaceAll("_", " ")}` : "") : null),
    group.key ? h("div", { class: "key-box" }, h("span", { class: "key-label" }, "◆ answer key, not seen by the policy"), h("span", { class: "key-answers" }, group.key.answers.map((answer) => foreign(answer, "answer")))) : null);
}

function grid(run, group) {
  const most = Math.max(0.001, ...group.members.map((member) => Math.abs(member.advantage ?? 0)));
  return h("div", { class: "members-grid", tabindex: "0", role: "group", "aria-label": "Episodes of the group" }, group.members.map((member) => {
    const row = member.row ?? {};
    const href = to(run, "episodes", member.episode);
    return h("article", { class: "member", tabindex: "-1", id: `member-${member.member}`, data: { name: member.episode }, "aria-label": `Episode ${member.episode}` },
      h("header", null,
        h("div", { class: "member-name" }, h("a", { href }, foreign(member.episode)), stageMark(member.stage)),
        h("dl", { class: "facts" }, h("dt", null, "reward"), h("dd", null, rewardBar(member.reward)), h("dt", null, "advantage"), h("dd", null, advantageBar(member.advantage, most)),
          h("dt", null, "correct"), h("dd", null, correctMark(row.correct)), h("dt", null, "tokens"), h("dd", null, count(row.n_tokens), " ", versionMark(row.version ?? "")))),
      h("ol", { class: "member-turns" }, (member.turns ?? []).map((turn) => memberTurn(turn, href))),
      h("footer", null, row.answer === null || row.answer === undefined ? h("span", { class: "faint" }, row.ending || row.reason || "no answer yet") : ["answer ", foreign(row.answer, "answer")]));
  }));
}

function memberTurn(turn, href) {
  const action = turn.action ?? turn.tool;
  const thought = parts(turn.thought ?? "").filter((part) => part.sense === "thought").map((part) => part.text.trim()).filter(Boolean).join(" ");
  return h("li", null, h("a", { class: "turn-number", href: `${href}#turn-${turn.turn + 1}`, "aria-label": `turn ${turn.turn + 1}` }, String(turn.turn + 1)),
    h("div", null, thought ? h("p", { class: "thought" }, foreign(thought)) : null,
      action ? h("p", { class: `act act-${TOOLS[action] ? action : "other"}` }, h("span", { class: "glyph", title: action, "aria-label": action }, TOOLS[action] ?? "⚒"), " ", foreign(turn.argument ?? "")) : null,
      turn.error ? h("p", { class: "no" }, "✗ ", foreign(turn.error)) : turn.n_documents === undefined || turn.n_documents === null ? null : h("p", { class: "faint" }, `${count(turn.n_documents)} ${turn.n_documents === 1 ? "document" : "documents"}`)));
}
