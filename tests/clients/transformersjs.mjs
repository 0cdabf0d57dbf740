// Text-generation pipelines in Node, greedy, with the chat template: what a program of a user does.
//
//     node tests/clients/transformersjs.mjs CLIENT_FOLDER REQUEST.json
//
// Prints one JSON line a variant; see table.py.
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

import { generateAll } from "./pipeline.mjs";

const [folder, request] = [process.argv[2], JSON.parse(readFileSync(process.argv[3], "utf8"))];
const entry = path.resolve(folder, "node_modules/@huggingface/transformers/dist/transformers.node.mjs");
const transformers = await import(pathToFileURL(entry));

transformers.env.allowRemoteModels = false;
transformers.env.localModelPath = path.dirname(path.resolve(request.folder)) + path.sep;
const model = path.basename(request.folder);
await generateAll(transformers, { ...request, model, device: "cpu" }, (line) => console.log(line));
