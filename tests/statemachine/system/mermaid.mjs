// Parse Mermaid texts with the real Mermaid under jsdom, and print what it understood: boxes and arrows.
// usage: node mermaid.mjs MODULES FILE...
import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, ...files] = process.argv.slice(2);
const require = createRequire(pathToFileURL(modules + "/"));
const { JSDOM } = require("jsdom");
const dom = new JSDOM("<!doctype html><body></body>");
globalThis.window = dom.window;
globalThis.document = dom.window.document;
const mermaid = (await import(pathToFileURL(modules + "/mermaid/dist/mermaid.core.mjs"))).default;
mermaid.initialize({ startOnLoad: false });

// Entities in a label (#59;) stand as placeholders until they are drawn.
const plain = (text) => (text ?? "").replace(/ﬂ°°(\d+)¶ß/g, (_, code) => String.fromCodePoint(Number(code)));

const told = [];
for (const file of files) {
  const { db } = await mermaid.mermaidAPI.getDiagramFromText(fs.readFileSync(file, "utf8"));
  told.push({
    boxes: Object.fromEntries([...db.getVertices().entries()].map(([id, box]) => [id, plain(box.text)])),
    arrows: db.getEdges().map(({ start, end }) => [start, end]),
  });
}
console.log(JSON.stringify(told));
