// Shows captured deliveries to the receivers' own libraries.
//
// usage: node verify.mjs DIRECTORY < cases.json > verdicts.json
//
// DIRECTORY holds node_modules, as `npm ci` made it from the package-lock.json beside this file. A case is
// {library, ...its arguments}; its verdict is "ok" or why the library refused.

import { createRequire } from "node:module";
import { join } from "node:path";
import { readFileSync } from "node:fs";

const require = createRequire(join(process.argv[2], "package.json"));
const { Receiver } = require("@upstash/qstash");
const { Webhook } = require("standardwebhooks");

const libraries = {
  async qstash({ current, next, signature, body, url }) {
    const receiver = new Receiver({ currentSigningKey: current, nextSigningKey: next });
    // Without a url the claim `sub` is not compared.
    return receiver.verify(url === undefined ? { signature, body } : { signature, body, url });
  },
  async standard({ secret, headers, body }) {
    new Webhook(secret).verify(body, headers);
    return true;
  },
};

const verdicts = [];
for (const { library, ...given } of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    verdicts.push((await libraries[library](given)) === true ? "ok" : "false");
  } catch (error) {
    verdicts.push(`${error.name}: ${error.message}`);
  }
}
process.stdout.write(JSON.stringify(verdicts));
