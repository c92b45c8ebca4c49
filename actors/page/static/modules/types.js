/**
 * What the viewer sends, by its names. Times `_ns` are nanoseconds since the epoch, durations `_s` seconds.
 *
 * @typedef {{run: string, state: "live" | "ended" | "crashed" | "preparing", ended: any, now_ns: number, phase: string,
 *   started_ns: number | null, report: any, planned_steps: number | null, actors: Actor[],
 *   queues: Record<string, {n_pending: number, n_ack_pending: number, max_ack_pending: number, n_redelivered: number}>,
 *   rates: Record<string, number | null>, ages: {open_s: number | null, queued_s: number | null}, cost: Record<string, number | null>,
 *   broker: {connected: boolean, trouble: string | null}, timeline: {kind: string, version: string, at_ns: number}[],
 *   dead_letters: number, streams?: Record<string, any>, n_episodes?: number}} Run
 *
 * @typedef {{id: string, kind: string, state: string, waiting_for: string, version: string | null, pid: number, age_s: number,
 *   gauges: Record<string, number>}} Actor
 *
 * @typedef {{episode: string, group: string, member: number, purpose: string, label: string, task: string, question: string,
 *   hops: string, stage: string, ending: string, reason: string, reward: number | null, correct: boolean | null, answer: string | null,
 *   n_turns: number, n_searches: number, n_reads: number, n_tokens: number, version: string, elapsed_s: number | null, fate: string,
 *   step: number | null, requested_ns: number, ended_ns: number, attempt: number, driver: string, progress: number}} EpisodeRow
 *
 * @typedef {{id: string, kind: string, sequence?: number, at_ns?: number, turn?: number} & Record<string, any>} Item
 *
 * @typedef {{id: string, n_prompt: number, first_turn: number, last_turn: number, parent: string | null, tokens: string[], ids: number[],
 *   mask: number[], origins: {origin: string, start: number, end: number}[], versions: {version: string, start: number, end: number}[],
 *   logprobs: (number | null)[], train_logprobs: (number | null)[] | null}} TokenSegment
 */
export {};
