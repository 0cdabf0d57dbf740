// llama.cpp as WebAssembly, its C functions callable by name.
//
// wllama's own interface is llama.cpp's server: it takes prompts as text, and answers the probabilities of one
// position at a time as JSON, which breaks at every token that is not UTF-8. The functions of llama.h are inside its
// wasm too, named in its "name" section and not exported. A copy of the module in memory gets the exports it lacks.
// Source: WebAssembly core specification, binary format (sections, LEB128, appendix "Name section").

"use strict";

const fs = require("node:fs");
const path = require("node:path");

const CUSTOM = 0;
const EXPORT = 7;
const FUNCTION_NAMES = 1;
const HEADER_BYTES = 8;

/** An unsigned LEB128 number: [value, where the next begins]. */
function number(bytes, at) {
  let value = 0;
  for (let factor = 1; ; factor *= 128) {
    const byte = bytes[at++];
    value += (byte & 127) * factor;
    if (byte < 128) return [value, at];
  }
}

function encoded(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value & 127) | 128);
  return Buffer.from([...bytes, value]);
}

/** A length and that many bytes: [text, where the next begins]. */
function text(bytes, at) {
  const [length, start] = number(bytes, at);
  return [bytes.toString("utf8", start, start + length), start + length];
}

/** Sections, or the parts of one: an id, a length, and that many bytes. */
function* sections(bytes, at, end) {
  while (at < end) {
    const [length, body] = number(bytes, at + 1);
    yield { id: bytes[at], start: at, body, end: body + length };
    at = body + length;
  }
}

/** The numbers of the functions of each name. */
function functionNumbers(bytes) {
  const found = new Map();
  for (const section of sections(bytes, HEADER_BYTES, bytes.length)) {
    if (section.id !== CUSTOM) continue;
    const [name, start] = text(bytes, section.body);
    if (name !== "name") continue;
    for (const part of sections(bytes, start, section.end)) {
      if (part.id !== FUNCTION_NAMES) continue;
      let [left, at] = number(bytes, part.body);
      for (let index, called; left > 0; left--) {
        [index, at] = number(bytes, at);
        [called, at] = text(bytes, at);
        found.set(called, [...(found.get(called) ?? []), index]);
      }
    }
  }
  return found;
}

/** The module with those functions exported under their names. */
function withExports(bytes, names) {
  const known = functionNumbers(bytes);
  const added = names.map((name) => {
    const numbers = known.get(name) ?? [];
    if (numbers.length !== 1) throw new Error(`the module has ${numbers.length} functions named ${name}`);
    const key = Buffer.from(name);
    return Buffer.concat([encoded(key.length), key, Buffer.from([0]), encoded(numbers[0])]);
  });
  const old = [...sections(bytes, HEADER_BYTES, bytes.length)].find((section) => section.id === EXPORT);
  const [count, first] = number(bytes, old.body);
  const body = Buffer.concat([encoded(count + added.length), bytes.subarray(first, old.end), ...added]);
  const section = [Buffer.from([EXPORT]), encoded(body.length), body];
  return Buffer.concat([bytes.subarray(0, old.start), ...section, bytes.subarray(old.end)]);
}

/**
 * Runs the program that Emscripten wrote around the module; also each of its threads does, with an empty `Module`.
 * `script` is the file that a new thread starts from.
 */
function runProgram(folder, script, Module) {
  // Calls that wait for a promise: Node.js does not always have them, and all they would wait for is a graphics device.
  WebAssembly.Suspending = class { constructor() { return () => 0; } };
  WebAssembly.promising = (call) => call;
  const program = fs.readFileSync(path.join(folder, "src/wasm/wllama.js"), "utf8");
  new Function("Module", "require", "__filename", "__dirname", program)(Module, require, script, path.dirname(script));
}

/** The module's memory and functions. Pointers are numbers, and BigInt where a function takes or returns them. */
class Library {
  constructor(module, functions) {
    this.module = module;
    this.functions = functions;
  }

  bytes(pointer, length) {
    return new Uint8Array(this.module.wasmMemory.buffer, Number(pointer), length);
  }

  string(pointer) {
    const memory = Buffer.from(this.module.wasmMemory.buffer);
    return memory.toString("utf8", Number(pointer), memory.indexOf(0, Number(pointer)));
  }

  /** Calls `use` with a function that copies bytes into the memory, where they lie until `use` returns. */
  borrow(use) {
    const pointers = [];
    const lend = (data) => {
      const pointer = this.functions.malloc(BigInt(data.length));
      if (!pointer) throw new Error("the memory of WebAssembly is full");
      pointers.push(pointer);
      this.bytes(pointer, data.length).set(data);
      return pointer;
    };
    try {
      return use(lend);
    } finally {
      pointers.forEach((pointer) => this.functions.free(pointer));
    }
  }

  /** Lets the module read a file from disk, under a path of its own: nothing of it is held here. */
  mount(file, name) {
    const { FS } = this.module;
    const handle = fs.openSync(file);
    const { size } = fs.fstatSync(handle);
    FS.writeFile(name, "");
    const { node } = FS.lookupPath(name);
    node.usedBytes = size;
    node.stream_ops = {
      ...node.stream_ops,
      llseek: (stream, offset, origin) => offset + [0, stream.position, size][origin],
      read: (stream, memory, at, length, position) =>
        fs.readSync(handle, new Uint8Array(memory.buffer), at, length, position),
    };
  }
}

/** Loads the module of an npm folder, with the named functions. `says` gets each line that it prints. */
function loadLibrary(folder, script, { names, threads, says }) {
  return new Promise((resolve, reject) => {
    let functions;
    const Module = {
      noInitialRun: true,
      pthreadPoolSize: threads - 1,
      print: says,
      printErr: says,
      instantiateWasm(imports, done) {
        const wasm = fs.readFileSync(path.join(folder, "esm/wasm/wllama.wasm"));
        const module = new WebAssembly.Module(withExports(wasm, names));
        const instance = new WebAssembly.Instance(module, imports);
        functions = instance.exports;
        done(instance, module);
      },
      onRuntimeInitialized: () => resolve(new Library(Module, functions)),
      onAbort: reject,
    };
    runProgram(folder, script, Module);
  });
}

module.exports = { loadLibrary, runProgram };
