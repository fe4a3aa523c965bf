// The AI SDK with its provider for OpenAI, which prefers responses and can be told to use chat completions.

import { createOpenAI } from "@ai-sdk/openai";

import * as ai from "./ai_sdk.mjs";
import { API_KEY, BASE_URL, MODEL, feature, main } from "./features.mjs";

const provider = createOpenAI({ baseURL: BASE_URL, apiKey: API_KEY });
const chat = provider.chat(MODEL);
const responses = provider.responses(MODEL);

feature("chat", () => ai.answers(chat));
feature("streaming", () => ai.streams(chat));
feature("structured output", () => ai.keepsToSchema(chat));
feature("completions", () => ai.answers(provider.completion(MODEL)));
feature("tools: required", () => ai.callsTool(chat, "required"));
feature("tools: named", () => ai.callsTool(chat, ai.NAMED));
feature("tools: history", () => ai.goesOnAfterTool(chat, ai.NAMED));
feature("tools: streaming", () => ai.streamsToolCall(chat, ai.NAMED));
feature("responses", () => ai.answers(responses));
feature("responses: streaming", () => ai.streams(responses));
feature("responses: tools", async () => {
  await ai.goesOnAfterTool(responses, ai.NAMED);
  await ai.streamsToolCall(responses, ai.NAMED);
});
feature("responses: structured output", () => ai.keepsToSchema(responses));
feature("embeddings", () => ai.embeds(provider.embedding(MODEL)));
feature("error 400", () => ai.fails(chat, 400, { temperature: 5 }));
feature("error 401", () => ai.fails(createOpenAI({ baseURL: BASE_URL, apiKey: "a-wrong-key" }).chat(MODEL), 401));
feature("error 404", () => ai.fails(provider.chat("nobody"), 404));
feature("error 429", () => ai.fails(chat, 429));

await main();
