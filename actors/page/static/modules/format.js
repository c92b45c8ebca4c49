/** Numbers, times and durations as a reader wants them. Nothing known is `–`. */

import { h } from "./dom.js";

export const NOTHING = "–";
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** @param {unknown} value */
export const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A whole number with separators. @param {number | null | undefined} value */
export const count = (value) => (known(value) ? whole.format(value) : NOTHING);

/** A number in few characters: 1,234 · 12.3k · 4.5M. @param {number | null | undefined} value */
export function short(value) {
  if (!known(value)) return NOTHING;
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(1)}G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  if (size >= 100 || Number.isInteger(value)) return whole.format(value);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.01 || size === 0) return value.toFixed(2);
  return value.toPrecision(2);
}

/** @param {number | null | undefined} value @param {number} [digits] */
export const fixed = (value, digits = 2) => (known(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1") : NOTHING);

/** With its sign, as differences have. @param {number | null | undefined} value @param {number} [digits] */
export const signed = (value, digits = 2) => (known(value) ? `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(value).toFixed(digits)}` : NOTHING);

/** A share of one, in per cent. @param {number | null | undefined} value */
export const percent = (value) => (known(value) ? `${(100 * value).toFixed(Math.abs(value) < 0.1 && value !== 0 ? 1 : 0)} %` : NOTHING);

/** A duration in seconds: 4.2 ms · 1.3 s · 2 m 05 s · 3 h 12 m. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds === 0) return "0 s";
  if (seconds < 0.9995) return `${(seconds * 1e3).toFixed(seconds < 0.0095 ? 1 : 0)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} m ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, "0")} m` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @param {number | null | undefined} ns */
export const seconds = (ns) => (known(ns) ? ns / 1e9 : null);

/** The local time of day, with milliseconds if wanted. @param {number} ns @param {boolean} [fine] */
export function clock(ns, fine = false) {
  const at = new Date(ns / 1e6);
  const two = (n) => String(n).padStart(2, "0");
  const text = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return fine ? `${text}.${String(at.getMilliseconds()).padStart(3, "0")}` : text;
}

/** Date and time of day. @param {number} ns */
export function absolute(ns) {
  const at = new Date(ns / 1e6);
  const two = (n) => String(n).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(ns)}`;
}

/** How long ago. @param {number} ns @param {number} [nowMs] */
export function ago(ns, nowMs = Date.now()) {
  const past = Math.max(0, nowMs / 1e3 - ns / 1e9);
  if (past < 1.5) return "now";
  if (past < 60) return `${Math.floor(past)} s ago`;
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 172_800) return `${Math.floor(past / 3600)} h ago`;
  return `${Math.floor(past / 86_400)} d ago`;
}

/** A time: how long ago, the clock on hover; `tick` keeps it true. @param {number | null | undefined} ns */
export function when(ns) {
  if (!known(ns) || ns < 1e15) return h("span", { class: "faint" }, NOTHING);
  return h("time", { datetime: new Date(ns / 1e6).toISOString(), title: absolute(ns), data: { ns } }, ago(ns));
}

/** Renew the relative times of the document. */
export function tick() {
  for (const element of document.querySelectorAll("time[data-ns]")) {
    const text = ago(Number(element.dataset.ns));
    if (element.textContent !== text) element.textContent = text;
  }
}
