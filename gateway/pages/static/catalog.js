// The lists of connections and of meters.

import { element } from "./elements.js";
import { count, money } from "./format.js";

const UNITS = { tokens_1m: "1M tokens", characters_1m: "1M characters", minutes: "minute", requests: "request" };
const COUNTED = { tokens_1m: "tokens", characters_1m: "characters", minutes: "minutes", requests: "requests" };

/** The shortest that tells a customer: a name, else what the merchant calls it, else the id. */
export function customerName(connection) {
  const { first_name: first, last_name: last, email } = connection.contact;
  return [first, last].filter(Boolean).join(" ") || connection.reference_id || email || connection.connection_id;
}

export const CONNECTIONS = {
  section: "#connections",
  path: "connections",
  empty: "No connections yet. Each customer whose calls are billed has one.",
  columns: [
    { title: "Customer" },
    { title: "Reference" },
    { title: "Plan" },
    { title: "Balance", numeric: true },
    { title: "Available", numeric: true },
    { title: "Plan credit", numeric: true },
    { title: "Bundles", numeric: true },
    { title: "Prepaid", numeric: true },
    { title: "Overage", numeric: true },
    { title: "Held", numeric: true },
  ],
  id: (item) => item.connection_id,
  cells: (item) => [
    titled(customerName(item), item.connection_id),
    item.reference_id ?? "",
    item.subscription ? plan(item.subscription) : "",
    money(item.wallet.balance),
    item.balances.available === null ? "no limit" : money(item.balances.available),
    ...["cycle", "bundle", "prepaid", "overage", "held"].map((pot) => money(item.balances[pot])),
  ],
};

const titled = (text, id) => element("span", { title: id }, text);

const plan = ({ name, status }) => (status === "active" ? name : `${name} (${status})`);

export const METERS = {
  section: "#meters",
  path: "meters",
  empty: "No meters yet. A meter says what a customer pays for a unit of use.",
  columns: [
    { title: "Name" },
    { title: "Slug" },
    { title: "Tiers" },
    { title: "Counts" },
    { title: "Provider's cost" },
    { title: "Version", numeric: true },
  ],
  id: (item) => item.meter_id,
  cells: (item) => [
    titled(item.name, item.meter_id),
    item.meter_slug ?? "",
    element("ul", {}, ...item.tiers.map((tier) => element("li", {}, tierText(item, tier)))),
    COUNTED[item.tier_type] + (item.tier_type === "tokens_1m" ? `, ${item.token_basis}` : ""),
    item.base_cost_payer === "wallet" ? "customer pays" : "merchant pays",
    count(item.version),
  ],
};

function tierText(meter, tier) {
  const fixed = meter.rate_type === "fixed";
  const price = fixed ? `${money(tier.rate)} per ${UNITS[meter.tier_type]}` : `${tier.rate} % of the cost`;
  return meter.tiers.length === 1 ? price : `from ${count(tier.start)}: ${price}`;
}
