// How values are written. Money comes as a decimal string and stays one: it is never made a Number.

/** "25.0000000000" -> "$25.00", "-0.0581000000" -> "−$0.0581": at least two places, no needless zeros. */
export function money(text) {
  const negative = text.startsWith("-");
  const [whole, places = ""] = text.replace("-", "").split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return `${negative ? "−" : ""}$${grouped}.${places.replace(/0+$/, "").padEnd(2, "0")}`;
}

/** A decimal string as an exact BigInt of 1e-10 dollars, to compare amounts with. */
export function units(text) {
  const [whole, places = ""] = text.replace("-", "").split(".");
  const size = BigInt(whole + places.slice(0, 10).padEnd(10, "0"));
  return text.startsWith("-") ? -size : size;
}

export const count = (number) => number.toLocaleString("en-US");

/** The time of day, with the date where it is not today's. */
export function when(iso) {
  const moment = new Date(iso);
  const time = moment.toLocaleTimeString("en-GB");
  return moment.toDateString() === new Date().toDateString() ? time : `${day(moment)} ${time}`;
}

export const moment = (iso) => (iso ? `${day(new Date(iso))} ${new Date(iso).toLocaleTimeString("en-GB")}` : "");

const day = (date) => date.toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });

/** "2026-03-07" -> "7 Mar". The date is already one of the reader's zone. */
export const dayOf = (date) =>
  new Date(`${date}T00:00:00Z`).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

/** Minutes east of UTC -> "+02:00". */
export function offset(minutes) {
  const size = Math.abs(minutes);
  const two = (number) => String(number).padStart(2, "0");
  return `${minutes < 0 ? "-" : "+"}${two(Math.floor(size / 60))}:${two(size % 60)}`;
}
