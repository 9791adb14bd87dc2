// Parse Mermaid texts with the real Mermaid under jsdom, and print what it understood: states and transitions.
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
    states: [...db.getStates().entries()].map(([id, state]) => [id, (state.descriptions ?? []).map(plain)]),
    transitions: db.getRelations().map(({ id1, id2, relationTitle }) => [id1, id2, plain(relationTitle)]),
  });
}
console.log(JSON.stringify(told));
