/** An episode token by token: what was trained, how sure the policy was at rollout and at training, and by which version. */

import { api, get } from "../modules/api.js";
import { fill, h } from "../modules/dom.js";
import { count, fixed, known, NOTHING, signed } from "../modules/format.js";
import { versionMark } from "../modules/marks.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";
import { legend, MODES, scaleOf } from "./token_paint.js";
import { SegmentView } from "./token_segment.js";

/** @param {any} page */
export async function show({ root, route, router, keys, signal }) {
  const path = to(route.run, "episodes", route.episode);
  const data = await get(api(route.run, "episodes", route.episode, "tokens"), signal);
  if (signal.aborted) return;
  const mode = () => MODES.find(([name]) => name === new URLSearchParams(location.search).get("by")) ?? MODES[0];
  const inspector = h("div", { class: "inspector", role: "status", "aria-live": "polite" });
  const key = h("div", { class: "legend" });
  const segments = data.segments.map((segment, i) => new SegmentView(segment, i, (token) => inspect(inspector, token, data.advantage), signal));
  const buttons = MODES.map(([name, text, title], i) => h("button", { type: "button", class: "choice", title: `${title} (${i + 1})`, data: { mode: name }, on: { click: () => choose(name) } }, text));
  const choose = (name) => {
    router.amend(name === MODES[0][0] ? `${path}/tokens` : `${path}/tokens?by=${name}`);
    paint();
  };
  const paint = () => {
    const [name] = mode();
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.mode === name));
    const scale = scaleOf(name, data.segments);
    for (const segment of segments) segment.paint(scale);
    fill(key, legend(name, scale, data.segments));
  };
  inspect(inspector, null, data.advantage);
  const own = data.segments.reduce((sum, each) => sum + each.mask.reduce((s, bit) => s + bit, 0), 0);
  const all = data.segments.reduce((sum, each) => sum + each.ids.length, 0);
  fill(root,
    h("div", { class: "token-head" },
      h("nav", { class: "crumbs", "aria-label": "Place" }, h("a", { href: to(route.run, "episodes") }, "episodes"), " / ", h("a", { href: path }, foreign(route.episode)), " / ", h("b", null, "tokens")),
      h("p", { class: "numbers" }, h("span", null, h("b", null, count(data.segments.length)), data.segments.length === 1 ? " segment" : " segments"), h("span", null, h("b", null, count(all)), " tokens"), h("span", null, h("b", null, count(own)), " of the policy"),
        known(data.advantage) ? h("span", null, "advantage ", h("b", null, signed(data.advantage, 4))) : null),
      data.note ? h("p", { class: "faint" }, foreign(data.note)) : null,
      h("div", { class: "choices", role: "group", "aria-label": "Colour tokens by" }, buttons), key, inspector),
    segments.map((segment) => segment.element));
  paint();

  let at = 0;
  const move = (by) => {
    at = Math.max(0, Math.min(segments.length - 1, at + by));
    segments[at]?.element.scrollIntoView({ block: "start" });
    segments[at]?.element.focus({ preventScroll: true });
  };
  const step = (by) => {
    const segment = segments.find((each) => each.element.contains(document.activeElement)) ?? segments[at];
    segment?.step(by);
  };
  keys.setView("Tokens", [
    ...MODES.map(([name, , title], i) => ({ keys: [String(i + 1)], does: `colour by ${title}`, run: () => choose(name) })),
    { keys: ["j"], does: "next segment", run: () => move(1) },
    { keys: ["k"], does: "previous segment", run: () => move(-1) },
    { keys: ["ArrowRight", "l"], does: "next token", run: () => step(1) },
    { keys: ["ArrowLeft", "h"], does: "previous token", run: () => step(-1) },
    { keys: ["t", "Escape", "u"], does: "back to the episode", run: () => router.back(path) },
  ]);
}

/** All that is known of a token. */
function inspect(root, token, advantage) {
  const cell = (name, ...value) => h("span", { class: "fact" }, h("span", { class: "faint" }, name), " ", h("b", { class: "num" }, value));
  if (!token) return fill(root, h("span", { class: "faint" }, "point at a token, or walk with ← →"));
  const { segment, index } = token;
  const before = segment.logprobs[index];
  const after = segment.train_logprobs?.[index] ?? null;
  const difference = known(before) && known(after) ? after - before : null;
  const origin = segment.origins.find((run) => index >= run.start && index < run.end)?.origin ?? "";
  const version = segment.versions.find((run) => index >= run.start && index < run.end)?.version ?? "";
  fill(root, h("code", { class: "token-text" }, foreign(JSON.stringify(segment.tokens[index]).slice(1, -1))),
    cell("position", count(index)), cell("id", String(segment.ids[index])), cell("origin", origin),
    cell("mask", String(segment.mask[index])),
    cell("log-prob at rollout", fixed(before, 4), known(before) ? h("span", { class: "unit" }, ` p ${fixed(Math.exp(before), 3)}`) : null),
    cell("at training", fixed(after, 4)), cell("difference", difference === null ? NOTHING : signed(difference, 5)),
    cell("ratio", difference === null ? NOTHING : fixed(Math.exp(difference), 4)),
    cell("advantage", known(advantage) && segment.mask[index] ? signed(advantage, 4) : NOTHING), cell("policy", version ? versionMark(version) : NOTHING));
}
