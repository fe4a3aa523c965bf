/** One request with its answers, and all that was said of them. */

import { get, path } from "../api.js";
import { code, facts, link, make, nothing, pill, section, soft, table } from "../dom.js";
import { count, decimal, duration, moment } from "../format.js";
import { promptOf, textOf } from "./interactions.js";

export const title = "Interaction";

export const load = ({ names: [id] }) => get(path("/v1/interactions", id));

export function show(interaction) {
  const {
    id,
    created_at,
    status,
    error,
    messages,
    completions,
    adapter,
    model,
    experiment,
    arm,
    usage,
    timings,
    feedback,
    sampling,
  } = interaction;
  const [name] = adapter.split("@");
  const said = messages ?? [{ role: "prompt", content: promptOf(interaction) }];
  return [
    make(
      "div.head",
      {},
      soft(link("/interactions", "Interactions"), " /"),
      make("h1", {}, moment(created_at)),
      status === "ok" ? null : pill(status, status === "error" ? "bad" : "middling"),
    ),
    error ? make("p.bad", {}, error) : null,
    section(
      "Conversation",
      {},
      said.map((each) => message(each.role, textOf(each))),
      completions.map(({ index, text, finish_reason, tool_calls }) =>
        message(
          "assistant",
          [text, tool_calls && JSON.stringify(tool_calls, null, 1)].filter(Boolean).join("\n"),
          [completions.length > 1 && `answer ${index + 1}`, finish_reason ?? "interrupted"].filter(Boolean).join(", "),
        ),
      ),
    ),
    make(
      "div.columns",
      {},
      section(
        "Feedback",
        {},
        feedback.length
          ? table(
              "Feedback",
              ["when", "said", "by"],
              feedback.map((row) =>
                make(
                  "tr",
                  { key: row.id },
                  make("td", {}, moment(row.at)),
                  make("td.text", {}, judgement(row)),
                  make("td", {}, row.user ?? row.key_id ?? ""),
                ),
              ),
            )
          : nothing("None."),
      ),
      section(
        "How it came about",
        {},
        facts({
          model,
          "answered by": adapter.includes("@") ? link(`/adapters/${name}`, adapter) : adapter,
          experiment: experiment && [link(`/experiments/${experiment}`, experiment), ` arm ${arm}`],
          tokens: `${count(usage.prompt_tokens)} read, ${count(usage.completion_tokens)} written`,
          waited: duration(timings.queue_ms / 1000),
          "first token": duration((timings.first_token_ms ?? NaN) / 1000),
          whole: duration(timings.total_ms / 1000),
          user: interaction.user,
          key: interaction.key_id && code(interaction.key_id),
          episode: interaction.episode,
          sampling: JSON.stringify(sampling),
          metadata: interaction.metadata && JSON.stringify(interaction.metadata),
          id: code(id),
        }),
      ),
    ),
  ];
}

const message = (role, text, about = "") =>
  make(
    role === "assistant" ? "div.message.assistant" : "div.message",
    {},
    soft(role, about && `, ${about}`),
    make("pre", {}, text),
  );

function judgement({ thumb, score, correction, preferred_over, comment, metadata, erased_at }) {
  return [
    thumb && `thumb ${thumb}`,
    score !== null && `score ${decimal(score)}`,
    correction !== null && `correction: ${correction}`,
    preferred_over && "preferred to another answer",
    comment && `“${comment}”`,
    metadata && JSON.stringify(metadata),
    erased_at && "its words were erased",
  ]
    .filter(Boolean)
    .map((line) => make("div", {}, line));
}
