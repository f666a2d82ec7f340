// Prints what AsyncAPI's own parser has to say about the document on standard input, and its operations and messages.
import { readFileSync } from 'node:fs';

import { Parser } from '@asyncapi/parser';

const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'));
console.log(
  JSON.stringify({
    problems: diagnostics.map(({ code, message, path }) => ({ code, message, path: path.join('.') })),
    operations: document?.operations().all().map((operation) => operation.id()),
    messages: document?.messages().all().map((message) => message.id()),
  }),
);
