import assert from 'node:assert/strict';
import { cp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ModelError } from '../../src/errors.js';
import { readAutoencoderKLConfig } from '../../src/models/autoencoder-kl.js';
import { openModelFolder } from '../../src/pretrained/model-folder.js';
import { scalingFactorWarning } from '../../src/pretrained/scaling-factor.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { namedCheckpoints } from './small-checkpoints.js';

/** A model whose autoencoder has the published shape, with this factor as JSON text; its weights are still those of a small one. */
async function withFactor(
  t: TestContext,
  name: 'sd1-tiny' | 'sdxl-tiny',
  factor: string | undefined,
): Promise<string> {
  const folder = join(await temporaryFolder(t), 'model');
  await cp(fileURLToPath(goldenPath(`models/${name}`)), folder, { recursive: true });
  const { _use_default_values, scaling_factor, ...settings } = namedCheckpoints.sd1.configs.vae!;
  const text = JSON.stringify({ _class_name: 'AutoencoderKL', ...settings });
  const more = factor === undefined ? '' : `, "scaling_factor": ${factor}`;
  await writeFile(join(folder, 'vae', 'config.json'), text.replace(/\}$/, `${more}}`));
  return folder;
}

const refused: readonly ['sd1-tiny' | 'sdxl-tiny', string | undefined, RegExp][] = [
  [
    'sd1-tiny',
    '0.13025',
    /vae.config\.json: "scaling_factor" is 0\.13025, as in Stable Diffusion XL; Stable Diffusion 1 has 0\.18215\..*Write "scaling_factor": 0\.18215 into that file/,
  ],
  [
    'sdxl-tiny',
    '0.18215',
    /"scaling_factor" is 0\.18215, as in Stable Diffusion 1; Stable Diffusion XL has 0\.13025/,
  ],
  [
    'sdxl-tiny',
    undefined,
    /"scaling_factor" is missing, which means 0\.18215, as in Stable Diffusion 1; Stable Diffusion XL has 0\.13025/,
  ],
  ['sd1-tiny', '0', /"scaling_factor" is 0, which is not supported; supported: a number above 0/],
  ['sd1-tiny', '-0.18215', /"scaling_factor" is -0\.18215.*supported: a number above 0/],
  ['sd1-tiny', 'NaN', /"scaling_factor" is "NaN".*supported: a number/],
  ['sd1-tiny', 'Infinity', /"scaling_factor" is Infinity.*supported: a number/],
  ['sd1-tiny', '"0.18215"', /"scaling_factor" is "0\.18215".*supported: a number/],
];

for (const [name, factor, message] of refused) {
  test(`${name} with the scaling factor ${factor ?? 'left out'} is refused when it is opened`, async (t) => {
    const folder = await withFactor(t, name, factor);
    await assert.rejects(StableDiffusion.open(folder), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });
}

test("a family's own factor, also where it is what an absent setting means, passes; any other number is told of", async (t) => {
  const warning = async (name: 'sd1-tiny' | 'sdxl-tiny', factor: string | undefined) => {
    const folder = await openModelFolder(await withFactor(t, name, factor));
    return scalingFactorWarning(folder, readAutoencoderKLConfig(folder.components.vae.config));
  };
  assert.equal(await warning('sd1-tiny', '0.18215'), undefined);
  assert.equal(await warning('sd1-tiny', undefined), undefined);
  assert.equal(await warning('sdxl-tiny', '0.13025'), undefined);
  assert.match(
    (await warning('sd1-tiny', '0.2'))!,
    /"scaling_factor" is 0\.2; the autoencoder of Stable Diffusion 1 has 0\.18215\. If pictures come out washed out or burnt/,
  );
  // An autoencoder of its own has a factor of its own: this one has 0.5.
  const own = await StableDiffusion.open(fileURLToPath(goldenPath('models/half-tiny')));
  assert.deepEqual(own.warnings, []);
});
