// Building the page. Text from the API only ever becomes a text node, so it cannot become markup.

export const find = (selector, root = document) => root.querySelector(selector);

/** An element; `attributes` with null or false are left out; children are elements or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  set(made, attributes);
  made.append(...children);
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  set(made, attributes);
  made.append(...children);
  return made;
}

function set(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
}

/** A definition list of [term, value] pairs; pairs without a value are left out. */
export function definitions(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return shown.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value)));
}

/**
 * A table whose rows become cards on a phone: `columns` are {title, numeric}. The roles are spelled out because
 * browsers take them away from a table that CSS lays out otherwise.
 */
export function table(label, columns) {
  const heads = columns.map(({ title, numeric }) =>
    element("th", { scope: "col", role: "columnheader", class: numeric ? "numeric" : null }, title),
  );
  const body = element("tbody", { role: "rowgroup" });
  const head = element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads));
  return { root: element("table", { role: "table", "aria-label": label }, head, body), body };
}

/** A row for `table`; `cells` in the order of the columns. */
export function row(columns, cells) {
  const made = columns.map(({ title, numeric }, index) =>
    element("td", { role: "cell", "data-title": title, class: numeric ? "numeric" : null }, cells[index]),
  );
  return element("tr", { role: "row" }, ...made);
}

/** Make the children of `parent` be `wanted`, moving only what must move: focus and selection stay. */
export function arrange(parent, wanted) {
  const kept = new Set(wanted);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  wanted.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

/** Set text only where it changes, so that a screen reader is not told the same thing at each refresh. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}
