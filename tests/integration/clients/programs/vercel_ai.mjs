// Vercel's AI SDK with its provider for OpenAI-compatible servers: text, a stream, a tool. Arguments: URL MODEL.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const [url, name] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "minedraft", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true });
const asked = { model: provider(name), prompt: "Hello", temperature: 0, maxOutputTokens: 20, maxRetries: 0 };

const whole = await generateText(asked);
assert.ok(whole.usage.outputTokens > 0);
const stream = streamText(asked);
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, whole.text);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

const schema = { type: "object", properties: { n: { enum: [1, 2] } }, required: ["n"], additionalProperties: false };
const tools = { pick: tool({ description: "Picks.", inputSchema: jsonSchema(schema), execute: async ({ n }) => n }) };
const called = await generateText({ ...asked, maxOutputTokens: 200, tools, toolChoice: { type: "tool", toolName: "pick" } });
assert.ok([1, 2].includes(called.toolResults[0].output));
console.log("ok");
