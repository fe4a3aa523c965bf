/** Training: rounds of adapters that learn by themselves, and all jobs. */

import { get, list } from "../api.js";
import { code, link, make, nothing, pill, section, soft, table } from "../dom.js";
import { ago, count, decimal, duration, moment, plural } from "../format.js";
import * as round from "./round.js";

export const title = "Learning";

export const STATUSES = { succeeded: "good", failed: "bad", cancelled: "soft" };

export async function load() {
  const [jobs, rounds, policies] = await Promise.all([
    list("/v1/fine_tuning/jobs", { most: 50 }),
    list("/v1/rounds", { most: 50 }),
    get("/v1/learning_policies"),
  ]);
  return { jobs, rounds, policies };
}

export function show({ jobs, rounds, policies }) {
  return [
    make("h1", {}, "Learning"),
    section(
      "Policies",
      {},
      policies.data.length
        ? table(
            "Learning policies",
            ["adapter", "a round begins", ["judgements", "num"], "waits for", ["rounds", "num"], "last"],
            policies.data.map(policy),
          )
        : nothing("No adapter learns by itself. ", code("graftwork train NAME --watch")),
    ),
    section(
      "Rounds",
      {},
      rounds.data.length ? table("Rounds", round.COLUMNS, rounds.data.map(round.row)) : nothing("None yet."),
      rounds.more ? soft("and older ones") : null,
    ),
    section(
      "Jobs",
      {},
      jobs.data.length
        ? table(
            "Jobs",
            ["job", "adapter", "method", "state", "progress", ["loss", "num"], "version", "submitted"],
            jobs.data.map(job),
          )
        : nothing("None yet. ", code("graftwork train NAME --data FILE")),
      jobs.more ? soft("and older ones") : null,
    ),
  ];
}

function policy({ adapter, after, every_days, at_least, judgements, waits_for, rounds, last_round }) {
  const when = [
    after && `after ${plural(after, "judgement")}`,
    every_days && `every ${plural(every_days, "day")} with ${at_least}`,
  ];
  return make(
    "tr",
    { key: adapter },
    make("td", {}, link(`/adapters/${adapter}`, adapter)),
    make("td", {}, when.filter(Boolean).join(", or ")),
    make("td.num", {}, count(judgements)),
    make("td.text", {}, waits_for ?? pill("due", "middling")),
    make("td.num", {}, count(rounds)),
    make("td", {}, last_round ? link(`/rounds/${last_round.id}`, last_round.state) : ""),
  );
}

function job({ id, status, fine_tuned_model, created_at, estimated_finish, graftwork: { adapter, method, progress } }) {
  return make(
    "tr",
    { key: id },
    make("td", {}, link(`/jobs/${id}`, id)),
    make("td", {}, link(`/adapters/${adapter}`, adapter)),
    make("td", {}, method),
    make("td", {}, pill(status, STATUSES[status] ?? "middling")),
    make(
      "td",
      {},
      status === "running" && progress.total
        ? [
            make("progress", { max: progress.total, value: progress.step, "aria-label": "steps done" }),
            ` ${progress.step} of ${progress.total}`,
            estimated_finish ? soft(`, ${duration(estimated_finish - Date.now() / 1000)} left`) : null,
          ]
        : (progress.phase ?? ""),
    ),
    make("td.num", {}, progress.loss === undefined ? "" : decimal(progress.loss)),
    make("td", {}, fine_tuned_model ? code(fine_tuned_model) : ""),
    make("td.soft", { title: moment(created_at) }, ago(created_at)),
  );
}
