/** One adapter: its versions and what may be done with them, its traffic and feedback, what it learns from. */

import { call, get, list, listIf, path } from "../api.js";
import { bars } from "../chart.js";
import { confirm } from "../dialog.js";
import { button, code, facts, field, heading, link, make, nothing, pill } from "../dom.js";
import { section, soft, table, tableOr, titled } from "../dom.js";
import { ago, bytes, count, decimal, duration, groups, mean, median, moment, percent, plural } from "../format.js";
import { differences, stateOf } from "./experiments.js";
import { outcome } from "./gates.js";
import * as rounds from "./round.js";

export const title = "Adapter";

const ANSWERS = 500;
const HOUR = 3600;
const DAY = 24 * HOUR;

export async function load({ names: [name], can }) {
  const operator = can("operator");
  const [adapter, history, answers, feedback, policies, learned, experiments] = await Promise.all([
    get(path("/v1/adapters", name)),
    list(path("/v1/adapters", name, "history"), { most: 50 }),
    listIf(operator, "/v1/interactions", { adapter: name, most: ANSWERS }),
    listIf(operator, "/v1/feedback", { adapter: name, most: ANSWERS }),
    operator ? get("/v1/learning_policies") : { data: [] },
    listIf(operator, "/v1/rounds", { adapter: name, most: 20 }),
    listIf(operator, "/v1/experiments", { by: "name", most: 100 }),
  ]);
  const isIts = (each) => each.adapter === name;
  const policy = policies.data.find(isIts) ?? null;
  const plan = policy && (await get(path("/v1/adapters", name, "next_round")));
  return { adapter, history, answers, feedback, policy, plan, learned, experiments: experiments.data.filter(isIts) };
}

export function show(data, context) {
  const { adapter, history } = data;
  const operator = context.can("operator");
  const actions = [
    make("a", { href: `#/playground?left=${adapter.name}` }, "Ask it"),
    operator ? button("Roll back…", () => rollBack(adapter, context)) : null,
  ];
  const aliases = Object.entries(adapter.aliases).map(([alias, version]) => aliasPill(alias, ` @${version}`));
  return [
    heading(adapter.name, { under: ["/adapters", "Adapters"], actions }, aliases),
    versions(adapter, context),
    operator ? make("div.columns", {}, traffic(data), judgements(data)) : null,
    operator ? make("div.columns", {}, learning(data, context), experimentsOf(data)) : null,
    section("History", {},
      table(`History of ${adapter.name}`, HISTORY, history.data),
      history.more ? soft("and older ones: graftwork adapters history") : null),
  ];
}

const aliasPill = (alias, more = "") => pill(`${alias}${more}`, alias === "live" ? "good" : "soft");

const HISTORY = [
  ["when", ({ at }) => moment(at)],
  ["what", ({ action, alias, from_version, to_version }) =>
    [action, alias, from_version && `@${from_version} →`, to_version && `@${to_version}`].filter(Boolean).join(" ")],
  ["who", ({ actor }) => actor],
  ["why", "text", ({ reason }) => reason],
];

// --------------------------------------------------------------------------------------------------------- versions

function versions(adapter, context) {
  const operator = context.can("operator");
  const aliasesOf = ({ version }) => Object.keys(adapter.aliases).filter((alias) => adapter.aliases[alias] === version);
  const chips = (version) => [
    titled(version.digest, code(`@${version.version}`)),
    aliasesOf(version).map((alias) => aliasPill(alias)),
    doubts(version),
  ];
  const canChange = ({ retired_at }) => operator && !retired_at;
  const columns = [
    ["version", (version) => make("span.chips", {}, chips(version))],
    ["", (version) => canChange(version) && changes(adapter, version.version, aliasesOf(version), context)],
    ["where", ({ residency }) => residency],
    ["rank", "num", ({ rank }) => rank],
    ["size", "num", ({ num_bytes }) => bytes(num_bytes)],
    ["requests", "num", ({ requests }) => count(requests)],
    ["tokens", "num", ({ tokens }) => count(tokens)],
    ["parent", ({ parent }) => parent && `@${parent}`],
    ["learned from", (version) => titled(version.data_digest, learnedFrom(version, operator))],
    ["gates", ({ metadata }) => outcome(metadata.gates)],
    ["pushed", "soft", ({ created_at }) => titled(moment(created_at), ago(created_at))],
  ];
  return section("Versions", {}, table(`Versions of ${adapter.name}`, columns, adapter.versions.toReversed(), {
    key: ({ version }) => version,
    kind: ({ retired_at }) => (retired_at ? "retired" : ""),
  }));
}

function doubts({ retired_at, verified }) {
  if (retired_at) return soft("retired");
  const about = "its config names no base: only shapes were checked";
  return verified ? null : make("span.middling", { title: about }, "unverified");
}

function learnedFrom({ metadata, data_digest }, operator) {
  if (metadata.job && operator) return link(`/jobs/${metadata.job}`, metadata.job);
  return data_digest ? code(data_digest.slice(0, 15)) : "";
}

/** What may be done with a version. One that has an alias cannot be retired. */
function changes(adapter, number, aliases, context) {
  const change = (text, about, act) =>
    button(text, () => act(adapter, number, context), { kind: "small", "aria-label": about });
  return make("span.actions", {},
    adapter.aliases.live === number ? null : change("Promote…", `Promote @${number} to live…`, promote),
    change("Alias…", `Give @${number} an alias…`, setAlias),
    aliases.length ? null : change("Retire…", `Retire @${number}…`, retire));
}

/** Ask, and move an alias. Where a running experiment forbids it, the form offers to end that. */
async function move({ fields = [], ...question }, request, context) {
  const end = make("label.check", {},
    make("input", { type: "checkbox", name: "end_experiment" }),
    make("span", {}, "End a running experiment on this adapter, if there is one"));
  const done = await confirm({ ...question, reason: true, fields: [...fields, end] }, ({ end_experiment, ...given }) =>
    request({ ...given, end_experiment: Boolean(end_experiment) }));
  if (done) await context.refresh();
}

function promote({ name, aliases }, version, context) {
  return move({
    title: `Promote ${name}@${version} to live?`,
    consequences: [
      `Requests for ${name} go to @${version} at once, and no longer to @${aliases.live}.`,
      "Rolling back undoes it.",
    ],
    verb: "Promote",
  }, (body) => call("PUT", path("/v1/adapters", name, "aliases", "live"), { version, ...body }), context);
}

function setAlias({ name, aliases }, version, context) {
  const known = Object.entries(aliases).map(([alias, target]) => `${alias} is @${target}`).join(", ");
  const input = { name: "alias", required: true, maxlength: 64, autocomplete: "off", placeholder: "candidate" };
  return move({
    title: `Give ${name}@${version} an alias?`,
    consequences: [`An alias that is there already moves: ${known}.`],
    verb: "Set the alias",
    fields: [field("Alias", make("input", input))],
  }, ({ alias, ...body }) => call("PUT", path("/v1/adapters", name, "aliases", alias), { version, ...body }), context);
}

function rollBack({ name, aliases }, context) {
  const choices = Object.entries(aliases).map(([alias, version]) =>
    make("option", { value: alias, selected: alias === "live" }, `${alias} (now @${version})`));
  return move({
    title: `Roll ${name} back?`,
    consequences: ["The alias goes back to the version that it had before the last change; requests follow at once."],
    verb: "Roll back",
    fields: [field("Alias", make("select", { name: "alias" }, choices))],
  }, (body) => call("POST", path("/v1/adapters", name, "rollback"), body), context);
}

async function retire({ name }, version, context) {
  const done = await confirm({
    title: `Retire ${name}@${version}?`,
    consequences: [
      "It can no longer be asked, nor get an alias.",
      "This cannot be undone: pushed again, the same files become a new version.",
    ],
    verb: "Retire",
    danger: true,
  }, () => call("DELETE", path("/v1/adapters", name, "versions", version)));
  if (done) await context.refresh();
}

// -------------------------------------------------------------------------------------------- answers and feedback

/** Who answered: `@3`, and with an experiment the arm. */
const answeredBy = ({ adapter, arm }) => [`@${adapter.split("@")[1] ?? "base"}`, arm].filter(Boolean).join(" ");

const byName = { key: ([name]) => name };

function traffic({ answers: { data, more }, adapter }) {
  const by = [...groups(data, answeredBy)];
  const seconds = (some, of) => duration(median(some.map(({ timings }) => timings[of])) / 1000);
  const columns = [
    ["version, arm", ([name]) => name],
    ["answers", "num", ([, some]) => count(some.length)],
    ["failed", "num", ([, some]) => count(some.filter(({ status }) => status === "error").length)],
    ["first token", "num", ([, some]) => seconds(some, "first_token_ms")],
    ["whole", "num", ([, some]) => seconds(some, "total_ms")],
    ["tokens", "num", ([, some]) => decimal(mean(some.map(({ usage }) => usage.completion_tokens)))],
  ];
  return section("Traffic and latency", {},
    soft(more ? `The last ${ANSWERS} logged answers. ` : "All logged answers. ",
      link(`/interactions?adapter=${adapter.name}`, "Read them")),
    overTime(`Answers of ${adapter.name} over time, by version and arm`, by, ({ created_at }) => created_at),
    by.length ? table("Latency by version and arm", columns, by, byName) : null,
    by.length ? soft("Medians; of tokens, means.") : null);
}

function judgements({ feedback: { data, more }, adapter }) {
  const by = [...groups(data, answeredBy)];
  const number = (some, test) => count(some.filter(test).length);
  const columns = [
    ["version, arm", ([name]) => name],
    ["said", "num", ([, some]) => count(some.length)],
    ["thumbs up", "num", ([, some]) => thumbsUp(some.filter(({ thumb }) => thumb))],
    ["score", "num", ([, some]) => decimal(mean(some.map(({ score }) => score).filter((score) => score !== null)))],
    ["corrected", "num", ([, some]) => number(some, ({ correction }) => correction !== null)],
    ["preferred", "num", ([, some]) => number(some, ({ preferred_over }) => preferred_over)],
  ];
  return section("Feedback", {},
    soft(more ? `The last ${ANSWERS}.` : "All of it."),
    overTime(`Feedback on ${adapter.name} over time, by version and arm`, by, ({ at }) => at),
    by.length ? table("Feedback by version and arm", columns, by, byName) : null);
}

const thumbsUp = (thumbs) => percent(thumbs.filter(({ thumb }) => thumb === "up").length / thumbs.length);

/** Bars of five minutes to a month each, so that there are not many of them. */
function overTime(label, by, at) {
  const moments = by.flatMap(([, some]) => some.map(at));
  if (!moments.length) return nothing("None yet.");
  const [first, last] = [Math.min(...moments), Math.max(...moments)];
  const width = [HOUR / 12, HOUR, DAY, 7 * DAY].find((width) => (last - first) / width < 40) ?? 30 * DAY;
  const start = Math.floor(first / width) * width;
  const place = (moment) => Math.floor((moment - start) / width);
  const empty = (_, bar) => ({ x: start + bar * width, parts: by.map(() => 0) });
  const counted = Array.from({ length: place(last) + 1 }, empty);
  by.forEach(([, some], part) => some.forEach((entry) => counted[place(at(entry))].parts[part]++));
  return bars(`${label}, each bar ${duration(width)}`, by.map(([name]) => name), counted);
}

// --------------------------------------------------------------------------------------------------------- learning

function learning({ adapter, policy, plan, learned }, context) {
  const beginning = () =>
    make("div.actions", {}, button("Begin the round now…", () => begin(adapter, plan, context)));
  return section("Learning", {},
    policy
      ? [nextRound(policy, plan), beginning()]
      : nothing("It has no learning policy. Give it one: ", code(`graftwork train ${adapter.name} --watch`)),
    learned.data.length ? table(`Rounds of ${adapter.name}`, rounds.COLUMNS, learned.data) : null);
}

function nextRound({ method, after, every_days }, { number, control, continues, judgements, waits_for }) {
  const said = Object.entries(judgements).map(([kind, number]) => `${count(number)} ${kind}`);
  const when = [after && `after ${plural(after, "judgement")}`, every_days && `every ${plural(every_days, "day")}`];
  return facts({
    "next round": `number ${number}, ${control ? "from the base, to compare" : `continues ${continues}`}`,
    "it has": said.join(", ") || "no new judgement",
    "waits for": waits_for ?? "nothing: it is due",
    method,
    policy: when.filter(Boolean).join(", or "),
  });
}

async function begin({ name }, { number }, context) {
  const done = await confirm({
    title: `Begin round ${number} of ${name} now?`,
    consequences: [
      "A training job is submitted, with the judgements that there are.",
      "What is live changes only when its candidate passes.",
    ],
    verb: "Begin",
  }, () => call("POST", "/v1/rounds", { adapter: name }));
  if (done) await context.refresh();
}

const EXPERIMENTS = [
  ["name", ({ name }) => link(`/experiments/${name}`, name)],
  ["metric", ({ metric }) => metric.label],
  ["state", stateOf],
  ["units", "num", ({ reading }) => count(reading?.units ?? 0)],
  ["difference", differences],
];

function experimentsOf({ adapter, experiments }) {
  const actions = [make("a", { href: `#/experiments?adapter=${adapter.name}` }, "Start one")];
  return section("Experiments", { actions },
    tableOr("None.", `Experiments on ${adapter.name}`, EXPERIMENTS, experiments, { key: ({ name }) => name }));
}
