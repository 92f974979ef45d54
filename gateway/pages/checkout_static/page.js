// Tells the page that embeds the checkout how it ended: once, and only the origin that the session names.
"use strict";
(() => {
  const RECEIPT_MS = 5000;
  const { origin, session, connection, step } = document.body.dataset;
  let told = false;

  function tell(message) {
    if (told || window.parent === window) return;
    told = true;
    window.parent.postMessage(message, origin);
  }

  function succeed() {
    tell({ type: "lava_checkout_success", checkoutSessionId: session, connectionId: connection, customerId: connection });
  }

  function close() {
    if (step === "done") succeed();
    else tell({ type: "lava_checkout_cancel", checkoutSessionId: session });
  }

  document.querySelector("[data-close]")?.addEventListener("click", close);
  document.querySelector("[data-done]")?.addEventListener("click", succeed);
  if (document.body.classList.contains("embedded")) {
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
    });
    if (step === "done") setTimeout(succeed, RECEIPT_MS);
  }

  // A form that is sent twice does no harm, but the second answer would hide the first.
  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented) return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => {
    for (const form of document.forms) delete form.dataset.sent;
  });
  // By script: browsers refuse the attribute `autofocus` in a frame of another origin.
  const first = ["[aria-invalid]", "input:checked", "input:not([type=hidden])", "[data-done]"];
  first.map((selector) => document.querySelector(selector)).find(Boolean)?.focus();
})();
