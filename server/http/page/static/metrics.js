/** The server's metrics, read from Prometheus' text, and what they say between two readings. */

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** One reading of `/metrics`. */
export class Reading {
  constructor(text) {
    this.at = Date.now() / 1000;
    this.samples = new Map();
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (!found) continue;
      const [, name, labels, value] = found;
      if (!this.samples.has(name)) this.samples.set(name, []);
      const named = Object.fromEntries([...(labels ?? "").matchAll(LABEL)].map(([, label, text]) => [label, text]));
      this.samples.get(name).push({ labels: named, value: Number(value) });
    }
  }

  /** The samples of a metric whose labels have these values. */
  of(name, labels = {}) {
    const all = this.samples.get(`graftwork_${name}`) ?? [];
    return all.filter((sample) => Object.entries(labels).every(([label, value]) => sample.labels[label] === value));
  }

  /** Their sum; 0 if there are none. */
  sum(name, labels = {}) {
    return this.of(name, labels).reduce((sum, { value }) => sum + value, 0);
  }
}

/** What was counted since an earlier reading; since the server's start without one, or when it began anew. */
export function since(before, now, name, labels) {
  const [total, earlier] = [now.sum(name, labels), before?.sum(name, labels) ?? 0];
  return total >= earlier ? total - earlier : total;
}

/**
 * A quantile of a histogram between two readings, in the histogram's unit, interpolated within a bucket as Prometheus
 * does it. NaN if nothing was observed.
 */
export function quantile(before, now, name, share) {
  const buckets = now.of(`${name}_bucket`).map(({ labels: { le } }) => ({
    upper: Number(le.replace("+Inf", "Infinity")),
    below: since(before, now, `${name}_bucket`, { le }),
  }));
  const total = buckets.at(-1)?.below ?? 0;
  const place = buckets.findIndex(({ below }) => below >= share * total);
  if (!total) return NaN;
  const { below: earlier, upper: lower } = buckets[place - 1] ?? { below: 0, upper: 0 };
  const { below, upper } = buckets[place];
  return Number.isFinite(upper)
    ? lower + ((upper - lower) * (share * total - earlier)) / (below - earlier || 1)
    : lower;
}
