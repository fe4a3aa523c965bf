// The AI SDK with its provider for servers that are like OpenAI's.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

import * as ai from "./ai_sdk.mjs";
import { API_KEY, BASE_URL, MODEL, feature, main } from "./features.mjs";

const connect = (apiKey) =>
  createOpenAICompatible({
    name: "graftwork",
    baseURL: BASE_URL,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const provider = connect(API_KEY);
const chat = provider.chatModel(MODEL);

feature("chat", () => ai.answers(chat));
feature("streaming", () => ai.streams(chat));
feature("structured output", () => ai.keepsToSchema(chat));
feature("completions", () => ai.answers(provider.completionModel(MODEL)));
feature("tools: required", () => ai.callsTool(chat, "required"));
feature("tools: named", () => ai.callsTool(chat, ai.NAMED));
feature("tools: history", () => ai.goesOnAfterTool(chat, ai.NAMED));
feature("tools: streaming", () => ai.streamsToolCall(chat, ai.NAMED));
feature("embeddings", () => ai.embeds(provider.embeddingModel(MODEL)));
feature("error 400", () => ai.fails(chat, 400, { temperature: 5 }));
feature("error 401", () => ai.fails(connect("a-wrong-key").chatModel(MODEL), 401));
feature("error 404", () => ai.fails(provider.chatModel("nobody"), 404));
feature("error 429", () => ai.fails(chat, 429));

await main();
