// The drop-in for pages without React:
//
//   <script src="https://obol.example.com/checkout.js"></script>
//   const close = ObolCheckout.open(checkoutSessionToken, {
//     onSuccess({ checkoutSessionId, connectionId, customerId }) {},
//     onCancel({ checkoutSessionId }) {},
//     onError(error) {},   // a token that cannot be read
//   });
//
// Only messages of the checkout's own origin and iframe are heard, and the first of them ends it.
"use strict";
(() => {
  const NAMES = { lava_checkout_success: "onSuccess", lava_checkout_cancel: "onCancel" };
  const STYLE = "position:fixed;inset:0;width:100%;height:100%;border:0;z-index:2147483647;background:transparent;color-scheme:normal";

  function addressOf(token) {
    const { secret, base } = JSON.parse(atob(token));
    if (typeof secret !== "string" || typeof base !== "string") throw new Error("this is not a checkout session token");
    return new URL(`embed/checkout/${encodeURIComponent(secret)}`, base);
  }

  function frameOf(address) {
    const frame = document.createElement("iframe");
    frame.src = address.href;
    frame.title = "Checkout";
    frame.setAttribute("sandbox", "allow-forms allow-scripts allow-same-origin");
    frame.referrerPolicy = "no-referrer";
    frame.style.cssText = STYLE;
    return frame;
  }

  function open(token, { onSuccess, onCancel, onError } = {}) {
    const calls = { onSuccess, onCancel };
    let address;
    try {
      address = addressOf(token);
    } catch (error) {
      if (onError) onError(error instanceof Error ? error : new Error(String(error)));
      return () => {};
    }
    const frame = frameOf(address);
    const before = document.activeElement;

    function close() {
      window.removeEventListener("message", heard);
      frame.remove();
      if (before instanceof HTMLElement) before.focus();
    }

    function heard({ origin, source, data }) {
      if (origin !== address.origin || source !== frame.contentWindow || !data || !NAMES[data.type]) return;
      const { type, ...said } = data;
      close();
      const call = calls[NAMES[type]];
      if (call) call(said);
    }

    window.addEventListener("message", heard);
    document.body.append(frame);
    frame.focus();
    return close;
  }

  window.ObolCheckout = Object.freeze({ open });
})();
