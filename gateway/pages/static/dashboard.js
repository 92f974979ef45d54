// The page: signing in and out, and the loop that keeps what is shown fresh.

import { ApiError, get } from "./api.js";
import { CONNECTIONS, customerName, METERS } from "./catalog.js";
import { find, say } from "./elements.js";
import { Listing } from "./listing.js";
import { requestKind } from "./requests.js";
import * as usage from "./usage.js";

const TICK_MS = 2_000;
const RETRY_S = 5;
const KEPT = "obol.secret_key";
const SECRET_KEY = /^aks_[\w-]{1,1000}$/;

let key = null;
let paused = false;
let session = 0;

const read = (path, query) => get(key, path, query);
const nameOf = (id) => {
  const known = connections.items.find((item) => item.connection_id === id);
  return known ? customerName(known) : (id ?? "");
};
const connections = new Listing(CONNECTIONS, read);
const meters = new Listing(METERS, read);
const requests = new Listing(requestKind(nameOf), read);

/** What is read again: its section, how often, and how. Connections come first: they give the customers' names. */
const FEEDS = [
  { section: "#connections", everyS: 10, refresh: () => connections.refresh() },
  { section: "#requests", everyS: 2, refresh: () => requests.refresh().then(tellTime) },
  { section: "#usage", everyS: 10, refresh: () => usage.refresh(read) },
  { section: "#meters", everyS: 60, refresh: () => meters.refresh() },
];

function tellTime() {
  say(find("#updated"), `at ${new Date().toLocaleTimeString("en-GB")}`);
}

async function live(mine) {
  const due = new Map(FEEDS.map((feed) => [feed, 0]));
  while (mine === session) {
    if (!paused && !document.hidden) {
      for (const feed of FEEDS) {
        if (mine === session && due.get(feed) <= performance.now()) {
          due.set(feed, performance.now() + 1000 * (await attempt(feed, mine)));
        }
      }
    }
    await new Promise((resume) => setTimeout(resume, TICK_MS));
  }
}

/** Refresh one feed; give the seconds until it is due again. What it showed before stays where it fails. */
async function attempt(feed, mine) {
  const error = find(".error", find(feed.section));
  try {
    await feed.refresh();
    if (mine === session) say(error, "");
    return feed.everyS - TICK_MS / 2000;
  } catch (failed) {
    if (!(failed instanceof ApiError)) throw failed;
    if (mine !== session) return 0;
    if (failed.status === 401) signOut(failed.message);
    else say(error, `${failed.message} What is shown may be old; the page tries again.`);
    return Math.max(failed.retryAfterS ?? 0, RETRY_S);
  }
}

function signIn(given) {
  if (!SECRET_KEY.test(given)) {
    signOut("This is not a secret key: one begins with aks_ and has only letters, digits, - and _.");
    return;
  }
  key = given;
  session += 1;
  say(find("#sign-in-error"), "");
  say(find("#key-shown"), `${key.slice(0, 9)}…${key.slice(-4)}`);
  find("#key").value = "";
  show(true);
  pause(false);
  live(session);
}

function signOut(message = "") {
  session += 1;
  key = null;
  sessionStorage.removeItem(KEPT);
  find("#detail").close();
  find("#detail .content").replaceChildren();
  for (const listing of [connections, requests, meters]) listing.clear();
  usage.clear();
  say(find("#updated"), "");
  show(false);
  say(find("#sign-in-error"), message);
  find("#key").focus();
}

function show(signedIn) {
  find("#sign-in").hidden = signedIn;
  find("#report").hidden = !signedIn;
  find("#session").hidden = !signedIn;
}

function pause(whether) {
  paused = whether;
  find("#pause").setAttribute("aria-pressed", String(paused));
}

/** The key of a link `#key=aks_...`, which the address bar and the tab's history lose at once. */
function keyOfLink() {
  if (!location.hash.startsWith("#key=")) return null;
  const given = location.hash.slice("#key=".length);
  history.replaceState(null, "", location.pathname + location.search);
  return given;
}

function open() {
  const given = keyOfLink();
  if (given !== null) signOut();
  const used = given ?? sessionStorage.getItem(KEPT);
  if (used !== null) signIn(used);
  else show(false);
}

find("#sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = find("#key").value.trim();
  if (find("#keep").checked) sessionStorage.setItem(KEPT, given);
  signIn(given);
});
find("#sign-out").addEventListener("click", () => signOut());
// A row is a large target for the pointer; its button is the one for keys and screen readers.
find("#requests .list").addEventListener("click", ({ target }) => {
  const chosen = target.closest("button") ? null : target.closest("tbody tr");
  if (chosen && getSelection().isCollapsed) find("button.open", chosen).click();
});
find("#pause").addEventListener("click", () => pause(!paused));
addEventListener("hashchange", () => location.hash.startsWith("#key=") && open());
open();
