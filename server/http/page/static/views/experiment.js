/** One experiment: how its intervals narrowed, who waits, what the rule says, and stopping it. */

import { call, get, path } from "../api.js";
import { lines } from "../chart.js";
import { confirm } from "../dialog.js";
import { button, code, facts, field, link, make, nothing, pill, section, soft, table } from "../dom.js";
import { count, decimal, duration, moment, percent, plural } from "../format.js";
import { stateOf } from "./experiments.js";

export const title = "Experiment";

export const load = ({ names: [name] }) => get(path("/v1/experiments", name));

export function show(experiment, context) {
  const { name, adapter, status, metric, reading, outcome, warnings, history } = experiment;
  return [
    make(
      "div.head",
      {},
      soft(link("/experiments", "Experiments"), " /"),
      make("h1", {}, name),
      stateOf(experiment),
      soft(
        "on ",
        link(`/adapters/${adapter}`, adapter),
        `, by ${metric.label}, ${metric.goal === "up" ? "more" : "less"} is better`,
      ),
      make(
        "div.actions",
        {},
        make("a", { href: `#/interactions?experiment=${name}` }, "Read the answers"),
        status === "running" ? button("Stop…", () => stop(experiment, context)) : null,
      ),
    ),
    outcome
      ? section(
          "Decision",
          {},
          facts({
            decision: outcome.decision,
            arm: outcome.arm,
            why: outcome.reason,
            by: outcome.actor,
            at: moment(experiment.ended_at),
          }),
        )
      : null,
    ...warnings.map((warning) => make("p.middling", { role: "status" }, warning)),
    standing(experiment),
    make("div.columns", {}, differences(experiment), means(experiment)),
    arms(experiment),
    make("div.columns", {}, guardrails(reading), plan(experiment)),
    reading?.shadows.length ? shadows(reading.shadows) : null,
    section(
      "History",
      {},
      table(
        `History of ${name}`,
        ["when", "what", "arm", "who", "why"],
        history.map((event) =>
          make(
            "tr",
            { key: event.id },
            make("td", {}, moment(event.at)),
            make("td", {}, event.action),
            make("td", {}, event.arm ?? ""),
            make("td", {}, event.actor),
            make("td.text", {}, event.reason ?? ""),
          ),
        ),
      ),
    ),
  ];
}

function standing({ reading, unit, window_seconds, started_at, status, sample_ratio }) {
  return section(
    "Standing",
    {},
    reading
      ? facts({
          [`${unit}s counted`]: count(reading.units),
          waiting: `${count(reading.waiting)}, each for ${duration(window_seconds)}${reading.next_at && status === "running" ? `; the next counts at ${moment(reading.next_at)}` : ""}`,
          "left out": reading.learned ? `${count(reading.learned)}, which a version has learned from` : null,
          "shares as planned": reading.sample_ratio.mismatch
            ? make("span.bad", {}, "no: do not trust this comparison")
            : "yes",
          began: moment(started_at),
          read: moment(reading.at),
        })
      : nothing("No reading yet: the first comes within seconds of the first answer."),
  );
}

function series(readings, of) {
  const names = new Set(readings.flatMap((point) => of(point).map(({ arm }) => arm)));
  return [...names].map((name) => ({
    name,
    points: readings.flatMap((point) =>
      of(point)
        .filter(({ arm }) => arm === name)
        .map(({ mean, difference, lower, upper }) => ({
          x: point.at,
          y: mean ?? difference ?? NaN,
          lower: lower ?? NaN,
          upper: upper ?? NaN,
        })),
    ),
  }));
}

function differences({ readings, metric }) {
  return section(
    "Difference to the control",
    {},
    soft("With an interval that holds at all times: the rule may look as often as it likes."),
    lines(
      `Difference of ${metric.label} to the control over time`,
      series(readings, ({ comparisons }) => comparisons),
      { line: 0 },
    ),
  );
}

function means({ readings, metric }) {
  return section(
    "Means of the arms",
    {},
    soft(metric.label),
    lines(
      `Means of ${metric.label} by arm over time`,
      series(readings, ({ arms }) => arms),
    ),
  );
}

function arms({ arms, reading }) {
  const read = new Map(reading?.arms.map((arm) => [arm.arm, arm]));
  const compared = new Map(reading?.comparisons.map((each) => [each.arm, each]));
  return section(
    "Arms",
    {},
    table(
      "Arms",
      [
        "arm",
        "version",
        ["share", "num"],
        ["requests", "num"],
        ["units", "num"],
        ["judged", "num"],
        "mean",
        "difference to the control",
      ],
      arms.map(({ name, adapter, control, weight, shadow, system, sampling }) => {
        const [{ requests, units, judged, mean, lower, upper } = {}, difference] = [read.get(name), compared.get(name)];
        const own = [
          system && "a system message",
          ...Object.entries(sampling).map(([name, value]) => `${name} ${value}`),
        ]
          .filter(Boolean)
          .join(", ");
        return make(
          "tr",
          { key: name },
          make("td", {}, name, control ? soft(" control") : null),
          make("td", {}, code(adapter), own ? soft(` ${own}`) : null),
          make("td.num", {}, weight === null ? `copies ${percent(shadow)}` : percent(weight)),
          make("td.num", {}, count(requests)),
          make("td.num", {}, count(units)),
          make("td.num", {}, count(judged)),
          make("td", {}, interval(mean, lower, upper)),
          make("td", {}, difference ? interval(difference.difference, difference.lower, difference.upper) : ""),
        );
      }),
    ),
  );
}

const interval = (value, lower, upper) =>
  Number.isFinite(value) ? `${decimal(value)} (${decimal(lower)} to ${decimal(upper)})` : "–";

function guardrails(reading) {
  return section(
    "Guardrails",
    {},
    reading?.guardrails.length
      ? table(
          "Guardrails",
          ["arm", "metric", "limit", ["seen", "num"], "evidence"],
          reading.guardrails.map((rail) =>
            make(
              "tr",
              { key: `${rail.arm} ${rail.metric}` },
              make("td", {}, rail.arm),
              make("td", {}, rail.metric),
              make("td", {}, rail.limit === null ? `control + ${decimal(rail.margin)}` : decimal(rail.limit)),
              make("td.num", {}, count(rail.observations)),
              make(
                "td",
                {},
                rail.breached
                  ? pill("breached", "bad")
                  : [
                      make("progress", {
                        max: rail.threshold,
                        value: Math.max(0, Math.min(rail.evidence, rail.threshold)),
                        "aria-label": "of what breaches it",
                      }),
                      soft(` ${decimal(rail.evidence)} of ${decimal(rail.threshold)}`),
                    ],
              ),
            ),
          ),
        )
      : nothing("Nothing has been watched yet."),
  );
}

function plan({ decision, ramp, alpha, allocation, started_by, covariate }) {
  return section(
    "Rule",
    {},
    facts({
      "wins above": decision.promote_above,
      "is stopped below": decision.stop_below,
      "at the latest":
        [decision.max_units && plural(decision.max_units, "unit"), decision.until && moment(decision.until)]
          .filter(Boolean)
          .join(" or ") || null,
      "by itself": decision.automatic ? "yes" : "no: it advises, somebody stops it",
      alpha,
      allocation,
      covariate,
      ramp: ramp && ramp.weights.map((weight) => percent(weight)).join(", "),
      "started by": started_by,
    }),
  );
}

function shadows(shadows) {
  return section(
    "Shadow arms",
    {},
    table(
      "Shadow arms",
      [
        "arm",
        ["copies", "num"],
        ["errors", "num"],
        ["identical", "num"],
        ["agreement", "num"],
        ["length", "num"],
        ["latency", "num"],
      ],
      shadows.map((each) =>
        make(
          "tr",
          { key: each.arm },
          make("td", {}, each.arm),
          make("td.num", {}, count(each.answered)),
          make("td.num", {}, count(each.errors)),
          make("td.num", {}, percent(each.identical)),
          make("td.num", {}, decimal(each.agreement)),
          make("td.num", {}, decimal(each.length_ratio)),
          make("td.num", {}, decimal(each.latency_ratio)),
        ),
      ),
    ),
  );
}

async function stop({ name, adapter, arms }, context) {
  const choices = [
    make("option", { value: "" }, "none: live stays as it is"),
    ...arms
      .filter(({ shadow }) => shadow === null)
      .map((arm) => make("option", { value: arm.name }, `${arm.name} (${arm.adapter})`)),
  ];
  const done = await confirm(
    {
      title: `Stop ${name}?`,
      consequences: [`All requests for ${adapter} go to its live version again. A stopped experiment does not go on.`],
      verb: "Stop",
      reason: true,
      danger: true,
      fields: [field("Promote", make("select", { name: "promote" }, choices))],
    },
    (body) => call("POST", path("/v1/experiments", name, "stop"), body),
  );
  if (done) await context.refresh();
}
