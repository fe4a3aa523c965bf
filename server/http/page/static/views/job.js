/** One training job: its curves while it runs, what it was given, what became of it. */

import { ApiError, call, get, list, path } from "../api.js";
import { lines } from "../chart.js";
import { confirm } from "../dialog.js";
import { button, code, facts, link, make, nothing, pill, section, soft, table } from "../dom.js";
import { count, decimal, duration, moment } from "../format.js";
import { STATUSES } from "./learning.js";

export const title = "Job";

const EVENTS = 500;

/** Measurements that share a chart, by their names in events. */
const CURVES = {
  Loss: { train_loss: "training", valid_loss: "held out" },
  Reward: { train_reward_mean: "training", valid_reward_mean: "held out" },
  Accuracy: { train_mean_token_accuracy: "training", valid_mean_token_accuracy: "held out" },
};

export async function load({ names: [id] }) {
  const [job, events] = await Promise.all([
    get(path("/v1/fine_tuning/jobs", id)),
    list(path("/v1/fine_tuning/jobs", id, "events"), { most: EVENTS }),
  ]);
  const [name, number] = (job.fine_tuned_model ?? "").split("@");
  const version = number ? await versionOf(name, Number(number)) : null;
  return { job, events, version };
}

async function versionOf(name, number) {
  try {
    return (await get(path("/v1/adapters", name))).versions.find(({ version }) => version === number) ?? null;
  } catch (error) {
    if (error instanceof ApiError) return null;
    throw error;
  }
}

export function show({ job, events, version }, context) {
  const {
    id,
    status,
    error,
    fine_tuned_model,
    hyperparameters,
    graftwork: { adapter, parent, method, progress, created_by, attempts },
  } = job;
  const isOpen = !STATUSES[status];
  const said = events.data.filter(({ type }) => type === "message");
  return [
    make(
      "div.head",
      {},
      soft(link("/learning", "Learning"), " /"),
      make("h1", {}, id),
      pill(status, STATUSES[status] ?? "middling"),
      make(
        "div.actions",
        {},
        fine_tuned_model
          ? make(
              "a",
              { href: `#/playground?left=${parent ?? job.model}&right=${fine_tuned_model}` },
              "Ask before and after",
            )
          : null,
        isOpen ? button("Cancel…", () => cancel(job, context)) : null,
      ),
    ),
    error ? make("p.bad", { role: "alert" }, error.message) : null,
    curves(events.data),
    make(
      "div.columns",
      {},
      section(
        "What it is",
        {},
        facts({
          adapter: link(`/adapters/${adapter}`, adapter),
          method,
          "begins with": code(parent ?? job.model),
          made: fine_tuned_model && code(fine_tuned_model),
          data: code(job.training_file),
          progress: progress.total ? `step ${count(progress.step)} of ${count(progress.total)}` : progress.phase,
          "time left": isOpen && progress.eta_seconds ? duration(progress.eta_seconds) : null,
          "trained tokens": job.trained_tokens && count(job.trained_tokens),
          submitted: `${moment(job.created_at)}, by ${created_by}`,
          finished: job.finished_at && moment(job.finished_at),
          attempts: attempts > 1 ? attempts : null,
        }),
        make("details", {}, make("summary", {}, "Hyperparameters"), facts(flat(hyperparameters))),
      ),
      gates(version),
    ),
    section(
      "Events",
      {},
      said.length
        ? table(
            "Events",
            ["when", "", "what"],
            said.map((event) =>
              make(
                "tr",
                { key: event.id },
                make("td", {}, moment(event.created_at)),
                make("td", {}, event.level === "info" ? "" : pill(event.level, "middling")),
                make("td.text", {}, event.message),
              ),
            ),
          )
        : nothing("None yet."),
    ),
  ];
}

function curves(events) {
  const measured = events.filter(({ type }) => type === "metrics").toReversed();
  const charts = Object.entries(CURVES).flatMap(([title, names]) => {
    const series = Object.entries(names)
      .map(([name, shown]) => ({
        name: shown,
        points: measured
          .filter(({ data }) => Number.isFinite(data[name]))
          .map(({ data }) => ({ x: data.step, y: data[name] })),
      }))
      .filter(({ points }) => points.length);
    return series.length
      ? [section(title, {}, lines(`${title} by step`, series, { showX: (step) => `step ${Math.round(step)}` }))]
      : [];
  });
  return charts.length ? make("div.columns", {}, charts) : section("Curves", {}, nothing("Nothing measured yet."));
}

/** What the gates said of the version that was made, and how it was measured. */
function gates(version) {
  const { gates, evaluation } = version?.metadata ?? {};
  if (!gates && !evaluation) return section("Gates", {}, nothing("No version was held against gates."));
  const outcome = gates && (gates.outcome ?? (gates.passed ? "pass" : "refuse"));
  return section(
    "Gates",
    {},
    outcome ? pill(outcome, { pass: "good", refuse: "bad" }[outcome] ?? "middling") : null,
    [...(gates?.refusals ?? []), ...(gates?.doubts ?? [])].map((why) => make("p", {}, why)),
    evaluation ? make("details", {}, make("summary", {}, "Measurements"), facts(flat(evaluation))) : null,
  );
}

/** Nested JSON as names and values: `{"a": {"b": 1}}` is `a b: 1`. */
function flat(value, name = "") {
  if (value === null || typeof value !== "object") {
    return { [name]: typeof value === "number" ? decimal(value, 4) : String(value) };
  }
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return { [name]: value.join(", ") };
  return Object.assign(
    {},
    ...Object.entries(value).map(([key, inner]) => flat(inner, `${name} ${key.replaceAll("_", " ")}`.trim())),
  );
}

async function cancel({ id, graftwork }, context) {
  const done = await confirm(
    {
      title: `Cancel ${id}?`,
      consequences: [`Its training run of ${graftwork.adapter} ends, and no version comes of it.`],
      verb: "Cancel the job",
      danger: true,
    },
    () => call("POST", path("/v1/fine_tuning/jobs", id, "cancel")),
  );
  if (done) await context.refresh();
}
