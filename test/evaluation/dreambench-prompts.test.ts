import assert from 'node:assert/strict';
import { test } from 'node:test';
import { dreamBenchPrompts as worldPrompts } from '../../src/data/world/prompts.js';
import { dreamBenchPrompts } from '../../src/evaluation/dreambench-prompts.js';
import { fillPrompt } from '../../src/evaluation/protocol.js';

test('the synthetic world can draw every prompt of the benchmark, in its order', () => {
  for (const [noun, live] of [
    ['dog', true],
    ['backpack', false],
  ] as const) {
    const prompts = dreamBenchPrompts(live);
    assert.equal(new Set(prompts).size, 25);
    assert.deepEqual(
      prompts.map((prompt) => fillPrompt(prompt, `sks ${noun}`)),
      worldPrompts(noun, 'sks'),
    );
  }
});
