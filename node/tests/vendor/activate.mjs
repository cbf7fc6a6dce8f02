// Walks through /activate in a real browser, as people do, and as they should not.
//
// usage: node activate.mjs DIRECTORY CHROMIUM < office.json > verdicts.json
//
// DIRECTORY holds node_modules, as `npm ci` made it from the package-lock.json beside this file. The office is
// {url, operator, admin, writer, team, shots}: where the node is, three keys, the name of the team of the last two, and
// a directory for pictures or null. A verdict is {walk, why}: why is null for a walk that went well.

import { createRequire } from "node:module";
import { join } from "node:path";
import { readFileSync } from "node:fs";
import assert from "node:assert/strict";

const [, , directory, executablePath] = process.argv;
const { chromium } = createRequire(join(directory, "package.json"))("playwright-core");
const office = JSON.parse(readFileSync(0, "utf8"));
const origin = new URL(office.url).origin;
const PHONE = { viewport: { width: 320, height: 640 } };
const WRONG_KEY = "kite_00000000_00000000000000000000000000000000";
const HOSTILE = `<img src=x onerror=alert(1)><script>alert(2)</script>"'&amp;`;

async function post(path, body, key) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(office.url + path, { method: "POST", headers, body: JSON.stringify(body) });
  return { status: response.status, body: await response.json() };
}

// A machine that waits.
async function device(client) {
  const { status, body } = await post("/api/auth/device-code", { client });
  assert.equal(status, 200);
  return { code: body.user_code, url: body.verification_url_complete, ask: () => post("/api/auth/device-token", { device_code: body.device_code }) };
}

// Its key, and whether that may send.
async function fetched(machine) {
  const { status, body } = await machine.ask();
  assert.equal(status, 200, JSON.stringify(body));
  const sent = await post("/api/v1/agents/messages", { from: "a", to: "b", body: "x" }, body.api_key);
  return { team: body.team_id, sends: sent.status === 200 };
}

// What a person sees and does.
class Person {
  constructor(page, look) {
    this.page = page;
    this.look = look;
  }
  code() { return this.page.getByLabel("Code on the device"); }
  key() { return this.page.getByLabel("Your key"); }
  team() { return this.page.getByLabel("Team", { exact: true }); }
  button(name) { return this.page.getByRole("button", { name, exact: true }); }
  async title(name) { await this.page.getByRole("heading", { name, exact: true, level: 1 }).waitFor(); }
  async sees(text) { await this.page.getByText(text).first().waitFor(); }
  async open(path = "/activate") {
    await this.page.goto(path.startsWith("http") ? path : office.url + path);
    await this.title("Let a device in");
  }
  async lookUp(code, key) {
    await this.code().fill(code);
    await this.key().fill(key);
    await this.button("Look it up").click();
  }
  // The walk to the second step.
  async meets(machine, key) {
    await this.open(machine.url);
    await this.key().fill(key);
    await this.button("Look it up").click();
    await this.title("Is this your device?");
  }
  async picture(name) {
    if (!office.shots) return;
    // Past the animations.
    await this.page.waitForTimeout(600);
    await this.page.screenshot({ path: join(office.shots, `${this.look}-${name}.png`), fullPage: true });
  }
}

// Nothing sticks out to the side.
async function fits(page) {
  const [wide, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= window, `${wide} px in a window of ${window}`);
}

// Texts stand out from what is behind them (WCAG 2.2, AA: 4.5 to 1).
async function readable(page) {
  const faint = await page.evaluate(() => {
    const parse = (color) => color.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b]
      .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
      const color = parse(getComputedStyle(element).backgroundColor);
      return color.length === 3 || color[3] === 1 ? color : behind(element.parentElement);
    };
    const texts = [...document.querySelectorAll("main *")].filter((element) => element.checkVisibility()
      && !element.closest(":disabled") && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    return texts.flatMap((element) => {
      const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      return contrast < 4.5 ? [`${element.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`] : [];
    });
  });
  assert.deepEqual(faint, []);
}

const walks = {
  async "a team's administrator lets a device in"(person, { requests }) {
    const machine = await device("kite 0.2.2 on a laptop");
    await person.open();
    await person.picture("1");
    await readable(person.page);
    // As it is typed, and as it is pasted.
    await person.code().pressSequentially(machine.code.toLowerCase().replace("-", ""));
    assert.equal(await person.code().inputValue(), machine.code);
    await person.code().fill(` ${machine.code.toLowerCase().replace("-", " – ")}\t`);
    assert.equal(await person.code().inputValue(), machine.code);
    await person.key().fill(` ${office.admin} `);
    await person.button("Look it up").click();
    await person.title("Is this your device?");
    await person.picture("2");
    await readable(person.page);
    await person.sees("kite 0.2.2 on a laptop");
    await person.sees(machine.code);
    await person.sees("right now");
    assert.match(await person.page.locator("#left").textContent(), /^(10:00|9:\d\d)$/);
    assert.equal(await person.team().isVisible(), false);
    await person.sees(office.team);
    assert.ok(await person.page.getByRole("radio", { name: "Write" }).isChecked());
    // The key is nowhere but in the script.
    const html = await person.page.content();
    assert.ok(!html.includes(office.admin) && !person.page.url().includes(office.admin));
    assert.equal(await person.page.locator("#key").inputValue(), "");
    const stored = await person.page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    assert.deepEqual(stored, [0, 0, ""]);
    await person.button("Let it in").click();
    await person.title("It is in");
    await person.picture("3");
    await readable(person.page);
    await person.sees(`In the team “${office.team}” it may read and send.`);
    assert.equal((await fetched(machine)).sends, true);
    for (const request of requests) {
      const told = await request.allHeaders();
      const decides = request.url().startsWith(`${origin}/admin/v1/login/`);
      assert.equal(told.authorization, decides ? `Bearer ${office.admin}` : undefined, request.url());
      assert.equal(told.referer, undefined, request.url());
    }
    await person.button("Let in another device").click();
    await person.title("Let a device in");
    assert.deepEqual([await person.code().inputValue(), await person.key().inputValue()], ["", ""]);
  },

  async "an operator chooses among teams, and what a device may do"(person) {
    const machine = await device("");
    await person.meets(machine, office.operator);
    await person.sees("it gave no name");
    await person.picture("2-operator");
    await person.button("Let it in").click();
    await person.sees("Choose the team");
    const names = await person.team().locator("option").allTextContents();
    assert.equal(names.length, 4, String(names));
    assert.deepEqual(names.slice(1), [...names.slice(1)].sort());
    await person.team().selectOption({ label: office.team });
    await person.page.getByRole("radio", { name: "Read" }).check();
    await person.button("Let it in").click();
    await person.title("It is in");
    await person.sees("it may read.");
    const got = await fetched(machine);
    assert.equal(got.sends, false);
  },

  async "a device is turned away"(person) {
    const machine = await device("somebody else");
    await person.meets(machine, office.admin);
    await person.button("Turn it away").click();
    await person.title("Turned away");
    await person.picture("3-away");
    await readable(person.page);
    const answer = await machine.ask();
    assert.deepEqual([answer.status, answer.body], [403, { error: "access_denied" }]);
    await person.button("Let in another device").click();
    await person.lookUp(machine.code, office.admin);
    await person.sees("decided already");
  },

  async "wrong codes and wrong keys are explained where they are"(person) {
    const machine = await device("kite");
    await person.open();
    const focused = (id) => person.page.waitForFunction((id) => document.activeElement?.id === id, id);
    for (const [code, key, text, field] of [
      ["", office.admin, "A code has eight letters", "code"],
      ["BCDF", office.admin, "A code has eight letters", "code"],
      ["AEIO-UAEI", office.admin, "no vowels", "code"],
      [machine.code, "", "Paste a key here", "key"],
      [machine.code, "two words", "This is not a key", "key"],
      [machine.code, "schlüssel", "This is not a key", "key"],
      [machine.code, "k".repeat(257), "This is not a key", "key"],
      [machine.code, WRONG_KEY, "does not know the key", "key"],
      [machine.code, office.writer, "takes a key with the permission admin", "key"],
      ["BBBB-BBBB", office.admin, "No device waits with this code", "code"],
    ]) {
      await person.lookUp(code, key);
      await person.sees(text);
      await focused(field);
      assert.equal(await person.page.locator(`#${field}`).getAttribute("aria-invalid"), "true");
      assert.equal(await person.page.locator("[aria-invalid]").count(), 1);
      await readable(person.page);
    }
    await person.picture("1-error");
    // And then it goes on.
    await person.lookUp(machine.code, office.admin);
    await person.title("Is this your device?");
  },

  async "a link fills the code in, and nothing else"(person) {
    const machine = await device("kite");
    await person.open(machine.url);
    assert.equal(await person.code().inputValue(), machine.code);
    await person.page.waitForFunction(() => document.activeElement?.id === "key");
    await person.open(`/activate?code=${encodeURIComponent(HOSTILE)}&key=${WRONG_KEY}`);
    assert.equal(await person.code().inputValue(), "IMGS-RCXO");
    assert.equal(await person.key().inputValue(), "");
  },

  async "what strangers wrote is text"(person) {
    const machine = await device(HOSTILE);
    await person.meets(machine, office.operator);
    assert.equal(await person.page.locator("#client").textContent(), HOSTILE);
    assert.equal(await person.page.locator("#client img, #client script, select img").count(), 0);
    const hostile = "<script>alert(3)</script>";
    await person.team().selectOption({ label: hostile });
    await person.picture("2-hostile");
    await person.button("Let it in").click();
    await person.title("It is in");
    await person.sees(`In the team “${hostile}”`);
  },

  async "everything is done with the keyboard"(person) {
    const machine = await device("kite");
    const { keyboard } = person.page;
    const focus = () => person.page.evaluate(() => document.activeElement.id || document.activeElement.value);
    await person.open();
    await keyboard.type(machine.code);
    await keyboard.press("Tab");
    await keyboard.type(office.operator);
    await keyboard.press("Enter");
    await person.title("Is this your device?");
    assert.equal(await focus(), "decide-title");
    await keyboard.press("Tab");
    assert.equal(await focus(), "team");
    await keyboard.type(office.team);
    await keyboard.press("Tab");
    assert.equal(await focus(), "write");
    await keyboard.press("ArrowDown");
    assert.equal(await focus(), "admin");
    await keyboard.press("Tab");
    assert.equal(await focus(), "approve");
    // What has the focus shows it.
    const outline = await person.page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, "solid");
    await keyboard.press("Tab");
    assert.equal(await focus(), "deny");
    await keyboard.press("Shift+Tab");
    await keyboard.press("Enter");
    await person.title("It is in");
    assert.equal(await focus(), "done-title");
    await person.sees("it may administer the team");
    await keyboard.press("Tab");
    await keyboard.press("Space");
    await person.title("Let a device in");
    assert.equal(await focus(), "code");
  },

  async "a code that ends cannot be decided any more"(person) {
    const machine = await device("kite");
    await person.page.route("**/admin/v1/login/lookup", async (route) => {
      const response = await route.fetch();
      await route.fulfill({ response, json: { ...(await response.json()), expires_in: 1 } });
    });
    await person.meets(machine, office.admin);
    await person.sees("The code has ended");
    assert.ok(await person.button("Let it in").isDisabled() && await person.button("Turn it away").isDisabled());
    await person.button("Enter another code").click();
    await person.title("Let a device in");
  },

  async "somebody else was faster"(person) {
    const machine = await device("kite");
    await person.meets(machine, office.admin);
    assert.equal((await post("/admin/v1/login/deny", { user_code: machine.code }, office.admin)).status, 200);
    await person.button("Let it in").click();
    await person.sees("decided already");
    assert.ok(await person.button("Let it in").isDisabled());
  },

  async "a post office that does not answer is told from one that refuses"(person) {
    const machine = await device("kite");
    await person.open(machine.url);
    const answers = [
      [(route) => route.abort(), "did not answer"],
      [(route) => route.fulfill({ status: 502, body: "<html>" }), "did not answer"],
      [(route) => route.fulfill({ status: 503, json: { error: "x" } }), "majority of its nodes"],
      [(route) => route.fulfill({ status: 504, json: { error: "x" } }), "Nobody knows"],
      [(route) => route.fulfill({ status: 429, json: { error: "x" }, headers: { "retry-after": "7" } }), "Wait 7 seconds"],
      [(route) => route.fulfill({ status: 500, json: { error: "internal error" } }), "Internal error."],
    ];
    await person.key().fill(office.admin);
    for (const [answer, text] of answers) {
      await person.page.route("**/admin/v1/login/lookup", answer, { times: 1 });
      // Two answers in a row look alike: each question gets its own.
      const asked = person.page.waitForRequest("**/admin/v1/login/lookup");
      await person.button("Look it up").click();
      await asked;
      await person.sees(text);
    }
    await person.button("Look it up").click();
    await person.title("Is this your device?");
  },

  async "a phone shows all of it"(person) {
    const machine = await device("W".repeat(128));
    for (const [name, key] of [["a", office.admin], ["o", office.operator]]) {
      await person.open(machine.url);
      await fits(person.page);
      if (name === "a") await person.picture("phone-1");
      await person.key().fill(key);
      await person.button("Look it up").click();
      await person.title("Is this your device?");
      await fits(person.page);
      await person.picture(`phone-2-${name}`);
    }
    await person.team().selectOption({ index: 3 });
    await fits(person.page);
    await person.button("Let it in").click();
    await person.title("It is in");
    await fits(person.page);
    await person.picture("phone-3");
  },

  async "without JavaScript it says what to do instead"(person) {
    await person.page.goto(`${office.url}/activate`);
    await person.sees("agentpost login approve CODE");
    assert.equal(await person.page.getByRole("textbox").count(), 0);
    await person.picture("no-script");
  },

  async "a connection that others can read is warned of"(person) {
    // A name of this machine that browsers do not take for it.
    await person.page.goto(office.url.replace("127.0.0.1", "post.test") + "/activate");
    await person.sees("a network that you trust");
    await readable(person.page);
    await person.open();
    assert.equal(await person.page.getByText("a network that you trust").isVisible(), false);
  },

  // That the watch below would see something.
  async "the browser keeps the page to itself"(person, watch) {
    await person.open();
    const refused = await person.page.evaluate(() => {
      const attempts = {
        image: () => document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x.png" })),
        markup: () => { document.body.innerHTML = "<b>x</b>"; },
        frame: () => document.body.append(Object.assign(document.createElement("iframe"), { src: "/activate" })),
      };
      return Object.entries(attempts).map(([name, attempt]) => {
        try { attempt(); return name; } catch (error) { return `${name}: ${error.name}`; }
      });
    });
    assert.deepEqual(refused, ["image", "markup: TypeError", "frame"]);
    await person.page.waitForFunction(() => window.violations?.length >= 3);
    const directives = await person.page.evaluate(() => window.violations.splice(0).sort());
    assert.deepEqual(directives, ["frame-src", "img-src", "require-trusted-types-for"]);
    watch.faults.splice(0);
  },
};

const OPTIONS = {
  "a phone shows all of it": PHONE,
  "without JavaScript it says what to do instead": { javaScriptEnabled: false },
};
const IN_THE_DARK_TOO = ["a team's administrator lets a device in", "wrong codes and wrong keys are explained where they are"];

// A browser that sees and remembers everything that must not happen.
async function walk(browser, name, look) {
  const context = await browser.newContext({ colorScheme: look, ...OPTIONS[name] });
  const page = await context.newPage();
  const watch = { faults: [], requests: [] };
  page.setDefaultTimeout(30_000);
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.effectiveDirective));
  });
  page.on("dialog", (dialog) => { watch.faults.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("pageerror", (error) => watch.faults.push(`error: ${error.message}`));
  page.on("console", (message) => {
    // The browser itself notes every answer that is a refusal.
    const refusal = message.text().startsWith("Failed to load resource") && message.location().url.includes("/admin/v1/login/");
    if (["error", "warning"].includes(message.type()) && !refusal) watch.faults.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => {
    watch.requests.push(request);
    const { hostname, port } = new URL(request.url());
    const own = port === new URL(origin).port && ["127.0.0.1", "post.test"].includes(hostname);
    if (!own) watch.faults.push(`request: ${request.url()}`);
  });
  try {
    await walks[name](new Person(page, look), watch);
    if (OPTIONS[name]?.javaScriptEnabled !== false) {
      watch.faults.push(...(await page.evaluate(() => window.violations)));
    }
    assert.deepEqual(watch.faults, []);
    return null;
  } catch (error) {
    return error.stack;
  } finally {
    await context.close();
  }
}

const browser = await chromium.launch({
  executablePath,
  // A browser of root has no sandbox to go into.
  chromiumSandbox: process.getuid() !== 0,
  args: ["--host-resolver-rules=MAP post.test 127.0.0.1"],
});
const verdicts = [];
// Each that fails may wait for long.
const enough = () => verdicts.filter(({ why }) => why).length >= 3;
for (const name of Object.keys(walks)) {
  for (const look of IN_THE_DARK_TOO.includes(name) ? ["light", "dark"] : ["light"]) {
    if (!enough()) verdicts.push({ walk: `${name} (${look})`, why: await walk(browser, name, look) });
  }
}
await browser.close();
process.stdout.write(JSON.stringify(verdicts));
