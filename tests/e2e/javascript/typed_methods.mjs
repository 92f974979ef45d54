// What each published version of @lavapayments/nodejs promises, read from its own index.d.ts with the TypeScript compiler.
//
// A promise is a tree: {is: "string" | "number" | "boolean" | "null" | "anything"}, {is: "literal", value},
// {is: "one of", options}, {is: "list", of}, {is: "map", of}, {is: "object", fields: {name: {optional, type}}}.

import { createRequire } from "node:module";
import ts from "typescript";

const require = createRequire(import.meta.url);
// Without the types of browsers, which no promise names and which take a second to read.
const OPTIONS = { strict: true, skipLibCheck: true, types: [], noResolve: true, lib: ["lib.es2020.d.ts"] };
const sources = new Map();
const host = ts.createCompilerHost(OPTIONS);
const parsed = host.getSourceFile;
host.getSourceFile = (file, ...more) => {
  if (!sources.has(file)) sources.set(file, parsed(file, ...more));
  return sources.get(file);
};
const PRIMITIVE = [
  [ts.TypeFlags.StringLiteral | ts.TypeFlags.NumberLiteral, (type) => ({ is: "literal", value: type.value })],
  [ts.TypeFlags.BooleanLiteral, (type) => ({ is: "literal", value: type.intrinsicName === "true" })],
  [ts.TypeFlags.String, () => ({ is: "string" })],
  [ts.TypeFlags.Number, () => ({ is: "number" })],
  [ts.TypeFlags.Null, () => ({ is: "null" })],
  [ts.TypeFlags.Any | ts.TypeFlags.Unknown | ts.TypeFlags.TypeParameter, () => ({ is: "anything" })],
];

// {"customers.retrieve": promise, ...} of a package, over all resources of its class Lava, and what it has itself.
export function typedMethods(packageName) {
  const file = require.resolve(packageName).replace(/\.js$/, ".d.ts");
  const program = ts.createProgram([file], OPTIONS, host);
  const checker = program.getTypeChecker();
  const source = program.getSourceFile(file);
  const lava = checker.getExportsOfModule(checker.getSymbolAtLocation(source)).find((one) => one.name === "Lava");
  const methods = {};
  for (const property of checker.getDeclaredTypeOfSymbol(lava).getProperties()) {
    const type = checker.getTypeOfSymbol(property);
    if (type.symbol?.name.endsWith("Resource")) addMethods(checker, methods, `${property.name}.`, type.getProperties());
  }
  const own = [...checker.getDeclaredTypeOfSymbol(lava).getProperties(), ...checker.getTypeOfSymbol(lava).getProperties()];
  addMethods(checker, methods, "", own);
  return methods;
}

function addMethods(checker, methods, prefix, symbols) {
  for (const symbol of symbols) {
    const [signature] = checker.getTypeOfSymbol(symbol).getCallSignatures();
    if (!signature) continue;
    const modifiers = ts.getCombinedModifierFlags(symbol.valueDeclaration);
    if (modifiers & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) continue;
    methods[prefix + symbol.name] = promise(checker, settled(checker, signature.getReturnType()));
  }
}

const settled = (checker, type) => (type.symbol?.name === "Promise" ? checker.getTypeArguments(type)[0] : type);

function promise(checker, type) {
  if (type.isUnion()) {
    const options = type.types.filter((one) => !(one.flags & ts.TypeFlags.Undefined));
    if (options.length > 1) return { is: "one of", options: options.map((one) => promise(checker, one)) };
    [type] = options;
  }
  for (const [flags, make] of PRIMITIVE) if (type.flags & flags) return make(type);
  if (checker.isArrayType(type)) return { is: "list", of: promise(checker, checker.getTypeArguments(type)[0]) };
  const index = checker.getIndexInfosOfType(type)[0];
  if (index) return { is: "map", of: promise(checker, index.type) };
  const fields = {};
  for (const symbol of checker.getPropertiesOfType(type)) {
    const optional = Boolean(symbol.flags & ts.SymbolFlags.Optional);
    fields[symbol.name] = { optional, type: promise(checker, checker.getTypeOfSymbol(symbol)) };
  }
  return { is: "object", fields };
}

// The places at which a value breaks a promise, such as "data[0].contact.phone: is not there".
export function broken(value, promised, place = "") {
  switch (promised.is) {
    case "anything":
      return [];
    case "literal":
      return value === promised.value ? [] : [`${place}: ${JSON.stringify(value)} is not ${JSON.stringify(promised.value)}`];
    case "one of": {
      const tried = promised.options.map((option) => broken(value, option, place));
      // Nobody fits: what an object lacks says more than that it is not null.
      return tried.some((faults) => faults.length === 0) ? [] : tried[tried.length - 1];
    }
    case "list":
      if (!Array.isArray(value)) return [`${place}: is not a list`];
      return value.flatMap((item, number) => broken(item, promised.of, `${place}[${number}]`));
    case "map":
      if (!isObject(value)) return [`${place}: is not an object`];
      return Object.entries(value).flatMap(([name, item]) => broken(item, promised.of, `${place}.${name}`));
    case "object":
      if (!isObject(value)) return [`${place}: is not an object`];
      return Object.entries(promised.fields).flatMap(([name, field]) => brokenField(value, name, field, place));
    case "null":
      return value === null ? [] : [`${place}: ${JSON.stringify(value)} is not null`];
    default:
      return typeof value === promised.is ? [] : [`${place}: ${JSON.stringify(value)} is not a ${promised.is}`];
  }
}

// Where a field may be left out, null says that it was.
function brokenField(value, name, field, place) {
  if (field.optional && value[name] == null) return [];
  if (value[name] === undefined) return [`${place}.${name}: is not there`];
  return broken(value[name], field.type, `${place}.${name}`);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
