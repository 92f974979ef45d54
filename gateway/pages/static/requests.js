// The list of requests, and the dialog that explains one.

import { definitions, element, find, row, table } from "./elements.js";
import { count, moment, money, when } from "./format.js";

const COLUMNS = [
  { title: "Time" },
  { title: "Customer" },
  { title: "Provider" },
  { title: "Model" },
  { title: "Tokens in", numeric: true },
  { title: "Tokens out", numeric: true },
  { title: "Cost", numeric: true },
  { title: "Charge", numeric: true },
  { title: "Status" },
  { title: "Billing" },
  { title: "Estimated" },
];
const LINES = [
  { title: "Tier from" },
  { title: "Rate" },
  { title: "Units", numeric: true },
  { title: "Fee", numeric: true },
];

/** What `Listing` shows; `nameOf(connection_id)` gives the customer's name. */
export function requestKind(nameOf) {
  return {
    section: "#requests",
    path: "requests",
    empty: "No requests yet. A call through the gateway is shown here a moment after it ends.",
    columns: COLUMNS,
    id: (item) => item.request_id,
    cells: (item) => [
      opener(item, nameOf),
      nameOf(item.connection_id),
      item.provider ?? "",
      item.model ?? "",
      count(item.model_usage.input_tokens),
      count(item.model_usage.output_tokens),
      money(item.cost),
      money(item.charge.amount),
      status(item),
      item.billing_mode,
      item.estimated ? "estimated" : "",
    ],
  };
}

function opener(item, nameOf) {
  const label = `${when(item.created_at)}: details of the request`;
  const button = element("button", { type: "button", class: "open", "aria-label": label }, when(item.created_at));
  button.onclick = () => explain(item, nameOf);
  return button;
}

function status(item) {
  const text = item.http_status >= 400 ? `${item.status} ${item.http_status}` : item.status;
  return element("span", { class: item.status === "completed" ? "good" : "bad" }, text);
}

function explain(item, nameOf) {
  const dialog = find("#detail");
  find(".content", dialog).replaceChildren(
    list("Request", facts(item, nameOf)),
    list("Usage", usage(item.model_usage)),
    list("Money", amounts(item)),
    element("h3", {}, "Fee by tier"),
    breakdown(item.fee),
    element("h3", {}, "Metadata"),
    metadata(item.metadata ?? {}),
  );
  dialog.showModal();
}

const list = (label, pairs) => element("dl", { "aria-label": label }, ...definitions(pairs));

function facts(item, nameOf) {
  return [
    ["Request id", item.request_id],
    ["Time", moment(item.created_at)],
    ["Customer", nameOf(item.connection_id)],
    ["Connection id", item.connection_id],
    ["Meter id", item.meter_id],
    ["Provider", item.provider],
    ["Provider key", item.provider_key_type],
    ["Model", item.model],
    ["Endpoint", item.endpoint],
    ["Response id", item.response_id],
    ["Status", item.http_status ? `${item.status} (HTTP ${item.http_status})` : item.status],
    ["Ending", item.ending],
    ["Streamed", item.streamed ? "yes" : "no"],
    ["Billing mode", item.billing_mode],
    ["Usage", item.estimated ? "estimated by the gateway" : "as the provider reported it"],
  ];
}

function usage(used) {
  const some = (number) => (number ? count(number) : null);
  return [
    ["Tokens in", count(used.input_tokens)],
    ["of these from cache", some(used.cached_input_tokens)],
    ["written to cache", some(used.cache_write_tokens)],
    ["Tokens out", count(used.output_tokens)],
    ["of these reasoning", some(used.reasoning_tokens)],
    ["Characters", some(used.total_characters)],
    ["Seconds", some(used.total_seconds)],
  ];
}

function amounts(item) {
  return [
    ["Provider's cost, input", money(item.model_usage.input_cost)],
    ["Provider's cost, output", money(item.model_usage.output_cost)],
    ["Provider's cost", money(item.cost)],
    ["Fee", money(item.fee.amount)],
    ["Charged to the customer", money(item.charge.amount)],
    ["Borne by the merchant", money(item.total_merchant_cost)],
  ];
}

function breakdown(fee) {
  if (fee.breakdown.length === 0) return element("p", { class: "empty" }, "No fee was computed for this request.");
  const rate = (tier) => (fee.rate_type === "percentage" ? `${tier.rate} %` : money(tier.rate));
  const made = table("Fee by tier", LINES);
  for (const line of fee.breakdown) {
    const cells = [count(line.tier.start), rate(line.tier), units(line), money(line.cost)];
    made.body.append(row(LINES, cells));
  }
  return made.root;
}

function units(line) {
  if (line.tokens) return `${count(line.tokens)} tokens`;
  if (line.characters) return `${count(line.characters)} characters`;
  return line.seconds ? `${count(line.seconds)} s` : "";
}

function metadata(given) {
  const pairs = Object.entries(given);
  if (pairs.length === 0) return element("p", { class: "empty" }, "None was sent with this request.");
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return element("dl", {}, ...definitions(pairs.map(([name, value]) => [name, text(value)])));
}
