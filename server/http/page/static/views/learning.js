/** Training: adapters that learn by themselves, their rounds, and all jobs. */

import { get, list } from "../api.js";
import { code, link, make, pill, section, soft, tableOr, titled } from "../dom.js";
import { ago, count, decimal, duration, moment, plural } from "../format.js";
import * as rounds from "./round.js";

export const title = "Learning";

/** How jobs end, and the class of each. */
export const ENDS = { succeeded: "good", failed: "bad", cancelled: "soft" };

export async function load() {
  const [jobs, rounds, policies] = await Promise.all([
    list("/v1/fine_tuning/jobs", { most: 50 }),
    list("/v1/rounds", { most: 50 }),
    get("/v1/learning_policies"),
  ]);
  return { jobs, rounds, policies };
}

export const show = ({ jobs, rounds: { data, more }, policies }) => [
  make("h1", {}, "Learning"),
  section("Policies", {},
    tableOr(["No adapter learns by itself. ", code("graftwork train NAME --watch")], "Learning policies", POLICIES,
      policies.data, { key: ({ adapter }) => adapter })),
  section("Rounds", {}, tableOr("None yet.", "Rounds", rounds.COLUMNS, data), more ? soft("and older ones") : null),
  section("Jobs", {},
    tableOr(["None yet. ", code("graftwork train NAME --data FILE")], "Jobs", JOBS, jobs.data),
    jobs.more ? soft("and older ones") : null),
];

const POLICIES = [
  ["adapter", ({ adapter }) => link(`/adapters/${adapter}`, adapter)],
  ["a round begins", ({ after, every_days, at_least }) =>
    [
      after && `after ${plural(after, "judgement")}`,
      every_days && `every ${plural(every_days, "day")} with ${at_least}`,
    ].filter(Boolean).join(", or ")],
  ["judgements", "num", ({ judgements }) => count(judgements)],
  ["waits for", "text", ({ waits_for }) => waits_for ?? pill("due", "middling")],
  ["rounds", "num", ({ rounds }) => count(rounds)],
  ["last", ({ last_round }) => last_round && link(`/rounds/${last_round.id}`, last_round.state)],
];

const JOBS = [
  ["job", ({ id }) => link(`/jobs/${id}`, id)],
  ["adapter", ({ graftwork: { adapter } }) => link(`/adapters/${adapter}`, adapter)],
  ["method", ({ graftwork: { method } }) => method],
  ["state", ({ status }) => pill(status, ENDS[status] ?? "middling")],
  ["progress", progressOf],
  ["loss", "num", ({ graftwork: { progress } }) => (progress.loss === undefined ? "" : decimal(progress.loss))],
  ["version", ({ fine_tuned_model }) => fine_tuned_model && code(fine_tuned_model)],
  ["submitted", "soft", ({ created_at }) => titled(moment(created_at), ago(created_at))],
];

function progressOf({ status, estimated_finish, graftwork: { progress } }) {
  const { step, total, phase } = progress;
  if (status !== "running" || !total) return phase;
  const left = estimated_finish ? soft(`, ${duration(estimated_finish - Date.now() / 1000)} left`) : null;
  return [make("progress", { max: total, value: step, "aria-label": "steps done" }), ` ${step} of ${total}`, left];
}
