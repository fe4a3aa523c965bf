/** One request with its answers, and all that was said of them. */

import { get, path } from "../api.js";
import { code, facts, heading, link, make, section, soft, tableOr } from "../dom.js";
import { count, decimal, duration, moment } from "../format.js";
import { promptOf, statusOf, textOf } from "./interactions.js";

export const title = "Interaction";

export const load = ({ names: [id] }) => get(path("/v1/interactions", id));

export function show(interaction) {
  const { created_at, error, messages, completions, feedback } = interaction;
  const asked = messages ?? [{ role: "prompt", content: promptOf(interaction) }];
  return [
    heading(moment(created_at), { under: ["/interactions", "Interactions"] }, statusOf(interaction)),
    error ? make("p.bad", {}, error) : null,
    section("Conversation", {},
      asked.map((each) => message(each.role, textOf(each))),
      completions.map((each) => answer(each, completions.length))),
    make("div.columns", {},
      section("Feedback", {}, tableOr("None.", "Feedback", FEEDBACK, feedback)),
      section("How it came about", {}, about(interaction))),
  ];
}

function answer({ index, text, finish_reason, tool_calls }, number) {
  const which = [number > 1 && `answer ${index + 1}`, finish_reason ?? "interrupted"].filter(Boolean).join(", ");
  return message("assistant", textOf({ content: text, tool_calls }), `, ${which}`);
}

const message = (role, text, about = "") =>
  make(role === "assistant" ? "div.message.assistant" : "div.message", {}, soft(role, about), make("pre", {}, text));

const FEEDBACK = [
  ["when", ({ at }) => moment(at)],
  ["said", "text", (row) => judgements(row).map((line) => make("div", {}, line))],
  ["by", ({ user, key_id }) => user ?? key_id],
];

const judgements = ({ thumb, score, correction, preferred_over, comment, metadata, erased_at }) => [
  thumb && `thumb ${thumb}`,
  score !== null && `score ${decimal(score)}`,
  correction !== null && `correction: ${correction}`,
  preferred_over && "preferred to another answer",
  comment && `“${comment}”`,
  metadata && JSON.stringify(metadata),
  erased_at && "its words were erased",
].filter(Boolean);

function about({ id, adapter, model, experiment, arm, usage, timings, sampling, user, key_id, episode, metadata }) {
  const [name] = adapter.split("@");
  return facts({
    model,
    "answered by": name === adapter ? adapter : link(`/adapters/${name}`, adapter),
    experiment: experiment && [link(`/experiments/${experiment}`, experiment), ` arm ${arm}`],
    tokens: `${count(usage.prompt_tokens)} read, ${count(usage.completion_tokens)} written`,
    waited: duration((timings.queue_ms ?? NaN) / 1000),
    "first token": duration((timings.first_token_ms ?? NaN) / 1000),
    whole: duration(timings.total_ms / 1000),
    user,
    key: key_id && code(key_id),
    episode,
    sampling: Object.entries(sampling).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", "),
    metadata: metadata && JSON.stringify(metadata),
    id: code(id),
  });
}
