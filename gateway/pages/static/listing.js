// A list of the API, newest first, shown as a table: refreshed from the front, extended by cursor at the back.

import { ApiError } from "./api.js";
import { arrange, element, find, row, say, table } from "./elements.js";

const PAGE_ROWS = 20;
const ROWS_MAX = 500;

export class Listing {
  /** `kind`: {section, path, empty, columns, id(item), cells(item)}; `read(path, query)` asks the API. */
  constructor(kind, read) {
    this.kind = kind;
    this.read = read;
    this.section = find(kind.section);
    this.items = [];
    this.cursor = null;
    this.rows = new Map();
    this.generation = 0;
    this.button = find(".load", this.section);
    this.table = table(find("h2", this.section).textContent, kind.columns);
    this.button.onclick = () => this.more();
  }

  /** Read the newest page. Older rows stay below it, unless there are rows between them that nobody has read. */
  async refresh() {
    const generation = this.generation;
    const page = await this.read(this.kind.path, { limit: PAGE_ROWS });
    if (generation !== this.generation) return;
    const fresh = new Set(page.data.map(this.kind.id));
    const joined = this.items.some((item) => fresh.has(this.kind.id(item)));
    const oldest = page.data.at(-1)?.created_at ?? "";
    const older = this.items.filter((item) => !fresh.has(this.kind.id(item)) && item.created_at <= oldest);
    const keep = page.has_more && joined;
    if (!keep || older.length === 0) this.cursor = page.next_cursor ?? null;
    this.items = keep ? [...page.data, ...older] : page.data;
    this.show();
  }

  /** Append the page behind the last row. */
  async more() {
    this.button.disabled = true;
    const generation = ++this.generation;
    try {
      const page = await this.read(this.kind.path, { limit: PAGE_ROWS, cursor: this.cursor });
      if (generation !== this.generation) return;
      const known = new Set(this.items.map(this.kind.id));
      const added = page.data.filter((item) => !known.has(this.kind.id(item)));
      this.items = [...this.items, ...added];
      this.cursor = page.next_cursor ?? null;
      this.show();
      say(find("[role=status]", this.section), `${added.length} more loaded; ${this.items.length} are shown.`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      say(find(".error", this.section), error.message);
    } finally {
      this.button.disabled = false;
    }
  }

  show() {
    const place = find(".list", this.section);
    this.items = this.items.slice(0, ROWS_MAX);
    const full = this.items.length >= ROWS_MAX;
    this.button.hidden = this.cursor === null || full;
    if (full) say(find("[role=status]", this.section), `The page shows ${ROWS_MAX} rows; ask the API for older ones.`);
    if (this.items.length === 0) {
      arrange(place, [(this.nothing ??= element("p", { class: "empty" }, this.kind.empty))]);
      return;
    }
    arrange(place, [this.table.root]);
    this.rows = new Map(this.items.map((item) => this.rowOf(item)));
    arrange(this.table.body, [...this.rows.values()].map(({ shown }) => shown));
  }

  /** Forget everything: the visitor signed out. */
  clear() {
    this.generation += 1;
    [this.items, this.cursor, this.rows] = [[], null, new Map()];
    find(".list", this.section).replaceChildren();
    for (const told of this.section.querySelectorAll("[role=status], .error")) told.textContent = "";
    this.button.hidden = true;
  }

  /** A row that says the same as before stays the same element. */
  rowOf(item) {
    const id = this.kind.id(item);
    const cells = this.kind.cells(item);
    const text = cells.map((cell) => (typeof cell === "string" ? cell : cell.outerHTML)).join("\n");
    const known = this.rows.get(id);
    return [id, known?.text === text ? known : { text, shown: row(this.kind.columns, cells) }];
  }
}
