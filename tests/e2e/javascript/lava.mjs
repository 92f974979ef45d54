// Makes calls with the published versions of @lavapayments/nodejs: one JSON object a line in, one out.
//
//   {"version": "11.2.0", "methods": true}                                 -> {"methods": ["customers.create", ...]}
//   {"version", "key", "baseUrl", "call": "customers.create", "args": []}  -> {"value", "broken": [...]} or {"error"}
//   {"version", "key", "baseUrl", "read": "providers"}                     -> {"value"}
//   {"version", "check": "customers.retrieve", "value": {...}}             -> {"broken"}, of a value from elsewhere
//
// `broken` says where the answer is not what that version's own types promise. A static method is called with its args
// alone.

import readline from "node:readline";
import { broken, typedMethods } from "./typed_methods.mjs";

const promises = new Map();
const promisesOf = (version) => {
  if (!promises.has(version)) promises.set(version, typedMethods(`lava-${version}`));
  return promises.get(version);
};

// From 8.1 on the key and the base URL may be left out, never before; apiVersion was a field until 11.
async function client({ version, key, baseUrl }) {
  const { Lava } = await import(`lava-${version}`);
  return new Lava(key, { apiVersion: "2025-04-28.v1", baseUrl });
}

const reach = (from, path) => path.split(".").reduce((at, name) => at?.[name], from);

async function answer(order) {
  const promised = promisesOf(order.version);
  if (order.methods) return { methods: Object.keys(promised) };
  if (order.check) return { broken: broken(order.value, promised[order.check]) };
  const { Lava } = await import(`lava-${order.version}`);
  const statics = order.call in Lava;
  const lava = statics ? Lava : await client(order);
  if (order.read) return { value: reach(lava, order.read) };
  const owner = order.call.includes(".") ? reach(lava, order.call.slice(0, order.call.lastIndexOf("."))) : lava;
  const value = await owner[order.call.slice(order.call.lastIndexOf(".") + 1)](...order.args);
  return { value, broken: broken(value, promised[order.call]) };
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const told = await answer(JSON.parse(line)).catch((error) => ({ error: error.message ?? String(error) }));
  process.stdout.write(`${JSON.stringify(told)}\n`);
}
