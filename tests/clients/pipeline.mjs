// What Node and the browser share: one pipeline a variant, every conversation through it.

/** Calls `print` with one JSON line a variant: its new ids, a list a conversation, or the error. */
export async function generateAll(transformers, request, print) {
  for (const [variant, options] of Object.entries(request.variants)) {
    try {
      print(JSON.stringify({ variant, tokens: await generate(transformers, request, options) }));
    } catch (error) {
      print(JSON.stringify({ variant, error: String(error?.message ?? error) }));
    }
  }
}

async function generate({ pipeline, TextStreamer }, request, options) {
  const generator = await pipeline("text-generation", request.model, { ...options, device: request.device });
  const answers = [];
  for (const messages of request.conversations) {
    const tokens = [];
    const streamer = new TextStreamer(generator.tokenizer, {
      skip_prompt: true,
      callback_function: () => {},
      token_callback_function: (ids) => tokens.push(...ids.map(Number)),
    });
    await generator(messages, { max_new_tokens: request.max_new_tokens, do_sample: false, streamer });
    answers.push(tokens);
  }
  await checkRepeats(generator, request.conversations.at(-1));
  await generator.dispose();
  return answers;
}

/** Throws unless a prompt has the same logits each time, to the bit. */
async function checkRepeats({ model, tokenizer }, messages) {
  const inputs = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
  const runs = [];
  for (let i = 0; i < 3; i++) runs.push((await model(inputs)).logits.data.slice());
  const differs = runs.some((logits) => logits.some((value, i) => value !== runs[0][i]));
  if (differs) throw new Error("other logits each time");
}
