/** All experiments, and the form that starts one. */

import { call, list } from "../api.js";
import { given } from "../dialog.js";
import { code, field, link, make, options, pill, section, soft, tableOr } from "../dom.js";
import { count, decimal, moment } from "../format.js";

export const title = "Experiments";

const METRICS = ["thumb", "score", "correction_rate", "feedback_rate", "error_rate", "latency", "tokens"];
const DECISIONS = { promoted: "good", harm: "bad", guardrail: "bad" };

/** Whether it runs, or how it ended. */
export function stateOf({ status, outcome }) {
  if (status === "running") return pill(status, "middling");
  return pill(outcome.decision, DECISIONS[outcome.decision] ?? "soft");
}

/** A number with its interval. */
export const interval = (value, lower, upper) =>
  Number.isFinite(value) ? `${decimal(value)} (${decimal(lower)} to ${decimal(upper)})` : "–";

/** The differences to the control of its last reading. */
export const differences = ({ reading }) =>
  (reading?.comparisons ?? []).map(({ arm, difference, lower, upper }) =>
    make("div", {}, `${arm} ${interval(difference, lower, upper)}`));

const COLUMNS = [
  ["name", ({ name }) => link(`/experiments/${name}`, name)],
  ["adapter", ({ adapter }) => link(`/adapters/${adapter}`, adapter)],
  ["metric", ({ metric }) => metric.label],
  ["state", stateOf],
  ["units", "num", ({ reading }) => count(reading?.units ?? 0)],
  ["waiting", "num", ({ reading }) => count(reading?.waiting ?? 0)],
  ["difference", differences],
  ["since", "soft", ({ started_at }) => moment(started_at)],
];

export const load = () => list("/v1/experiments", { by: "name", most: 200 });

export function show({ data, more }, context) {
  const listed = (label, status) =>
    tableOr("None.", label, COLUMNS, data.filter((each) => each.status === status), { key: ({ name }) => name });
  return [
    make("h1", {}, "Experiments"),
    section("Running", {}, listed("Running experiments", "running")),
    starting(context),
    section("Ended", {}, listed("Ended experiments", "ended"), more ? soft("and older ones") : null),
  ];
}

function starting({ parameters, go }) {
  const text = (name, value, more) => make("input", { name, value, required: true, autocomplete: "off", ...more });
  const which = "version number, alias, or base";
  const form = make("form.form", { onsubmit: (event) => start(event, go) },
    field("Adapter", text("adapter", parameters.get("adapter"))),
    field("Name", text("name", null, { maxlength: 64 })),
    field("Control", text("control", "live"), which),
    field("Treatment", text("treatment", parameters.get("treatment") ?? "candidate"), which),
    field("Share of the treatment", text("weight", "0.5", { type: "number", min: 0, max: 1, step: "any" })),
    field("Metric", make("select", { name: "metric" }, options(METRICS, "thumb"))),
    field("Unit", make("select", { name: "unit" }, options(["user", "episode"], "user"))),
    make("label.check", {}, make("input", { type: "checkbox", name: "automatic" }), "Promote the winner by itself"),
    make("div.wide.actions", {}, make("button.primary", { type: "submit" }, "Start")),
    make("p.bad.wide", { role: "alert" }),
    soft("More arms, guardrails and ramps: ", code("graftwork experiments start --help")));
  const summary = make("summary", {}, "Two versions, compared by what users say or do");
  return section("Start an experiment", {}, make("details", { open: parameters.has("adapter") }, summary, form));
}

async function start(event, go) {
  event.preventDefault();
  const form = event.target;
  const { name, adapter, control, treatment, weight, metric, unit, automatic } = given(form);
  const arm = (which, weight) => ({ version: /^\d+$/.test(which) ? Number(which) : which, weight });
  const arms = [arm(control, 1 - Number(weight)), arm(treatment, Number(weight))];
  try {
    await call("POST", "/v1/experiments", {
      name, adapter, arms, metric, unit, decision: { automatic: Boolean(automatic) },
    });
    go(`/experiments/${name}`);
  } catch (error) {
    form.querySelector("[role=alert]").textContent = error.message;
  }
}
