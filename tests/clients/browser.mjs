// The same pipelines in headless Chromium, with device "wasm" or "webgpu" (SwiftShader).
//
//     node tests/clients/browser.mjs CLIENT_FOLDER DEVICE BROWSER_FOLDER REQUEST.json
//
// Prints one JSON line a variant; see table.py. A page a variant: devices and failures must not meet.
import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import path from "node:path";

const [client, device, browserFolder, requestFile] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, "utf8"));
const puppeteer = createRequire(path.resolve(browserFolder, "package.json"))("puppeteer-core");

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const ROOTS = {
  "/clients/": import.meta.dirname,
  "/models/": path.dirname(path.resolve(request.folder)),
  "/modules/": path.resolve(client, "node_modules"),
};

const server = createServer((incoming, outgoing) => {
  const url = decodeURIComponent(new URL(incoming.url, "http://localhost").pathname);
  const root = Object.keys(ROOTS).find((prefix) => url.startsWith(prefix));
  const file = root && path.join(ROOTS[root], url.slice(root.length));
  if (!file || !existsSync(file)) return outgoing.writeHead(404).end();
  outgoing.writeHead(200, {
    "Content-Type": TYPES[path.extname(file)] ?? "application/octet-stream",
    "Content-Length": statSync(file).size,
    "Cross-Origin-Opener-Policy": "same-origin", // threads need shared memory
    "Cross-Origin-Embedder-Policy": "require-corp",
  });
  createReadStream(file).pipe(outgoing);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium-headless-shell",
  args: ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan,WebGPU"],
  protocolTimeout: 600_000,
});
try {
  for (const [variant, options] of Object.entries(request.variants)) {
    const page = await browser.newPage();
    await page.exposeFunction("report", (line) => console.log(line));
    page.on("pageerror", (error) => console.error(String(error)));
    page.on("requestfailed", (asked) => console.error(asked.url(), asked.failure()?.errorText));
    await page.goto(`http://127.0.0.1:${server.address().port}/clients/page.html`);
    const one = { ...request, model: path.basename(request.folder), device, variants: { [variant]: options } };
    await page.evaluate((given) => window.run(given), one);
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
}
