// Bundles a program for a browser or for Node, with components of React, Svelte and Vue:
//
//     node build.mjs ENTRY OUTPUT browser|node
//
// Packages come from the folder of ENTRY, and then from NODE_PATH.

import { readFile } from "node:fs/promises";
import { build } from "esbuild";
import { compile as compileSvelte } from "svelte/compiler";
import { compileScript, parse } from "vue/compiler-sfc";

const [entry, outfile, platform] = process.argv.slice(2);

const svelte = {
  name: "svelte",
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.svelte$/ }, async ({ path }) => {
      const { js, warnings } = compileSvelte(await readFile(path, "utf8"), { filename: path });
      return { contents: js.code, warnings: warnings.map(({ message }) => ({ text: message })) };
    }),
};

const vue = {
  name: "vue",
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.vue$/ }, async ({ path }) => {
      const { descriptor, errors } = parse(await readFile(path, "utf8"), { filename: path });
      const { content } = compileScript(descriptor, { id: "example", inlineTemplate: true });
      return { contents: content, errors: errors.map(({ message }) => ({ text: message })) };
    }),
};

const { warnings } = await build({
  entryPoints: [entry],
  outfile,
  platform,
  bundle: true,
  format: platform === "node" ? "cjs" : "iife",
  jsx: "automatic",
  define: {
    "process.env.NODE_ENV": '"development"',
    __VUE_OPTIONS_API__: "true",
    __VUE_PROD_DEVTOOLS__: "false",
    __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "true",
  },
  nodePaths: process.env.NODE_PATH.split(":"),
  external: platform === "node" ? ["react", "react/*", "react-dom", "react-dom/*", "react-test-renderer"] : [], // as they are
  conditions: platform === "browser" ? ["browser"] : [],
  plugins: [svelte, vue],
  logLevel: "error",
});
if (warnings.length) throw new Error(warnings.map(({ text }) => text).join("\n"));
