// Makes the calls that test_javascript.py asks for, with the vendors' own packages: one JSON object a line in, one out.
//
//   {"client": "openai.chat", "baseURL": ..., "key": ..., "model": ..., "prompt": ..., "stream": true, "headers": {...}}
//   {"text": ..., "tools": [names], "usage": {"input": n, "output": n}}  or  {"error": {"name", "status", "message"}}

import readline from "node:readline";
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import OpenAI6 from "openai-6";
import { z } from "zod";

const openai = ({ client, baseURL, key, headers }) =>
  new (client.startsWith("openai-6") ? OpenAI6 : OpenAI)({ baseURL, apiKey: key, maxRetries: 0, defaultHeaders: headers });
const anthropic = ({ baseURL, key, headers }) =>
  new Anthropic({ baseURL, apiKey: key, maxRetries: 0, defaultHeaders: headers });
const messages = (call) => [{ role: "user", content: call.prompt }];

async function openaiChat(call) {
  const ask = { model: call.model, messages: messages(call) };
  if (!call.stream) {
    const answer = await openai(call).chat.completions.create(ask);
    const { content, tool_calls: tools } = answer.choices[0].message;
    return { text: content, tools: (tools ?? []).map((one) => one.function.name), usage: tokens(answer.usage) };
  }
  const stream = openai(call).chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
  const answer = await stream.finalChatCompletion();
  const { content, tool_calls: tools } = answer.choices[0].message;
  return { text: content, tools: (tools ?? []).map((one) => one.function.name), usage: tokens(await stream.totalUsage()) };
}

async function openaiResponses(call) {
  const ask = { model: call.model, input: call.prompt };
  const client = openai(call).responses;
  const answer = await (call.stream ? client.stream(ask).finalResponse() : client.create(ask));
  const tools = answer.output.filter((item) => item.type === "function_call").map((item) => item.name);
  return { text: answer.output_text, tools, usage: tokens(answer.usage) };
}

async function openaiEmbeddings(call) {
  const answer = await openai(call).embeddings.create({ model: call.model, input: [call.prompt, "more"] });
  return { text: answer.data.map((one) => one.embedding.length).join(" "), usage: tokens(answer.usage) };
}

async function anthropicMessages(call) {
  const ask = { model: call.model, max_tokens: 20_000, messages: messages(call) };
  const client = anthropic(call).messages;
  const answer = await (call.stream ? client.stream(ask).finalMessage() : client.create(ask));
  const of = (type) => answer.content.filter((block) => block.type === type);
  return {
    text: of("text").map((block) => block.text).join(""),
    tools: of("tool_use").map((block) => block.name),
    usage: tokens(answer.usage),
  };
}

// The packages under the AI SDK take the key and the base URL by the same names.
const MODELS = {
  "ai.openai": (options, call) => createOpenAI(options)(call.model),
  "ai.openai.chat": (options, call) => createOpenAI(options).chat(call.model),
  "ai.openai-compatible": (options, call) =>
    createOpenAICompatible({ ...options, name: "obol", includeUsage: true })(call.model),
  "ai.anthropic": (options, call) => createAnthropic(options)(call.model),
  "ai.google": (options, call) => createGoogleGenerativeAI(options)(call.model),
};
const EMBEDDINGS = {
  "ai.openai": (options, call) => createOpenAI(options).textEmbeddingModel(call.model),
  "ai.google": (options, call) => createGoogleGenerativeAI(options).textEmbeddingModel(call.model),
};
const options = ({ baseURL, key, headers }) => ({ baseURL, apiKey: key, headers });
const anything = tool({ description: "Anything.", inputSchema: z.object({}).loose() });

async function aiText(call) {
  const tools = Object.fromEntries((call.tools ?? []).map((name) => [name, anything]));
  const ask = { model: MODELS[call.client](options(call), call), prompt: call.prompt, tools, maxRetries: 0 };
  if (!call.stream) {
    const answer = await generateText(ask);
    return { text: answer.text, tools: answer.toolCalls.map((one) => one.toolName), usage: aiTokens(answer.usage) };
  }
  const stream = streamText({ ...ask, onError: () => {} });
  let text = "";
  const called = [];
  for await (const part of stream.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
    if (part.type === "tool-call") called.push(part.toolName);
  }
  return { text, tools: called, usage: aiTokens(await stream.usage) };
}

async function aiEmbeddings(call) {
  const model = EMBEDDINGS[call.client](options(call), call);
  const answer = await embedMany({ model, values: [call.prompt, "more"], maxRetries: 0 });
  return { text: answer.embeddings.map((one) => one.length).join(" "), usage: { input: answer.usage.tokens } };
}

const tokens = (usage) => ({
  input: usage.prompt_tokens ?? usage.input_tokens,
  output: usage.completion_tokens ?? usage.output_tokens,
});
const aiTokens = (usage) => ({ input: usage.inputTokens, output: usage.outputTokens });

const CALLS = {
  "openai.chat": openaiChat,
  "openai-6.chat": openaiChat, // before 7.25 it percent-encoded a base URL's query
  "openai.responses": openaiResponses,
  "openai.embeddings": openaiEmbeddings,
  "anthropic.messages": anthropicMessages,
};

async function answer(call) {
  try {
    if (call.client in CALLS) return await CALLS[call.client](call);
    return await (call.embeddings ? aiEmbeddings(call) : aiText(call));
  } catch (error) {
    // Most give their errors no name but their class's.
    const name = error.name === "Error" ? error.constructor.name : error.name;
    const message = error.message ?? JSON.stringify(error);
    return { error: { name, status: error.status ?? error.statusCode, message } };
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
}
