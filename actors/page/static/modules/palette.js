/** Colours that differ for every eye (Okabe–Ito), and the marks that go with them, so that colour is never the only sign. */

/** Of runs and series, in order; `--c0` to `--c6` in the style sheet. */
export const N_COLOURS = 7;
/** @param {number} number */
export const colourName = (number) => `--c${((number % N_COLOURS) + N_COLOURS) % N_COLOURS}`;

/** Of stages: mark and name. */
export const STAGES = {
  waiting: ["○", "waiting"],
  generating: ["◔", "generating"],
  tool: ["◑", "tool"],
  grading: ["◕", "grading"],
  graded: ["●", "graded"],
  dropped: ["✕", "dropped"],
  dead: ["✖", "dead"],
};
export const FATES = { queued: ["◷", "queued"], counted: ["✓", "counted"], discarded: ["⊘", "discarded"] };

/** A stable colour for a policy version. @param {string} version */
export function versionColour(version) {
  const step = Number(String(version).split(".").at(-1));
  const lineage = Number(String(version).split(".")[0]) || 0;
  return (Number.isFinite(step) ? step : 0) + 3 * lineage;
}
