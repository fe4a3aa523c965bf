/** Numbers, sizes and times, as people read them. */

const COUNT = new Intl.NumberFormat();
const SHORT = new Intl.NumberFormat(undefined, { notation: "compact", maximumSignificantDigits: 3 });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const UNKNOWN = "–";

export const count = (number) => (number === null || number === undefined ? UNKNOWN : COUNT.format(number));
export const short = (number) => SHORT.format(number);
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
export const percent = (share, digits = 0) => (Number.isFinite(share) ? `${(100 * share).toFixed(digits)} %` : UNKNOWN);

export function decimal(number, digits = 3) {
  return Number.isFinite(number)
    ? number
        .toPrecision(digits)
        .replace(/(\.\d*?)0+$/, "$1")
        .replace(/\.$/, "")
    : UNKNOWN;
}

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  for (; number >= 1000 && place < units.length - 1; place++) number /= 1000;
  return `${number.toFixed(number < 10 && place ? 1 : 0)} ${units[place]}`;
}

/** A duration in seconds. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return UNKNOWN;
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

/** A moment in Unix seconds. */
export const moment = (seconds) => (seconds ? MOMENT.format(new Date(1000 * seconds)) : UNKNOWN);

/** A moment on an axis that spans some seconds: no more of it than tells two apart. */
export function tick(seconds, span) {
  const style = span < 600 ? { timeStyle: "medium" } : span < 86400 ? { timeStyle: "short" } : { dateStyle: "medium" };
  return new Intl.DateTimeFormat(undefined, style).format(new Date(1000 * seconds));
}

/** How long ago a moment in Unix seconds was. */
export const ago = (seconds) => `${duration(Math.max(1, Date.now() / 1000 - seconds))} ago`;

/** The beginning of a text, on one line. */
export function excerpt(text, most = 90) {
  const line = (text ?? "").replaceAll(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** The median of some numbers. */
export function median(numbers) {
  const sorted = numbers.filter(Number.isFinite).sort((one, other) => one - other);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : NaN;
}

export const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

/** Entries of a list in groups, by what `of` says of each: a Map in the order of first appearance. */
export function groups(entries, of) {
  const found = new Map();
  for (const entry of entries) {
    const name = of(entry);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(entry);
  }
  return found;
}
