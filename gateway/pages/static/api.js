// The REST API of the gateway that served this page, read with the visitor's secret key.

const TIMEOUT_MS = 15_000;

const WORDS = {
  401: "The gateway does not accept this key",
  403: "The key may not read this",
  404: "The gateway does not know this",
  429: "The gateway is asked too often",
  503: "The gateway cannot read this now",
};

export class ApiError extends Error {
  /** `status` is 0 where no answer came; `retryAfterS` is null where the gateway does not say. */
  constructor(message, status, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** GET `path` (relative to the API, such as "requests") and give the JSON. Throw ApiError with a sentence to show. */
export async function get(key, path, query = {}) {
  const search = new URLSearchParams(query);
  const response = await answer(new URL(`v1/${path}?${search}`, document.baseURI), key);
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new ApiError(sentence(response.status, body?.error), response.status, retryAfterS(response));
}

async function answer(url, key) {
  try {
    return await fetch(url, {
      headers: { Authorization: `Bearer ${key}` },
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    const what = late ? `did not answer within ${TIMEOUT_MS / 1000} seconds` : "does not answer: it may be stopped";
    throw new ApiError(`The gateway ${what}.`, 0, null);
  }
}

function sentence(status, error) {
  const words = WORDS[status] ?? (status >= 500 ? "The gateway failed" : "The gateway refused the request");
  return `${words} (${status}${error?.message ? `: ${error.message}` : ""}).`;
}

function retryAfterS(response) {
  const given = response.headers.get("Retry-After") ?? "";
  return /^\d{1,4}$/.test(given) ? Number(given) : null;
}
