// The snippets of the page "How Lava billing works", as they stand there but for types and addresses: BASE is the base
// URL with /v1/, CHECKOUT the address of the hosted checkout. Which of them run on which version: test_seed.py.
//
//   node seed.mjs 2.5.0 makeAIRequest '{"connectionSecret": ..., "productSecret": ...}'  -> what the snippet gave, as JSON

const { BASE, CHECKOUT } = process.env;
const [version, snippet, given] = process.argv.slice(2);
const { Lava } = await import(`lava-${version}`);

const lava = new Lava(process.env.LAVA_SECRET_KEY, {
  apiVersion: '2025-04-28.v1',
  baseUrl: BASE
});

// Path 1, step 2
async function makeAIRequest({ connectionSecret, productSecret, messages }) {
  const forwardToken = lava.generateForwardToken({
    connection_secret: connectionSecret,
    product_secret: productSecret // Your meter secret from Step 1
  });

  const response = await fetch(`${BASE}forward?u=https://api.openai.com/v1/chat/completions`, {
    method: 'POST',
    headers: {
      'Authorization': `Bearer ${forwardToken}`,
      'Content-Type': 'application/json'
    },
    body: JSON.stringify({
      model: 'gpt-4o-mini',
      messages
    })
  });
  return { status: response.status, requestId: response.headers.get('x-lava-request-id'), answer: await response.json() };
}

// Step 4, option A: the back end
async function createCheckoutSession({ planId, userId }) {
  const req = { user: { id: userId } };
  const session = await lava.checkoutSessions.create({
    checkout_mode: 'subscription',
    origin_url: 'https://yourapp.com',
    subscription_config_id: planId, // Your plan from Step 3
    reference_id: req.user.id
  });

  return { checkout_session_token: session.checkout_session_token };
}

// Step 4, option B: a link in an email
async function checkoutLink({ planId, customerId }) {
  const session = await lava.checkoutSessions.create({
    checkout_mode: 'subscription',
    origin_url: 'https://yourapp.com',
    subscription_config_id: planId,
    reference_id: customerId
  });

  return { body: `Click here to subscribe: ${CHECKOUT}/${session.checkout_session_token}` };
}

// Step 4, behind the checkout
async function retrieveSecret({ connectionId }) {
  const connection = await lava.connections.retrieve(connectionId);
  const connectionSecret = connection.connection_secret;
  return { connectionSecret };
}

// Path 2, step 2
async function reportUsage({ connectionSecret, productSecret, usage }) {
  return await lava.requests.create({
    request_id: crypto.randomUUID(),
    connection_secret: connectionSecret,
    product_secret: productSecret, // Your meter secret
    ...usage,
    metadata: { feature: 'chat' }
  });
}

const snippets = { makeAIRequest, createCheckoutSession, checkoutLink, retrieveSecret, reportUsage };
console.log(JSON.stringify(await snippets[snippet](JSON.parse(given))));
