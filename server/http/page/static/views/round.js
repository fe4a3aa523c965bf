/** One round of learning, and how rounds are listed. */

import { call, get, path } from "../api.js";
import { confirm } from "../dialog.js";
import { button, code, facts, heading, link, make, pill, section, soft, titled } from "../dom.js";
import { ago, count, moment } from "../format.js";
import { judgement, outcome } from "./gates.js";

export const title = "Round";

const STATES = { promoted: "good", failed: "bad", set_aside: "soft", cancelled: "soft", undone: "soft" };

const stateOf = ({ state }) => pill(state.replace("_", " "), STATES[state] ?? "middling");

/** The columns of a table of rounds. */
export const COLUMNS = [
  ["round", ({ id, number, control }) => [link(`/rounds/${id}`, `round ${number}`), control && soft(" from the base")]],
  ["adapter", ({ adapter }) => link(`/adapters/${adapter}`, adapter)],
  ["state", stateOf],
  ["candidate", ({ candidate }) => candidate && code(candidate)],
  ["gates", ({ gates }) => outcome(gates)],
  ["begun", "soft", ({ created_at }) => titled(moment(created_at), ago(created_at))],
];

export const load = ({ names: [id] }) => get(path("/v1/rounds", id));

export function show(round, context) {
  const { adapter, number, state, gates, decision, candidate, live } = round;
  const actions = [
    candidate && make("a", { href: `#/playground?left=${live}&right=${candidate}` }, "Ask both"),
    state === "undone" ? null : button("Undo…", () => undo(round, context)),
  ];
  return [
    heading(`Round ${number} of ${adapter}`, { under: ["/learning", "Learning"], actions }, stateOf(round)),
    about(round),
    gates ? section("Gates", {}, judgement(gates)) : null,
    decision ? section("Decision", {}, facts({ ...decision, at: moment(decision.at) })) : null,
  ];
}

function about(round) {
  const { adapter, job, experiment, candidate } = round;
  const numbers = (of) =>
    Object.entries(of ?? {}).map(([name, value]) => `${count(value)} ${name.replaceAll("_", " ")}`).join(", ");
  return section("What it is", {}, facts({
    adapter: link(`/adapters/${adapter}`, adapter),
    reason: round.reason,
    begins: round.control ? "with the base, to compare" : `with ${round.continues}`,
    live: code(round.live),
    candidate: candidate && code(candidate),
    judgements: numbers(round.judgements),
    rows: numbers(round.rows),
    "data digest": round.data_digest && code(round.data_digest),
    job: link(`/jobs/${job}`, job),
    experiment: experiment && link(`/experiments/${experiment}`, experiment),
    begun: `${moment(round.created_at)}, by ${round.created_by}`,
    ended: round.ended_at && moment(round.ended_at),
  }));
}

async function undo({ id, adapter, number, state, live }, context) {
  const done = await confirm({
    title: `Undo round ${number} of ${adapter}?`,
    consequences: [
      state === "promoted"
        ? `What is live goes back to the version before it (${live} when the round began).`
        : "Its job is cancelled, or its experiment stopped, if one is under way.",
    ],
    verb: "Undo",
    reason: true,
    danger: true,
  }, (body) => call("POST", path("/v1/rounds", id, "undo"), body));
  if (done) await context.refresh();
}
