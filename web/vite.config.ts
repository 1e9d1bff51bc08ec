/** Builds src/ into ../src/regard/web/bundle: one script, one style sheet, stamped with a hash of what they were built from. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

const CONFIGURATION = ["package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"];

/** SHA-256 over name, zero, contents, zero of every source, in order of their names; tests/web/test_bundle.py computes the same. */
function sourcesHash(): string {
  const sources = readdirSync("src", { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).replaceAll("\\", "/"));
  const hash = createHash("sha256");
  for (const name of [...sources, ...CONFIGURATION].sort()) hash.update(`${name}\0`).update(readFileSync(name)).update("\0");
  return hash.digest("hex");
}

function stamp(): Plugin {
  return {
    name: "stamp",
    enforce: "post",
    generateBundle(_, bundle) {
      for (const file of Object.values(bundle))
        if (file.type === "chunk") file.code = `/* regard, built from sources ${sourcesHash()} */\n${file.code}`;
    },
  };
}

/** `vite build` makes the page of a record, `vite build --mode results` that of a comparison. */
const ENTRIES: Record<string, { entry: string; name: string }> = {
  production: { entry: "src/main.tsx", name: "regard" },
  results: { entry: "src/results.tsx", name: "results" },
};

export default defineConfig(({ mode }) => ({
  plugins: [stamp()],
  define: { "process.env.NODE_ENV": '"production"' },
  build: {
    target: "es2022",
    outDir: "../src/regard/web/bundle",
    emptyOutDir: mode === "production",
    copyPublicDir: false,
    lib: {
      entry: ENTRIES[mode].entry,
      formats: ["iife"],
      name: "regard",
      fileName: () => `${ENTRIES[mode].name}.js`,
      cssFileName: ENTRIES[mode].name,
    },
  },
}));
