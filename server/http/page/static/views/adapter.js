/** One adapter: its versions and what may be done with them, its traffic and feedback, what it learns from. */

import { call, get, list, listIf, path } from "../api.js";
import { bars } from "../chart.js";
import { confirm } from "../dialog.js";
import { button, code, facts, field, link, make, nothing, pill, section, soft, table } from "../dom.js";
import { ago, bytes, count, decimal, duration, groups, mean, median, moment, percent, plural } from "../format.js";
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
  experiments.data = experiments.data.filter(({ adapter }) => adapter === name);
  const policy = policies.data.find(({ adapter }) => adapter === name) ?? null;
  const plan = policy && (await get(path("/v1/adapters", name, "next_round")));
  return { adapter, history, answers, feedback, policy, plan, learned, experiments };
}

export function show(data, context) {
  const { adapter, history } = data;
  const operator = context.can("operator");
  return [
    make(
      "div.head",
      {},
      soft(link("/adapters", "Adapters"), " /"),
      make("h1", {}, adapter.name),
      Object.entries(adapter.aliases).map(([alias, version]) =>
        pill(`${alias} @${version}`, alias === "live" ? "good" : "soft"),
      ),
      make(
        "div.actions",
        {},
        make("a", { href: `#/playground?left=${adapter.name}` }, "Ask it"),
        operator ? button("Roll back…", () => rollBack(adapter, context)) : null,
      ),
    ),
    versions(adapter, context),
    operator ? make("div.columns", {}, traffic(data), judgements(data)) : null,
    operator ? make("div.columns", {}, learning(data, context), experimentsOf(data)) : null,
    section(
      "History",
      {},
      table(`History of ${adapter.name}`, ["when", "what", "who", "why"], history.data.map(event)),
      history.more ? soft("and older ones: graftwork adapters history") : null,
    ),
  ];
}

// --------------------------------------------------------------------------------------------------------- versions

const VERSION_COLUMNS = [
  "version",
  "",
  "where",
  ["rank", "num"],
  ["size", "num"],
  ["requests", "num"],
  ["tokens", "num"],
  "parent",
  "learned from",
  "gates",
  "pushed",
];
const OUTCOMES = { pass: "good", refuse: "bad", inconclusive: "middling" };

function versions(adapter, context) {
  return section(
    "Versions",
    {},
    table(
      `Versions of ${adapter.name}`,
      VERSION_COLUMNS,
      adapter.versions.toReversed().map((version) => versionRow(adapter, version, context)),
    ),
  );
}

function versionRow(adapter, version, context) {
  const { version: number, retired_at, metadata } = version;
  const aliases = Object.entries(adapter.aliases)
    .filter(([, target]) => target === number)
    .map(([alias]) => alias);
  const outcome = outcomeOf(metadata.gates);
  return make(
    retired_at ? "tr.retired" : "tr",
    { key: number },
    make(
      "td",
      { title: version.digest },
      make(
        "span.chips",
        {},
        code(`@${number}`),
        aliases.map((alias) => pill(alias, alias === "live" ? "good" : "soft")),
        retired_at ? soft("retired") : null,
        version.verified
          ? null
          : make(
              "span.middling",
              { title: "Its config does not name the base: only the shapes were checked" },
              "unverified",
            ),
      ),
    ),
    make("td", {}, context.can("operator") && !retired_at ? changes(adapter, number, aliases, context) : null),
    make("td", {}, version.residency),
    make("td.num", {}, version.rank),
    make("td.num", {}, bytes(version.num_bytes)),
    make("td.num", {}, count(version.requests)),
    make("td.num", {}, count(version.tokens)),
    make("td", {}, version.parent ? `@${version.parent}` : ""),
    make(
      "td",
      { title: version.data_digest },
      metadata.job && context.can("operator")
        ? link(`/jobs/${metadata.job}`, metadata.job)
        : version.data_digest
          ? code(version.data_digest.slice(0, 15))
          : "",
    ),
    make("td", { title: (metadata.gates?.refusals ?? []).join("; ") }, outcome ? pill(outcome, OUTCOMES[outcome]) : ""),
    make("td.soft", { title: moment(version.created_at) }, ago(version.created_at)),
  );
}

/** What may be done with a version. One that has an alias cannot be retired. */
function changes(adapter, number, aliases, context) {
  const change = (text, about, act) =>
    button(text, () => act(adapter, number, context), { kind: "small", "aria-label": about });
  return make(
    "span.actions",
    {},
    adapter.aliases.live === number ? null : change("Promote…", `Promote @${number} to live…`, promote),
    change("Alias…", `Give @${number} an alias…`, setAlias),
    aliases.length ? null : change("Retire…", `Retire @${number}…`, retire),
  );
}

function outcomeOf(gates) {
  if (!gates || typeof gates !== "object") return null;
  return gates.outcome ?? (gates.passed ? "pass" : "refuse");
}

/** Ask, and move an alias. Where a running experiment forbids it, the form offers to end that. */
async function move(question, request, context) {
  const end = make(
    "label.check",
    {},
    make("input", { type: "checkbox", name: "end_experiment" }),
    make("span", {}, "End a running experiment on this adapter, if there is one"),
  );
  const done = await confirm(
    { ...question, reason: true, fields: [...(question.fields ?? []), end] },
    ({ end_experiment, ...given }) => request({ ...given, end_experiment: Boolean(end_experiment) }),
  );
  if (done) await context.refresh();
}

function promote({ name, aliases }, version, context) {
  return move(
    {
      title: `Promote ${name}@${version} to live?`,
      consequences: [
        `Requests for ${name} go to @${version} at once, and no longer to @${aliases.live}.`,
        "Rolling back undoes it.",
      ],
      verb: "Promote",
    },
    (body) => call("PUT", path("/v1/adapters", name, "aliases", "live"), { version, ...body }),
    context,
  );
}

function setAlias({ name, aliases }, version, context) {
  const known = Object.entries(aliases)
    .map(([alias, target]) => `${alias} is @${target}`)
    .join(", ");
  return move(
    {
      title: `Give ${name}@${version} an alias?`,
      consequences: [`An alias that is there already moves: ${known}.`],
      verb: "Set the alias",
      fields: [
        field(
          "Alias",
          make("input", {
            name: "alias",
            required: true,
            maxlength: 64,
            autocomplete: "off",
            placeholder: "candidate",
          }),
        ),
      ],
    },
    ({ alias, ...body }) => call("PUT", path("/v1/adapters", name, "aliases", alias), { version, ...body }),
    context,
  );
}

function rollBack({ name, aliases }, context) {
  const choices = Object.entries(aliases).map(([alias, version]) =>
    make("option", { value: alias, selected: alias === "live" }, `${alias} (now @${version})`),
  );
  return move(
    {
      title: `Roll ${name} back?`,
      consequences: ["The alias goes back to the version that it had before the last change; requests follow at once."],
      verb: "Roll back",
      fields: [field("Alias", make("select", { name: "alias" }, choices))],
    },
    (body) => call("POST", path("/v1/adapters", name, "rollback"), body),
    context,
  );
}

async function retire({ name }, version, context) {
  const done = await confirm(
    {
      title: `Retire ${name}@${version}?`,
      consequences: [
        "It can no longer be asked, nor get an alias. This cannot be undone: pushed again, the same files become a new version.",
      ],
      verb: "Retire",
      danger: true,
    },
    () => call("DELETE", path("/v1/adapters", name, "versions", version)),
  );
  if (done) await context.refresh();
}

function event({ id, at, action, alias, from_version, to_version, actor, reason }) {
  const what = [action, alias, from_version && `@${from_version} →`, to_version && `@${to_version}`]
    .filter(Boolean)
    .join(" ");
  return make(
    "tr",
    { key: id },
    make("td", {}, moment(at)),
    make("td", {}, what),
    make("td", {}, actor),
    make("td.text", {}, reason ?? ""),
  );
}

// -------------------------------------------------------------------------------------------- answers and feedback

/** Who answered: `@3`, and with an experiment the arm. */
const answeredBy = ({ adapter, arm }) => [`@${adapter.split("@")[1] ?? "base"}`, arm].filter(Boolean).join(" ");

function traffic({ answers: { data, more }, adapter }) {
  const by = [...groups(data, answeredBy)];
  return section(
    "Traffic and latency",
    {},
    soft(
      more ? `The last ${ANSWERS} logged answers. ` : "All logged answers. ",
      link(`/interactions?adapter=${adapter.name}`, "Read them"),
    ),
    overTime(`Answers of ${adapter.name} over time, by version and arm`, by, ({ created_at }) => created_at),
    by.length
      ? table(
          "Latency by version and arm",
          [
            "version, arm",
            ["answers", "num"],
            ["failed", "num"],
            ["first token", "num"],
            ["whole", "num"],
            ["tokens", "num"],
          ],
          by.map(([name, some]) =>
            make(
              "tr",
              { key: name },
              make("td", {}, name),
              make("td.num", {}, count(some.length)),
              make("td.num", {}, count(some.filter(({ status }) => status === "error").length)),
              make("td.num", {}, duration(median(some.map(({ timings }) => timings.first_token_ms)) / 1000)),
              make("td.num", {}, duration(median(some.map(({ timings }) => timings.total_ms)) / 1000)),
              make("td.num", {}, decimal(mean(some.map(({ usage }) => usage.completion_tokens)))),
            ),
          ),
        )
      : null,
    by.length ? soft("Medians; tokens of an answer on average.") : null,
  );
}

function overTime(label, by, at) {
  const moments = by.flatMap(([, some]) => some.map(at));
  if (!moments.length) return nothing("None yet.");
  const [first, last] = [Math.min(...moments), Math.max(...moments)];
  const width = [HOUR / 12, HOUR, DAY, 7 * DAY].find((width) => (last - first) / width < 40) ?? 30 * DAY;
  const start = Math.floor(first / width) * width;
  const counted = Array.from({ length: Math.floor((last - start) / width) + 1 }, (_, place) => ({
    x: start + place * width,
    parts: by.map(() => 0),
  }));
  by.forEach(([, some], part) =>
    some.forEach((entry) => counted[Math.floor((at(entry) - start) / width)].parts[part]++),
  );
  return bars(
    `${label}, each bar ${duration(width)}`,
    by.map(([name]) => name),
    counted,
  );
}

function judgements({ feedback: { data, more }, adapter }) {
  const by = [...groups(data, answeredBy)];
  const share = (some, test) => percent(some.filter(test).length / some.length);
  return section(
    "Feedback",
    {},
    soft(more ? `The last ${ANSWERS}.` : "All of it."),
    overTime(`Feedback on ${adapter.name} over time, by version and arm`, by, ({ at }) => at),
    by.length
      ? table(
          "Feedback by version and arm",
          [
            "version, arm",
            ["said", "num"],
            ["thumbs up", "num"],
            ["score", "num"],
            ["corrected", "num"],
            ["preferred", "num"],
          ],
          by.map(([name, some]) => {
            const thumbs = some.filter(({ thumb }) => thumb);
            const scores = some.map(({ score }) => score).filter((score) => score !== null);
            return make(
              "tr",
              { key: name },
              make("td", {}, name),
              make("td.num", {}, count(some.length)),
              make("td.num", {}, thumbs.length ? share(thumbs, ({ thumb }) => thumb === "up") : "–"),
              make("td.num", {}, decimal(mean(scores))),
              make("td.num", {}, count(some.filter(({ correction }) => correction !== null).length)),
              make("td.num", {}, count(some.filter(({ preferred_over }) => preferred_over).length)),
            );
          }),
        )
      : null,
  );
}

// --------------------------------------------------------------------------------------------------------- learning

function learning({ adapter, policy, plan, learned }, context) {
  const next = policy
    ? [
        facts({
          "next round": `number ${plan.number}, ${plan.control ? "from the base, to compare" : `continues ${plan.continues}`}`,
          "it has":
            Object.entries(plan.judgements)
              .map(([kind, number]) => `${count(number)} ${kind}`)
              .join(", ") || "no new judgement",
          "waits for": plan.waits_for ?? "nothing: it is due",
          method: policy.method,
          policy: [
            policy.after && `after ${plural(policy.after, "judgement")}`,
            policy.every_days && `every ${plural(policy.every_days, "day")}`,
          ]
            .filter(Boolean)
            .join(", or "),
        }),
        make(
          "div.actions",
          {},
          button("Begin the round now…", () => begin(adapter, plan, context)),
        ),
      ]
    : nothing("It has no learning policy. Give it one: ", code(`graftwork train ${adapter.name} --watch`));
  return section(
    "Learning",
    {},
    next,
    learned.data.length
      ? table(
          `Rounds of ${adapter.name}`,
          rounds.COLUMNS,
          learned.data.map((each) => rounds.row(each)),
        )
      : null,
  );
}

async function begin({ name }, plan, context) {
  const done = await confirm(
    {
      title: `Begin round ${plan.number} of ${name} now?`,
      consequences: [
        "A training job is submitted, with the judgements that there are. What is live changes only when its candidate passes.",
      ],
      verb: "Begin",
    },
    () => call("POST", "/v1/rounds", { adapter: name }),
  );
  if (done) await context.refresh();
}

function experimentsOf({ adapter, experiments: { data } }) {
  return section(
    "Experiments",
    { actions: [make("a", { href: `#/experiments?adapter=${adapter.name}` }, "Start one")] },
    data.length
      ? table(
          `Experiments on ${adapter.name}`,
          ["name", "metric", "state", ["units", "num"], "difference"],
          data.map((each) =>
            make(
              "tr",
              { key: each.name },
              make("td", {}, link(`/experiments/${each.name}`, each.name)),
              make("td", {}, each.metric.label),
              make("td", {}, pill(each.outcome?.decision ?? each.status, each.status === "running" ? "middling" : "")),
              make("td.num", {}, count(each.reading?.units ?? 0)),
              make(
                "td",
                {},
                (each.reading?.comparisons ?? []).map(({ arm, difference, lower, upper }) =>
                  make("div", {}, `${arm} ${decimal(difference)} (${decimal(lower)} to ${decimal(upper)})`),
                ),
              ),
            ),
          ),
        )
      : nothing("None."),
  );
}
