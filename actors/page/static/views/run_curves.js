/** The curves of a run, with those of other runs over them. */

import { api, get } from "../modules/api.js";
import { Chart } from "../modules/charts.js";
import { fill, h } from "../modules/dom.js";
import { duration, known, percent } from "../modules/format.js";
import { colourName } from "../modules/palette.js";

const SAMPLE_MS = 2000;
const DASHES = [undefined, [5, 4], [2, 3], [8, 3, 2, 3]];
const metric = (name) => (point) => point.metrics?.[name] ?? null;
const share = (a, b) => (known(a) && known(b) && b > 0 ? a / b : null);

/** What is drawn over steps: [label, value of a point] each. */
const STEP_CHARTS = [
  { title: "Reward", unit: "mean of a step", lines: [["reward", (p) => p.reward]], about: "Mean reward of the graded episodes that a step closed over" },
  { title: "Accuracy", unit: "share correct", max: 1, min: 0, lines: [["accuracy", (p) => p.accuracy]], format: percent },
  { title: "Tool calls", unit: "per episode", min: 0, lines: [["searches", (p) => p.searches_per_episode], ["reads", (p) => p.reads_per_episode]] },
  { title: "Turns", unit: "per episode", min: 0, lines: [["turns", (p) => p.turns_per_episode]] },
  { title: "Tokens", unit: "per episode", min: 0, lines: [["tokens", (p) => p.tokens_per_episode]] },
  { title: "Staleness", unit: "policy steps", min: 0, eta: true, lines: [["max", (p) => (p.empty ? null : p.staleness_max)], ["mean", (p) => p.staleness_mean]],
    about: "Steps between the version that sampled a token and the update that trained it; never above η" },
  { title: "Trainer", unit: "seconds of a step", min: 0, lines: [["trains", (p) => p.train_s], ["idle", (p) => p.idle_s]], format: duration },
  { title: "Trainer idle", unit: "share of a step", min: 0, max: 1, lines: [["idle", (p) => share(p.idle_s, p.span_s)]], format: percent },
  { title: "Entropy", unit: "nats a token", min: 0, lines: [["entropy", metric("entropy")]], about: "Entropy of the policy at the tokens that were trained" },
  { title: "Engine and trainer", unit: "nats", min: 0,
    lines: [["mean distance", metric("logprob_difference")], ["largest", metric("logprob_difference_max")], ["KL", metric("kl_k3")], ["KL of reference", metric("kl_reference")]],
    about: "How far a token's log-probability as the engine said it is from the trainer's before the update; staleness counts as well" },
  { title: "Tokens without effect", unit: "share of a step", min: 0, max: 1,
    lines: [["clipped", metric("clip_fraction")], ["capped", metric("behaviour_capped_fraction")], ["rejected", metric("rejected_fraction")], ["stale", metric("masked_stale_fraction")]],
    format: percent, about: "Clipped by the objective, above the cap of the behaviour weight, rejected by their ratio, or older than η" },
  { title: "Tokens of a step", unit: "tokens", min: 0, lines: [["trained", (p) => p.tokens_trained], ["masked stale", (p) => p.tokens_masked_stale], ["discarded", (p) => p.tokens_discarded]] },
  { title: "Cost", unit: "tokens per correct answer", min: 0, lines: [["tokens", (p) => (p.accuracy > 0 ? p.tokens_per_episode / p.accuracy : null)]],
    about: "Generated tokens of a step divided by its correct answers" },
];

/** What is drawn over minutes since the start. */
const TIME_CHARTS = [
  { title: "Throughput", unit: "tokens/s", min: 0, lines: [["engine", (s) => s.engine_tokens_per_s], ["trainer", (s) => s.trainer_tokens_per_s]] },
  { title: "Episodes", unit: "ended/s", min: 0, lines: [["episodes", (s) => s.episodes_per_s]] },
  { title: "Queue ages", unit: "oldest, seconds", min: 0, lines: [["open", (s) => s.open_s], ["graded, not trained", (s) => s.queued_s]], format: duration },
  { title: "In flight", unit: "episodes", min: 0, lines: [["in flight", (s) => s.in_flight]] },
  { title: "Queues", unit: "messages", min: 0, many: (s) => s.queues },
  { title: "Drops by reason", unit: "episodes so far", min: 0, many: (s) => s.dropped },
  { title: "Tool latency", unit: "mean seconds a call", min: 0, lines: [["call", (s) => s.tool_call_s]], format: duration },
  { title: "Tool calls", unit: "per second", min: 0, lines: [["calls", (s) => s.tool_calls_per_s], ["errors", (s) => s.tool_errors_per_s]] },
];

export class Curves {
  /** @param {import("../modules/runstore.js").RunStore} store @param {AbortSignal} signal */
  constructor(store, signal) {
    this.store = store;
    this.signal = signal;
    this.runs = [store.run];
    /** @type {Map<string, {points: any[], samples: any[], started: number}>} */
    this.held = new Map();
    this.stepCharts = STEP_CHARTS.map((spec) => [spec, new Chart({ ...spec, xLabel: "step", sync: "steps" }, signal)]);
    this.timeCharts = TIME_CHARTS.map((spec) => [spec, new Chart({ ...spec, xLabel: "minute", sync: "minutes" }, signal)]);
    this.metric = h("select", { "aria-label": "Number of the trainer", on: { change: () => this.#drawMetric() } });
    this.metricChart = new Chart({ title: "Trainer's numbers", unit: "", xLabel: "step", sync: "steps" }, signal);
    this.metricChart.element.querySelector("figcaption").append(this.metric);
    this.flow = h("div", { class: "charts" }, this.timeCharts.map(([, chart]) => chart.element));
    this.noFlow = h("p", { class: "faint", hidden: true }, "Nothing was sampled: the viewer did not run beside this run.");
    this.element = h("section", { class: "curves", "aria-label": "Curves" },
      h("h2", null, "Learning", h("span", { class: "aside" }, "by step; drag to zoom, double-click to see all")),
      h("div", { class: "charts" }, this.stepCharts.map(([, chart]) => chart.element), this.metricChart.element),
      h("h2", null, "Flow", h("span", { class: "aside" }, "by minutes since the run began")), this.noFlow, this.flow);
    this.timer = setInterval(() => void this.update(), SAMPLE_MS);
    signal.addEventListener("abort", () => clearInterval(this.timer), { once: true });
  }

  /** @param {string[]} runs the first is that of the page */
  async choose(runs) {
    this.runs = runs;
    await this.update();
  }

  /** Fetch what is new and draw it. */
  async update() {
    if (this.busy || document.hidden) return;
    this.busy = true;
    try {
      const changed = await Promise.all(this.runs.map((run) => this.#fetch(run)));
      if (changed.some(Boolean) || this.drawnRuns !== this.runs.join()) this.#draw();
    } catch {
      // The banner says that the viewer is gone; the next round asks again.
    } finally {
      this.busy = false;
    }
  }

  async #fetch(run) {
    let held = this.held.get(run);
    if (!held) {
      held = { points: [], samples: [], started: 0 };
      this.held.set(run, held);
    } else if (run !== this.store.run ? held.complete : !this.store.isLive && held.complete) return false;
    const [curve, samples, state] = await Promise.all([
      get(`${api(run, "curve")}?after=${held.points.at(-1)?.step ?? -1}`, this.signal),
      get(`${api(run, "samples")}?after_ns=${held.lastNs ?? 0}`, this.signal),
      run === this.store.run ? this.store.data : get(api(run), this.signal),
    ]);
    held.points.push(...curve.points);
    held.samples.push(...samples.samples);
    if (samples.samples.length) held.lastNs = String(samples.samples.at(-1).at_ns);
    held.started = state?.started_ns ?? held.samples[0]?.at_ns ?? 0;
    held.eta = state?.report?.eta;
    held.complete = state !== null && state.state !== "live";
    return curve.points.length + samples.samples.length > 0;
  }

  #draw() {
    this.drawnRuns = this.runs.join();
    const first = this.held.get(this.runs[0]);
    for (const [spec, chart] of this.stepCharts) {
      if (spec.eta) chart.spec.line = known(first?.eta) ? { label: `η = ${first.eta}`, at: first.eta } : null;
      chart.show(this.#series(spec.lines, (held) => held.points, (held) => held.xSteps));
    }
    for (const [spec, chart] of this.timeCharts) {
      chart.show(this.#series(spec.lines ?? this.#named(spec.many), (held) => held.samples, (held) => held.xMinutes));
    }
    const sampled = this.runs.some((run) => this.held.get(run)?.samples.length);
    this.flow.hidden = !sampled && !this.store.isLive;
    this.noFlow.hidden = !this.flow.hidden;
    this.#offerMetrics();
    this.#drawMetric();
  }

  /** The names that samples have, as lines. */
  #named(of) {
    const names = new Set(this.runs.flatMap((run) => this.held.get(run)?.samples.flatMap((sample) => Object.keys(of(sample) ?? {})) ?? []));
    return [...names].sort().slice(0, 7).map((name) => [name, (sample) => of(sample)?.[name] ?? null]);
  }

  /** Of one run a line has a colour of its own; of several, each run has one colour and lines differ in dashes. */
  #series(lines, rows, xs) {
    const many = this.runs.length > 1;
    return this.runs.flatMap((run, r) => {
      const held = this.held.get(run);
      if (!held) return [];
      held.xSteps = held.points.map((point) => point.step);
      held.xMinutes = held.samples.map((sample) => Math.max(0, (sample.at_ns - held.started) / 6e10));
      return lines.map(([label, value], i) => ({
        label: many ? (lines.length > 1 ? `${run} ${label}` : run) : label,
        colour: colourName(many ? r : i),
        dash: DASHES[many ? i % DASHES.length : i ? 1 : 0],
        x: xs(held),
        y: rows(held).map(value),
      }));
    });
  }

  #offerMetrics() {
    const names = [...new Set([...this.held.values()].flatMap((held) => held.points.flatMap((point) => Object.keys(point.metrics ?? {}))))].sort();
    if (names.join() === this.offered) return;
    this.offered = names.join();
    const chosen = this.metric.value || ["loss", "grad_norm"].find((name) => names.includes(name)) || names[0];
    fill(this.metric, names.map((name) => h("option", { value: name, selected: name === chosen }, name.replaceAll("_", " "))));
  }

  #drawMetric() {
    const name = this.metric.value;
    this.metricChart.show(name ? this.#series([[name.replaceAll("_", " "), metric(name)]], (held) => held.points, (held) => held.xSteps) : []);
  }
}
