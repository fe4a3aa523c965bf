/** One experiment: how its intervals narrowed, who waits, what the rule says, and stopping it. */

import { call, get, path } from "../api.js";
import { lines } from "../chart.js";
import { confirm } from "../dialog.js";
import { button, code, facts, field, heading, link, make, nothing, pill } from "../dom.js";
import { section, soft, table, tableOr } from "../dom.js";
import { count, decimal, duration, moment, percent, plural } from "../format.js";
import { interval, stateOf } from "./experiments.js";

export const title = "Experiment";

export const load = ({ names: [name] }) => get(path("/v1/experiments", name));

export function show(experiment, context) {
  const { name, adapter, status, metric, reading, warnings, readings } = experiment;
  const actions = [
    make("a", { href: `#/interactions?experiment=${name}` }, "Read the answers"),
    status === "running" ? button("Stop…", () => stop(experiment, context)) : null,
  ];
  const by = `, by ${metric.label}, ${metric.goal === "up" ? "more" : "less"} is better`;
  return [
    heading(name, { under: ["/experiments", "Experiments"], actions },
      stateOf(experiment), soft("on ", link(`/adapters/${adapter}`, adapter), by)),
    decision(experiment),
    warnings.map((warning) => make("p.middling", { role: "status" }, warning)),
    standing(experiment),
    make("div.columns", {},
      section("Difference to the control", {},
        soft("With an interval that holds at all times: it may be looked at as often as one likes."),
        lines(`Difference of ${metric.label} to the control over time`,
          series(readings, ({ comparisons }) => comparisons), { line: 0 })),
      section("Means of the arms", {},
        soft(metric.label),
        lines(`Means of ${metric.label} by arm over time`, series(readings, ({ arms }) => arms)))),
    arms(experiment),
    make("div.columns", {}, guardrails(reading), rule(experiment)),
    reading?.shadows.length ? section("Shadow arms", {}, table("Shadow arms", SHADOWS, reading.shadows, byArm)) : null,
    section("History", {}, table(`History of ${name}`, HISTORY, experiment.history)),
  ];
}

const HISTORY = [
  ["when", ({ at }) => moment(at)],
  ["what", ({ action }) => action],
  ["arm", ({ arm }) => arm],
  ["who", ({ actor }) => actor],
  ["why", "text", ({ reason }) => reason],
];

function decision({ outcome, ended_at }) {
  if (!outcome) return null;
  const { decision, arm, reason, actor } = outcome;
  return section("Decision", {}, facts({ decision, arm, why: reason, by: actor, at: moment(ended_at) }));
}

function standing({ reading, unit, window_seconds, started_at, status }) {
  if (!reading) return section("Standing", {}, nothing("No reading yet: it comes soon after the first answers."));
  const next = reading.next_at && status === "running" ? `; the next one counts at ${moment(reading.next_at)}` : "";
  const { mismatch } = reading.sample_ratio;
  return section("Standing", {}, facts({
    [`${unit}s counted`]: count(reading.units),
    waiting: `${count(reading.waiting)}, each for ${duration(window_seconds)}${next}`,
    "left out": reading.learned ? `${count(reading.learned)}, which a version has learned from` : null,
    "shares as planned": mismatch ? make("span.bad", {}, "no: do not trust this comparison") : "yes",
    began: moment(started_at),
    read: moment(reading.at),
  }));
}

/** A line for each arm. `of` takes from a reading what is drawn. */
function series(readings, of) {
  const points = readings.flatMap((reading) => of(reading).map((arm) => ({ ...arm, at: reading.at })));
  const names = [...new Set(points.map(({ arm }) => arm))];
  const point = ({ at, mean, difference, lower, upper }) =>
    ({ x: at, y: mean ?? difference ?? NaN, lower: lower ?? NaN, upper: upper ?? NaN });
  return names.map((name) => ({ name, points: points.filter(({ arm }) => arm === name).map(point) }));
}

const byArm = { key: ({ arm }) => arm };

function arms({ arms, reading }) {
  const rows = arms.map((arm) => ({
    ...arm,
    read: reading?.arms.find((each) => each.arm === arm.name) ?? {},
    compared: reading?.comparisons.find((each) => each.arm === arm.name),
  }));
  const columns = [
    ["arm", ({ name, control }) => [name, control ? soft(" control") : null]],
    ["version", ({ adapter, system, sampling }) => [code(adapter), soft(` ${ownOf(system, sampling)}`)]],
    ["share", "num", ({ weight, shadow }) => (weight === null ? `copies ${percent(shadow)}` : percent(weight))],
    ["requests", "num", ({ read }) => count(read.requests)],
    ["units", "num", ({ read }) => count(read.units)],
    ["judged", "num", ({ read }) => count(read.judged)],
    ["mean", ({ read }) => interval(read.mean, read.lower, read.upper)],
    ["difference to the control", ({ compared }) =>
      compared && interval(compared.difference, compared.lower, compared.upper)],
  ];
  return section("Arms", {}, table("Arms", columns, rows, { key: ({ name }) => name }));
}

/** What an arm does differently. */
const ownOf = (system, sampling) =>
  [system && "a system message", ...Object.entries(sampling).map(([name, value]) => `${name} ${value}`)]
    .filter(Boolean).join(", ");

const GUARDRAILS = [
  ["arm", ({ arm }) => arm],
  ["metric", ({ metric }) => metric],
  ["limit", ({ limit, margin }) => (limit === null ? `control + ${decimal(margin)}` : decimal(limit))],
  ["seen", "num", ({ observations }) => count(observations)],
  ["evidence", evidenceOf],
];

function evidenceOf({ breached, evidence, threshold }) {
  if (breached) return pill("breached", "bad");
  const value = Math.min(Math.max(0, evidence), threshold);
  const bar = make("progress", { max: threshold, value, "aria-label": "of a breach" });
  return [bar, soft(` ${decimal(evidence)} of ${decimal(threshold)}`)];
}

function guardrails(reading) {
  const key = ({ arm, metric, limit }) => `${arm} ${metric} ${limit}`;
  const watched = reading?.guardrails ?? [];
  const none = "Nothing has been watched yet.";
  return section("Guardrails", {}, tableOr(none, "Guardrails", GUARDRAILS, watched, { key }));
}

function rule({ decision, ramp, alpha, allocation, started_by, covariate }) {
  const latest = [decision.max_units && plural(decision.max_units, "unit"), decision.until && moment(decision.until)];
  return section("Rule", {}, facts({
    "wins above": decision.promote_above,
    "is stopped below": decision.stop_below,
    "at the latest": latest.filter(Boolean).join(" or "),
    "by itself": decision.automatic ? "yes" : "no: it advises, somebody stops it",
    alpha,
    allocation,
    covariate,
    ramp: ramp && ramp.weights.map((weight) => percent(weight)).join(", "),
    "started by": started_by,
  }));
}

const SHADOWS = [
  ["arm", ({ arm }) => arm],
  ["copies", "num", ({ answered }) => count(answered)],
  ["errors", "num", ({ errors }) => count(errors)],
  ["identical", "num", ({ identical }) => percent(identical)],
  ["agreement", "num", ({ agreement }) => decimal(agreement)],
  ["length", "num", ({ length_ratio }) => decimal(length_ratio)],
  ["latency", "num", ({ latency_ratio }) => decimal(latency_ratio)],
];

async function stop({ name, adapter, arms }, context) {
  const answering = arms.filter(({ shadow }) => shadow === null);
  const choices = [
    make("option", { value: "" }, "none: live stays as it is"),
    ...answering.map((arm) => make("option", { value: arm.name }, `${arm.name} (${arm.adapter})`)),
  ];
  const done = await confirm({
    title: `Stop ${name}?`,
    consequences: [`All requests for ${adapter} go to its live version again. A stopped experiment does not go on.`],
    verb: "Stop",
    reason: true,
    danger: true,
    fields: [field("Promote", make("select", { name: "promote" }, choices))],
  }, (body) => call("POST", path("/v1/experiments", name, "stop"), body));
  if (done) await context.refresh();
}
