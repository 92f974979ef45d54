// Usage of the last days: totals, a bar a day, and the same as a table.

import { arrange, definitions, element, find, row, say, svg, table } from "./elements.js";
import { count, dayOf, money, offset, units } from "./format.js";

const DAYS = 14;
const [BAR_WIDTH, BAR_GAP, HEIGHT, LABEL_HEIGHT] = [20, 4, 120, 16];
const WIDTH = DAYS * (BAR_WIDTH + BAR_GAP);
const COLUMNS = [
  { title: "Day" },
  { title: "Requests", numeric: true },
  { title: "Tokens", numeric: true },
  { title: "Cost", numeric: true },
  { title: "Charge", numeric: true },
];

/** The start of the range, at the midnight that began its first day in the reader's zone. */
export function start(now) {
  const minutes = zoneMinutes(now);
  const local = new Date(now.getTime() + minutes * 60_000 - (DAYS - 1) * 86_400_000);
  return `${local.toISOString().slice(0, 10)}T00:00:00${offset(minutes)}`;
}

/** Minutes east of UTC. Zones with a part of an hour get UTC days: the API sums whole hours of UTC, and fast. */
function zoneMinutes(now) {
  const minutes = -now.getTimezoneOffset();
  return minutes % 60 === 0 ? minutes : 0;
}

export async function refresh(read) {
  const now = new Date();
  const { items, totals } = await read("usage", { start: start(now) });
  const section = find("#usage");
  if (section.dataset.shown === JSON.stringify(items)) return;
  section.dataset.shown = JSON.stringify(items);
  find(".totals", section).replaceChildren(...definitions(totalsOf(totals)));
  const largest = items.reduce((most, item) => (units(item.total_charge) > units(most) ? item.total_charge : most), "0");
  const zone = `days in UTC${zoneMinutes(now) ? offset(zoneMinutes(now)) : ""}`;
  say(find("figcaption", section), `Charged to customers per day, ${zone}; the highest is ${money(largest)}`);
  find(".chart", section).replaceChildren(chart(items.slice(-DAYS), units(largest)));
  find(".days", section).replaceChildren(days(items));
}

export function clear() {
  const section = find("#usage");
  delete section.dataset.shown;
  for (const part of section.querySelectorAll(".totals, figcaption, .chart, .days, .error")) arrange(part, []);
  say(find("figcaption", section), "");
  say(find(".error", section), "");
}

function totalsOf(totals) {
  return [
    ["Charged", money(totals.total_charge)],
    ["Provider's cost", money(totals.total_cost)],
    ["Requests", count(totals.total_requests)],
    ["Tokens", count(totals.total_usage_tokens)],
  ];
}

function chart(items, largest) {
  const bars = items.map((item, index) => bar(item, index, largest));
  const size = { viewBox: `0 0 ${WIDTH} ${HEIGHT + LABEL_HEIGHT}`, role: "img" };
  return svg("svg", { ...size, "aria-label": "Bar chart of the charge per day; the table below has the figures" }, ...bars);
}

function bar(item, index, largest) {
  const x = index * (BAR_WIDTH + BAR_GAP) + BAR_GAP / 2;
  const height = heightOf(units(item.total_charge), largest);
  const tip = svg("title", {}, `${dayOf(item.date)}: ${money(item.total_charge)}, ${count(item.total_requests)} requests`);
  const ground = svg("rect", { class: "ground", x, y: 0, width: BAR_WIDTH, height: HEIGHT });
  const filled = svg("rect", { class: "bar", x, y: HEIGHT - height, width: BAR_WIDTH, height });
  const label = svg("text", { x: x + BAR_WIDTH / 2, y: HEIGHT + LABEL_HEIGHT - 4 }, dayOf(item.date).split(" ")[0]);
  return svg("g", {}, tip, ground, filled, label);
}

/** Pixels of the bar; a charge that is not zero is always seen. */
function heightOf(charge, largest) {
  if (charge <= 0n || largest <= 0n) return 0;
  return Math.max(1, Number((charge * BigInt(HEIGHT)) / largest));
}

function days(items) {
  const made = table("Usage by day", COLUMNS);
  for (const item of [...items].reverse()) {
    const counts = [count(item.total_requests), count(item.total_usage_tokens)];
    made.body.append(row(COLUMNS, [dayOf(item.date), ...counts, money(item.total_cost), money(item.total_charge)]));
  }
  return made.root;
}
