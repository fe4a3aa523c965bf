/** One round of learning, and how rounds are listed. */

import { call, get, path } from "../api.js";
import { confirm } from "../dialog.js";
import { button, code, facts, link, make, pill, section, soft } from "../dom.js";
import { ago, count, moment } from "../format.js";

export const title = "Round";

export const COLUMNS = ["round", "adapter", "state", "candidate", "gates", "begun"];

const OUTCOMES = { pass: "good", refuse: "bad", inconclusive: "middling" };
const STATES = { promoted: "good", failed: "bad", set_aside: "soft", cancelled: "soft", undone: "soft" };

export const row = ({ id, number, adapter, state, candidate, gates, created_at, control }) =>
  make(
    "tr",
    { key: id },
    make("td", {}, link(`/rounds/${id}`, `round ${number}`), control ? soft(" from the base") : null),
    make("td", {}, link(`/adapters/${adapter}`, adapter)),
    make("td", {}, pill(state, STATES[state] ?? "middling")),
    make("td", {}, candidate ? code(candidate) : ""),
    make("td", {}, gates ? pill(gates.outcome, OUTCOMES[gates.outcome]) : ""),
    make("td.soft", { title: moment(created_at) }, ago(created_at)),
  );

export const load = ({ names: [id] }) => get(path("/v1/rounds", id));

export function show(round, context) {
  const { adapter, number, state, gates, decision, job, experiment, candidate, live, judgements, rows } = round;
  const numbers = (of) =>
    Object.entries(of ?? {})
      .map(([name, value]) => `${count(value)} ${name.replaceAll("_", " ")}`)
      .join(", ");
  return [
    make(
      "div.head",
      {},
      soft(link("/learning", "Learning"), " /"),
      make("h1", {}, `Round ${number} of ${adapter}`),
      pill(state, STATES[state] ?? "middling"),
      make(
        "div.actions",
        {},
        candidate ? make("a", { href: `#/playground?left=${live}&right=${candidate}` }, "Ask both") : null,
        state === "undone" ? null : button("Undo…", () => undo(round, context)),
      ),
    ),
    section(
      "What it is",
      {},
      facts({
        adapter: link(`/adapters/${adapter}`, adapter),
        reason: round.reason,
        begins: round.control ? "with the base, to compare" : `with ${round.continues}`,
        live: code(live),
        candidate: candidate ? code(candidate) : null,
        judgements: numbers(judgements),
        rows: numbers(rows),
        "data digest": round.data_digest && code(round.data_digest),
        job: link(`/jobs/${job}`, job),
        experiment: experiment && link(`/experiments/${experiment}`, experiment),
        begun: `${moment(round.created_at)}, by ${round.created_by}`,
        ended: round.ended_at && moment(round.ended_at),
      }),
    ),
    gates
      ? section(
          "Gates",
          {},
          pill(gates.outcome, OUTCOMES[gates.outcome]),
          [...gates.refusals, ...gates.doubts].map((why) => make("p", {}, why)),
        )
      : null,
    decision
      ? section(
          "Decision",
          {},
          facts({ by: decision.by, at: moment(decision.at), reason: decision.reason, replaced: decision.replaced }),
        )
      : null,
  ];
}

async function undo({ id, adapter, number, state, live }, context) {
  const done = await confirm(
    {
      title: `Undo round ${number} of ${adapter}?`,
      consequences: [
        state === "promoted"
          ? `What is live goes back to the version before it (${live} when the round began).`
          : "Its job is cancelled, or its experiment stopped, if one is under way.",
      ],
      verb: "Undo",
      reason: true,
      danger: true,
    },
    (body) => call("POST", path("/v1/rounds", id, "undo"), body),
  );
  if (done) await context.refresh();
}
