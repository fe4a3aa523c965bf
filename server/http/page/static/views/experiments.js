/** All experiments, and the form that starts one. */

import { call, list } from "../api.js";
import { given } from "../dialog.js";
import { code, field, link, make, nothing, options, pill, section, soft, table } from "../dom.js";
import { count, decimal, moment } from "../format.js";

export const title = "Experiments";

const METRICS = ["thumb", "score", "correction_rate", "feedback_rate", "error_rate", "latency", "tokens"];
const DECISIONS = { promoted: "good", harm: "bad", guardrail: "bad" };

export async function load() {
  return list("/v1/experiments", { by: "name", most: 200 });
}

export function show({ data, more }, context) {
  const running = data.filter(({ status }) => status === "running");
  const ended = data.filter(({ status }) => status !== "running");
  return [
    make("h1", {}, "Experiments"),
    section("Running", {}, listed("Running experiments", running)),
    starting(context),
    section("Ended", {}, listed("Ended experiments", ended), more ? soft("and older ones") : null),
  ];
}

export const stateOf = ({ status, outcome }) =>
  pill(outcome?.decision ?? status, status === "running" ? "middling" : (DECISIONS[outcome?.decision] ?? "soft"));

function listed(label, experiments) {
  if (!experiments.length) return nothing("None.");
  return table(
    label,
    ["name", "adapter", "metric", "arms", "state", ["units", "num"], ["waiting", "num"], "difference", "since"],
    experiments.map((each) =>
      make(
        "tr",
        { key: each.name },
        make("td", {}, link(`/experiments/${each.name}`, each.name)),
        make("td", {}, link(`/adapters/${each.adapter}`, each.adapter)),
        make("td", {}, each.metric.label),
        make("td", {}, each.arms.map(({ name }) => name).join(", ")),
        make("td", {}, stateOf(each)),
        make("td.num", {}, count(each.reading?.units ?? 0)),
        make("td.num", {}, count(each.reading?.waiting ?? 0)),
        make(
          "td",
          {},
          (each.reading?.comparisons ?? []).map(({ arm, difference, lower, upper }) =>
            make("div", {}, `${arm} ${decimal(difference)} (${decimal(lower)} to ${decimal(upper)})`),
          ),
        ),
        make("td.soft", {}, moment(each.started_at)),
      ),
    ),
  );
}

function starting({ parameters, go }) {
  const problem = make("p.bad.wide", { role: "alert" });
  const text = (name, value, more) => make("input", { name, value, required: true, autocomplete: "off", ...more });
  const form = make(
    "form.form",
    { onsubmit: start },
    field("Adapter", text("adapter", parameters.get("adapter"))),
    field("Name", text("name", null, { maxlength: 64 })),
    field("Control", text("control", "live"), "version number, alias, or base"),
    field("Treatment", text("treatment", parameters.get("treatment") ?? "candidate"), "version number, alias, or base"),
    field("Share of the treatment", text("weight", "0.5", { type: "number", min: 0, max: 1, step: "any" })),
    field("Metric", make("select", { name: "metric" }, options(METRICS, "thumb"))),
    field("Unit", make("select", { name: "unit" }, options(["user", "episode"], "user"))),
    make("label.check", {}, make("input", { type: "checkbox", name: "automatic" }), "Promote the winner by itself"),
    make("div.wide.actions", {}, make("button.primary", { type: "submit" }, "Start")),
    problem,
    soft("More arms, guardrails and ramps: ", code("graftwork experiments start --help")),
  );

  async function start(event) {
    event.preventDefault();
    const { name, adapter, control, treatment, weight, metric, unit, automatic } = given(event.target);
    const arm = (selector, weight) => ({ version: /^\d+$/.test(selector) ? Number(selector) : selector, weight });
    const share = Number(weight);
    try {
      await call("POST", "/v1/experiments", {
        name,
        adapter,
        metric,
        unit,
        arms: [arm(control, 1 - share), arm(treatment, share)],
        decision: { automatic: Boolean(automatic) },
      });
      go(`/experiments/${name}`);
    } catch (error) {
      event.target.querySelector("[role=alert]").textContent = error.message;
    }
  }

  return section(
    "Start an experiment",
    {},
    make(
      "details",
      { open: parameters.has("adapter") },
      make("summary", {}, "Two versions, compared by what users say or do"),
      form,
    ),
  );
}
