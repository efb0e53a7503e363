// Writes the word tokenizer that tokenizer.py then encodes with. Run after a build: node dist/scripts/goldens/word-tokenizer.js
import { fileURLToPath } from 'node:url';
import { writeWordTokenizer } from '../../src/pretrained/word-tokenizer.js';

/** Words of captions, with some that take more than one byte a letter. */
export const sampleWords =
  `a an the on in with of and photo picture backpack bear bowl can candle cartoon cat clock dog sneaker stuffed animal
  sunglasses toy teapot vase boot red blue green purple orange yellow black white shiny wet cube shaped jungle snow beach
  cobblestone street pink fabric wooden floor city mountain background house wheat field autumn leaves water grass rug tree
  wearing santa hat rainbow scarf top yellow shirt police outfit sks 1 2 3 é naïve 日本`.split(/\s+/);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await writeWordTokenizer('test/goldens/tokenizer/words', sampleWords, 24);
}
