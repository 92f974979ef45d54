// With Stripe only: its own fields, in its own iframes. Card numbers go from the browser to Stripe.
"use strict";
(() => {
  const place = document.getElementById("stripe");
  const form = document.getElementById("stripe-form");
  const wrong = document.getElementById("stripe-error");
  if (!place || !form || !window.Stripe) return;
  const { what, key, secret } = place.dataset;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const stripe = window.Stripe(key);
  let elements = null;
  if (what === "setup") {
    elements = stripe.elements({ clientSecret: secret, appearance: { theme: dark ? "night" : "stripe" } });
    elements.create("payment").mount(place);
  }

  async function asked() {
    if (what === "payment") return stripe.handleNextAction({ clientSecret: secret });
    return stripe.confirmSetup({ elements, redirect: "if_required", confirmParams: { return_url: location.href } });
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    wrong.hidden = true;
    const { error } = await asked();
    // A payment that was not approved is told by our own page, which asks Stripe.
    if (error && what === "setup") {
      wrong.textContent = error.message;
      wrong.hidden = false;
      button.disabled = false;
      return;
    }
    HTMLFormElement.prototype.submit.call(form);
  });
})();
