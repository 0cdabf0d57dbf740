// Runs GGUF files in llama.cpp's WebAssembly build for the process that started it:
//
//     node engine.cjs FOLDER_OF_WLLAMA THREADS PARENT_PID
//
// Requests are lines of JSON on standard input, `{"call": NAME, ...}`. An answer is a line of JSON and as many bytes as
// its `bytes` says: logits never go through JSON. Ends with its input, or when its parent does.
// Source: llama.cpp b12211, `include/llama.h`, `ggml/include/ggml-cpu.h`. Structures are passed by address in this ABI.

"use strict";

const fs = require("node:fs");
const { getEnvironmentData, isMainThread, setEnvironmentData, Worker, workerData } = require("node:worker_threads");
const { loadLibrary, runProgram } = require("./library.cjs");

const [folder, threads, parent] = process.argv.slice(2);
const VERSION = "b12211-7d7f028"; // the build whose structures are known here
const PARENT_CHECK_MS = 500;
const RETRY_MS = 1;
const ERRORS_KEPT = 3;

const FUNCTIONS = [
  "llama_model_load_from_file",
  "llama_init_from_model",
  "llama_free",
  "llama_decode",
  "llama_get_logits_ith",
  "llama_model_chat_template",
  "llama_vocab::tokenize",
  "llama_vocab::is_eog",
  "__wrap_ggml_threadpool_new", // wllama's, which all computations use from then on
];

// Where a model keeps its vocabulary. `llama_model_get_vocab` was inlined away.
const VOCABULARY = 46512n;

// Fields that are not zero: offset, kind, value.
const MODEL_PARAMS_BYTES = 80;
const MODEL_PARAMS = [
  [20, "Int32", 1], // split_mode: by layer
  [28, "Int32", 1], // lazy_mode
  [74, "Int8", 1], // use_extra_bufts
];
const CONTEXT_PARAMS_BYTES = 176;
const contextParams = ({ size, batch, sequences }) => [
  [0, "Uint32", size],
  [4, "Uint32", batch], // n_batch
  [8, "Uint32", batch], // n_ubatch
  [12, "Uint32", sequences],
  [24, "Uint32", 1], // n_outputs_max_per_seq
  [28, "Int32", Number(threads)],
  [32, "Int32", Number(threads)], // n_threads_batch
  [40, "Int32", -1], // rope_scaling_type, pooling_type, attention_type: as the model has them
  [44, "Int32", -1],
  [48, "Int32", -1],
  ...[64, 68, 72, 76, 84].map((offset) => [offset, "Float32", -1]), // yarn_*, defrag_thold: as the model has them
  [145, "Int8", 1], // offload_kqv
  [146, "Int8", 1], // no_perf
  [149, "Int8", Number(sequences > 1)], // kv_unified: else the room is cut into equal parts
  // Zero, and meant: flash_attn_type (off), type_k and type_v (F32), swa_full (windows keep no more than they see).
];
const THREADPOOL_PARAMS_BYTES = 528;
const threadpoolParams = [[512, "Int32", Number(threads)]];
const BATCH_BYTES = 56;

/** The bytes of a structure. */
function structure(size, fields) {
  const view = new DataView(new ArrayBuffer(size));
  for (const [offset, kind, value] of fields) view[`set${kind}`](offset, value, true);
  return new Uint8Array(view.buffer);
}

const int32s = (values) => new Uint8Array(Int32Array.from(values).buffer);
const addresses = (values) => new Uint8Array(BigUint64Array.from(values).buffer);
const cString = (value) => Buffer.from(`${value}\0`);

class Engine {
  constructor(library) {
    this.library = library;
    this.llama = library.functions;
  }

  /** Loads a model from the first of its files. */
  load({ files, n_vocab }) {
    this.nVocab = n_vocab;
    const names = files.map((file) => `/${file.split(/[\\/]/).at(-1)}`);
    files.forEach((file, i) => this.library.mount(file, names[i]));
    this.model = this.library.borrow((lend) =>
      this.llama.llama_model_load_from_file(
        lend(cString(names[0])), lend(structure(MODEL_PARAMS_BYTES, MODEL_PARAMS)),
      ),
    );
    if (!this.model) throw new Error("the model was not loaded");
    this.vocabulary = this.model + VOCABULARY;
    return {};
  }

  open(options) {
    const params = structure(CONTEXT_PARAMS_BYTES, contextParams(options));
    const context = this.library.borrow((lend) => this.llama.llama_init_from_model(this.model, lend(params)));
    if (!context) throw new Error("no context was made");
    return { context: Number(context) };
  }

  free({ context }) {
    this.llama.llama_free(BigInt(context));
    return {};
  }

  /** Logits of tokens, each with its position and its sequence. */
  decode({ context, tokens, positions, sequences }) {
    const n = tokens.length;
    const status = this.library.borrow((lend) => {
      const owners = lend(int32s(sequences));
      const batch = structure(BATCH_BYTES, [
        [0, "Int32", n],
        [8, "BigUint64", lend(int32s(tokens))],
        [24, "BigUint64", lend(int32s(positions))],
        [32, "BigUint64", lend(int32s(tokens.map(() => 1)))], // n_seq_id
        [40, "BigUint64", lend(addresses(tokens.map((_, i) => owners + BigInt(4 * i))))],
        [48, "BigUint64", lend(new Uint8Array(n).fill(1))], // logits: of all
      ]);
      return this.llama.llama_decode(BigInt(context), lend(batch));
    });
    if (status !== 0) throw new Error(`llama_decode gave status ${status}`);
    const rows = tokens.map((_, i) => this.llama.llama_get_logits_ith(BigInt(context), i));
    if (rows.includes(0n)) throw new Error("llama_decode gave no logits");
    return { rows: rows.map((row) => this.library.bytes(row, 4 * this.nVocab)) };
  }

  tokenize({ text }) {
    const data = Buffer.from(text);
    const room = data.length + 2;
    return this.library.borrow((lend) => {
      const ids = lend(int32s(Array(room).fill(0)));
      const n = this.llama["llama_vocab::tokenize"](this.vocabulary, lend(data), data.length, ids, room, 1, 1);
      return { ids: [...new Int32Array(this.library.bytes(ids, 4 * n).slice().buffer)] };
    });
  }

  stops() {
    const isStop = (id) => this.llama["llama_vocab::is_eog"](this.vocabulary, id);
    return { ids: [...Array(this.nVocab).keys()].filter(isStop) };
  }

  template({ name }) {
    const found = this.library.borrow((lend) =>
      this.llama.llama_model_chat_template(this.model, name === null ? 0n : lend(cString(name))),
    );
    return { text: found ? this.library.string(found) : null };
  }
}

/** Standard input, a line at a time; null at its end. Blocks: nothing else is to happen meanwhile. */
function lineReader() {
  const block = Buffer.alloc(1 << 16);
  let rest = Buffer.alloc(0);
  return () => {
    for (;;) {
      const end = rest.indexOf(10);
      if (end >= 0) {
        const line = rest.toString("utf8", 0, end);
        rest = rest.subarray(end + 1);
        return line;
      }
      const n = patiently(() => fs.readSync(0, block));
      if (n === 0) return null;
      rest = Buffer.concat([rest, block.subarray(0, n)]);
    }
  };
}

function write(data) {
  for (let at = 0; at < data.length; ) at += patiently(() => fs.writeSync(1, data, at));
}

/** Reads or writes as soon as a pipe allows: Node makes pipes non-blocking when it starts a thread. */
function patiently(use) {
  for (;;) {
    try {
      return use();
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
    }
  }
}

function answer(header, rows) {
  const bytes = rows.reduce((sum, row) => sum + row.length, 0);
  write(Buffer.from(`${JSON.stringify({ ...header, bytes })}\n`));
  rows.forEach(write);
}

/** What llama.cpp logs below an error does not interest; what it prints unmarked is a failed assertion. */
function errorLog() {
  const lines = [];
  const says = (line) => {
    const [, level, text] = /^@@(\w+)@@(.*)$/s.exec(line) ?? [null, "ERROR", line];
    if (level === "ERROR" && text.trim()) lines.push(text.trim());
  };
  const take = () => lines.splice(0).slice(-ERRORS_KEPT).join(" ");
  return { says, take };
}

async function main() {
  setEnvironmentData("folder", folder); // threads do not see our arguments
  new Worker(__filename, { workerData: Number(parent) }).unref();
  const log = errorLog();
  const library = await loadLibrary(folder, __filename, { names: FUNCTIONS, threads: Number(threads), says: log.says });
  const { version } = JSON.parse(library.string(library.functions.wllama_start()));
  if (version !== VERSION) throw new Error(`the module is llama.cpp ${version}: expected ${VERSION}`);
  const pool = structure(THREADPOOL_PARAMS_BYTES, threadpoolParams);
  if (threads > 1) library.borrow((lend) => library.functions.__wrap_ggml_threadpool_new(lend(pool)));
  const engine = new Engine(library);
  const nextLine = lineReader();
  for (let line = nextLine(); line !== null; line = nextLine()) {
    const { call, ...options } = JSON.parse(line);
    log.take();
    try {
      const { rows = [], ...header } = engine[call](options);
      answer(header, rows);
    } catch (error) {
      answer({ error: log.take() || String(error.message ?? error) }, []);
    }
  }
  process.exit(0);
}

/** Ends the whole process soon after its parent, also in the midst of a computation. */
function watch(parentId) {
  setInterval(() => process.ppid === parentId || process.kill(process.pid, "SIGKILL"), PARENT_CHECK_MS);
}

if (isMainThread) main();
else if (workerData === "em-pthread") runProgram(getEnvironmentData("folder"), __filename, {});
else watch(workerData);
