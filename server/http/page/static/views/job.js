/** One training job: its curves while it runs, what it was given, what became of it. */

import { ApiError, call, get, list, path } from "../api.js";
import { lines } from "../chart.js";
import { confirm } from "../dialog.js";
import { button, code, facts, heading, link, make, nothing, pill, section, tableOr } from "../dom.js";
import { count, decimal, duration, moment } from "../format.js";
import { judgement } from "./gates.js";
import { ENDS } from "./learning.js";

export const title = "Job";

const MOST_EVENTS = 500;

/** Measurements that share a chart, by their names in events. */
const CURVES = {
  Loss: { train_loss: "training", valid_loss: "held out" },
  Reward: { train_reward_mean: "training", valid_reward_mean: "held out" },
  Accuracy: { train_mean_token_accuracy: "training", valid_mean_token_accuracy: "held out" },
};

const EVENTS = [
  ["when", ({ created_at }) => moment(created_at)],
  ["", ({ level }) => (level === "info" ? null : pill(level, "middling"))],
  ["what", "text", ({ message }) => message],
];

export async function load({ names: [id] }) {
  const [job, events] = await Promise.all([
    get(path("/v1/fine_tuning/jobs", id)),
    list(path("/v1/fine_tuning/jobs", id, "events"), { most: MOST_EVENTS }),
  ]);
  return { job, events: events.data, metadata: job.fine_tuned_model ? await metadataOf(job.fine_tuned_model) : {} };
}

/** The metadata of a version. */
async function metadataOf(id) {
  try {
    const { versions } = await get(path("/v1/adapters", id.split("@")[0]));
    return versions.find((version) => version.id === id).metadata;
  } catch (error) {
    if (error instanceof ApiError) return {};
    throw error;
  }
}

export function show({ job, events, metadata }, context) {
  const { id, status, error, model, fine_tuned_model, graftwork } = job;
  const ask = `#/playground?left=${graftwork.parent ?? model}&right=${fine_tuned_model}`;
  const actions = [
    fine_tuned_model && make("a", { href: ask }, "Ask before and after"),
    status in ENDS ? null : button("Cancel…", () => cancel(job, context)),
  ];
  const said = events.filter(({ type }) => type === "message");
  return [
    heading(id, { under: ["/learning", "Learning"], actions }, pill(status, ENDS[status] ?? "middling")),
    error ? make("p.bad", { role: "alert" }, error.message) : null,
    curves(events),
    make("div.columns", {}, about(job), gates(metadata)),
    section("Events", {}, tableOr("None yet.", "Events", EVENTS, said)),
  ];
}

function curves(events) {
  const measured = events.filter(({ type }) => type === "metrics").toReversed();
  const pointsOf = (name) =>
    measured.filter(({ data }) => Number.isFinite(data[name])).map(({ data }) => ({ x: data.step, y: data[name] }));
  const charts = Object.entries(CURVES).map(([title, names]) => {
    const series = Object.entries(names).map(([of, name]) => ({ name, points: pointsOf(of) }));
    const drawn = series.filter(({ points }) => points.length);
    if (!drawn.length) return null;
    return section(title, {}, lines(`${title} by step`, drawn, { showX: (step) => `step ${Math.round(step)}` }));
  }).filter(Boolean);
  return charts.length ? make("div.columns", {}, charts) : section("Curves", {}, nothing("Nothing measured yet."));
}

function about({ status, model, fine_tuned_model, training_file, hyperparameters, graftwork, ...job }) {
  const { adapter, parent, method, progress, created_by, attempts } = graftwork;
  return section("What it is", {},
    facts({
      adapter: link(`/adapters/${adapter}`, adapter),
      method,
      "begins with": code(parent ?? model),
      made: fine_tuned_model && code(fine_tuned_model),
      data: code(training_file),
      progress: progress.total ? `step ${count(progress.step)} of ${count(progress.total)}` : progress.phase,
      "time left": progress.eta_seconds && !(status in ENDS) ? duration(progress.eta_seconds) : null,
      "trained tokens": job.trained_tokens && count(job.trained_tokens),
      submitted: `${moment(job.created_at)}, by ${created_by}`,
      finished: job.finished_at && moment(job.finished_at),
      attempts: attempts > 1 ? attempts : null,
    }),
    make("details", {}, make("summary", {}, "Hyperparameters"), facts(flat(hyperparameters))));
}

/** What the gates said of the version that was made, and how it was measured. */
function gates({ gates, evaluation }) {
  if (!gates && !evaluation) return section("Gates", {}, nothing("No version was held against gates."));
  return section("Gates", {},
    gates ? judgement(gates) : null,
    evaluation ? make("details", {}, make("summary", {}, "Measurements"), facts(flat(evaluation))) : null);
}

/** Nested JSON as names and values: `{"a": {"b": 1}}` is `a b: 1`. */
function flat(value, name = "") {
  if (typeof value === "number") return { [name]: decimal(value, 4) };
  if (value === null || typeof value !== "object") return { [name]: String(value) };
  const parts = Object.entries(value).map(([key, inner]) => flat(inner, `${name} ${key.replaceAll("_", " ")}`.trim()));
  return Object.assign({}, ...parts);
}

async function cancel({ id, graftwork }, context) {
  const done = await confirm({
    title: `Cancel ${id}?`,
    consequences: [`Its training run of ${graftwork.adapter} ends, and no version comes of it.`],
    verb: "Cancel the job",
    danger: true,
  }, () => call("POST", path("/v1/fine_tuning/jobs", id, "cancel")));
  if (done) await context.refresh();
}
