import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createTrainCommand } from '../../src/cli/train.js';
import type { PersonaliseOptions } from '../../src/workflows/personalise.js';
import { callMain, entry, type Outcome } from './terminal.js';

/** Calls `portrayal train` with a library that only writes down what it is asked for. */
async function train(
  ...args: string[]
): Promise<Outcome & { asked: Partial<PersonaliseOptions> | undefined }> {
  let asked: Partial<PersonaliseOptions> | undefined;
  const command = entry((terminal) =>
    createTrainCommand(terminal, async ({ onEvent, signal, ...settings }) => {
      assert.ok(onEvent && signal);
      onEvent({ kind: 'warning', message: 'a.jpg is small' });
      asked = settings;
      return { run: settings.output };
    }),
  );
  return { ...(await callMain(['train', ...args], { train: command })), asked };
}

const needed = ['--images', 'photos', '--prompt', 'a photo of sks dog', '--output', 'runs/dog'];
const asNeeded = { images: 'photos', instancePrompt: 'a photo of sks dog', output: 'runs/dog' };

test('only what is said is passed on, so that presets and defaults stay in the library', async () => {
  const { status, out, err, asked } = await train(...needed);
  assert.deepEqual(asked, asNeeded);
  assert.equal(status, 0);
  assert.equal(out, '');
  assert.match(err, /^note: a\.jpg is small\n/);
  assert.match(err, /portrayal generate --run runs\/dog /);
});

test("the short names, those of diffusers' script and underscores mean the same", async () => {
  const short = ['--model', 'm', '--steps', '5', '--lr-scheduler', 'cosine', ...needed];
  const long = [
    '--pretrained_model_name_or_path=m',
    '--max_train_steps=5',
    '--lr_scheduler=cosine',
    ...[
      '--instance-data-dir',
      'photos',
      '--instance_prompt',
      'a photo of sks dog',
      '--output-dir',
      'runs/dog',
    ],
  ];
  const expected = { ...asNeeded, model: 'm', steps: 5, lrScheduler: 'cosine' };
  assert.deepEqual((await train(...short)).asked, expected);
  assert.deepEqual((await train(...long)).asked, expected);
});

test('every flag sets its option', async () => {
  const flags = {
    '--class-prompt': ['classPrompt', 'a photo of dog'],
    '--class-data-dir': ['classDataDir', 'dogs'],
    '--resume-from-checkpoint': ['resumeFromCheckpoint', 'latest'],
    '--checkpointing-steps': ['checkpointingSteps', 50],
    '--checkpoints-total-limit': ['checkpointsTotalLimit', 2],
    '--threads': ['threads', 1],
    '--method': ['method', 'dpg'],
    '--reward': ['reward', ['look-forward']],
    '--reward-combination': ['rewardCombination', 'harmonic'],
    '--objective': ['objective', 'paper'],
    '--lambda': ['lambda', 0.5],
    '--policy-gradient': ['policyGradient', 'both'],
    '--critic-target': ['criticTarget', 'return'],
    '--reward-timeout': ['rewardTimeout', 5],
    '--on-reward-failure': ['onRewardFailure', 'skip'],
    '--preset': ['preset', 'official'],
    '--gamma': ['gamma', 0.99],
    '--critic-learning-rate': ['criticLearningRate', 0.1],
    '--snr-gamma': ['snrGamma', 5],
    '--prior-loss-weight': ['priorLossWeight', 0.5],
    '--num-class-images': ['numClassImages', 9],
    '--scheduler': ['scheduler', 'PNDMScheduler'],
    '--train': ['train', 'full'],
    '--placeholder-token': ['placeholderToken', '<toy>'],
    '--num-vectors': ['numVectors', 2],
    '--concepts-list': ['concepts', 'concepts.json'],
    '--rank': ['rank', 4],
    '--lora-alpha': ['loraAlpha', 2.5],
    '--ema-decay': ['emaDecay', 0.99],
    '--learning-rate': ['learningRate', 1e-4],
    '--lr-warmup-steps': ['lrWarmupSteps', 10],
    '--train-batch-size': ['trainBatchSize', 2],
    '--gradient-accumulation-steps': ['gradientAccumulationSteps', 3],
    '--resolution': ['resolution', 128],
    '--seed': ['seed', 7],
    '--adam-beta1': ['adamBeta1', 0.8],
    '--adam-beta2': ['adamBeta2', 0.99],
    '--adam-weight-decay': ['adamWeightDecay', 0],
    '--adam-epsilon': ['adamEpsilon', 1e-6],
    '--max-grad-norm': ['maxGradNorm', 2],
    '--num-validation-images': ['numValidationImages', 3],
    '--sampling-steps': ['samplingSteps', 20],
    '--guidance-scale': ['guidanceScale', 5],
    '--min-bucket-reso': ['minBucketReso', 128],
    '--max-bucket-reso': ['maxBucketReso', 256],
    '--bucket-reso-steps': ['bucketResoSteps', 32],
    '--latent-cache-dir': ['latentCacheDir', 'latents'],
    '--validation-steps': ['validationSteps', 25],
    '--report-to': ['reportTo', 'tensorboard'],
    '--noise-offset': ['noiseOffset', 0.1],
    '--rollout-fraction': ['rolloutFraction', 0.5],
    '--rollout-prompt': ['rolloutPrompts', ['a sks dog in the snow']],
    '--num-rollouts': ['numRollouts', 4],
    '--rollout-every': ['rolloutEvery', 10],
    '--rollout-steps': ['rolloutSteps', 5],
    '--judge': ['judges', ['encoders/dino']],
    '--early-stopping': ['earlyStopping', 3],
  } as const;
  const args = Object.entries(flags).flatMap(([flag, [, value]]) => [flag, String(value)]);
  const { asked, err } = await train(...needed, ...args);
  assert.deepEqual(asked, { ...asNeeded, ...Object.fromEntries(Object.values(flags)) }, err);
});

test('switches go both ways', async () => {
  const names = {
    '--with-prior-preservation': 'withPriorPreservation',
    '--train-text-encoder': 'trainTextEncoder',
    '--use-ema': 'useEma',
    '--gradient-checkpointing': 'gradientCheckpointing',
    '--center-crop': 'centerCrop',
    '--random-flip': 'randomFlip',
    '--captions': 'captions',
    '--enable-bucket': 'enableBucket',
    '--cache-latents-to-disk': 'cacheLatentsToDisk',
    '--memory-check': 'memoryCheck',
    '--save-model': 'saveModel',
  };
  for (const [flag, option] of Object.entries(names)) {
    assert.deepEqual((await train(...needed, flag)).asked, { ...asNeeded, [option]: true });
    const off = flag.replace('--', '--no-');
    assert.deepEqual((await train(...needed, off)).asked, { ...asNeeded, [option]: false });
  }
});

test('new words and what they start as: a flag each, or joined by +', async () => {
  const words = ['<new1>', '<new2>'];
  const separate = await train(...needed, '--modifier-token', '<new1>', '--modifier-token', '<new2>');
  assert.deepEqual(separate.asked, { ...asNeeded, modifierToken: words });
  const joined = ['--modifier-token', '<new1>+<new2>', '--initializer-token', 'ktn+pll'];
  assert.deepEqual((await train(...needed, ...joined)).asked, {
    ...asNeeded,
    modifierToken: words,
    initializerToken: ['ktn', 'pll'],
  });
});

test('a list of concepts stands for pictures and prompt', async () => {
  const { asked, err } = await train('--concepts-list', 'concepts.json', '--output', 'run');
  assert.deepEqual(asked, { concepts: 'concepts.json', output: 'run' }, err);
});

test('rewards add up, one a flag', async () => {
  const { asked } = await train(
    ...needed,
    '--reward',
    'look-forward',
    '--reward',
    'dino:encoders/dino=0.5@0.99',
  );
  assert.deepEqual(asked, { ...asNeeded, reward: ['look-forward', 'dino:encoders/dino=0.5@0.99'] });
});

test('several pictures and several validation prompts', async () => {
  const { asked } = await train(
    ...['--images', 'a.jpg', 'b.jpg', '--prompt', 'sks dog', '--output', 'o'],
    ...['--validation-prompt', 'a sks dog', '--validation-prompt', 'a dog'],
  );
  assert.deepEqual(asked, {
    images: ['a.jpg', 'b.jpg'],
    instancePrompt: 'sks dog',
    output: 'o',
    validationPrompts: ['a sks dog', 'a dog'],
  });
});

test('all missing flags are named at once', async () => {
  const { status, err, asked } = await train('--prompt', 'sks dog');
  assert.equal(status, 2);
  assert.equal(asked, undefined);
  assert.match(
    err,
    /^portrayal train needs --images and --output\. For example:\n {2}portrayal train --images /,
  );
});

test('a bad value is told with flag, value and what was expected', async () => {
  const cases: [flag: string, value: string, expected: string][] = [
    ['--steps', '1.5', 'a whole number of at least 1'],
    ['--max-train-steps', '0', 'a whole number of at least 1'],
    ['--steps', '99999999999999999999', 'a whole number of at least 1'],
    ['--seed', '-1', 'a whole number of at least 0'],
    ['--learning-rate', '1e-4x', 'a number above 0'],
    ['--learning-rate', '0', 'a number above 0'],
    ['--learning-rate', '0x10', 'a number above 0'],
    ['--learning-rate', '', 'a number above 0'],
    ['--learning-rate', 'Infinity', 'a number above 0'],
    ['--learning-rate', '1e999', 'a number above 0'],
    ['--learning-rate', '1,5', 'a number above 0'],
    ['--ema-decay', '1', 'a number of at least 0 and below 1'],
    ['--gamma', '1.01', 'a number above 0 and at most 1'],
    ['--method', 'ppo', 'dpg or dreambooth'],
    ['--lr-scheduler', 'Cosine', 'constant, linear or cosine'],
    ['--class-prompt', ' ', 'a value'],
  ];
  for (const [flag, value, expected] of cases) {
    const { status, out, err, asked } = await train(...needed, `${flag}=${value}`);
    const shown = flag === '--max-train-steps' ? '--steps' : flag;
    const given = flag === '--class-prompt' ? '""' : value;
    assert.deepEqual({ status, out, asked }, { status: 2, out: '', asked: undefined });
    assert.equal(err, `${shown} ${given}: expected ${expected}.\n`);
  }
});

test('a value that was left out or not quoted is told', async () => {
  assert.match((await train('--images')).err, /^--images: expected a value, found none\./);
  assert.match(
    (await train('--prompt', '--output', 'runs/dog')).err,
    /^--prompt: expected a value, found the flag --output instead\./,
  );
  const unquoted = await train('--images', 'photos', '--output', 'o', '--prompt', 'a', 'sks', 'dog');
  assert.match(unquoted.err, /^Did not expect "sks" here: .*quotes/);
});

test('mixed precision is asked for as in diffusers, and refused where there is none', async () => {
  const { asked } = await train(...needed, '--mixed_precision=fp16');
  assert.deepEqual(asked, { ...asNeeded, mixedPrecision: 'fp16' });
  const { status, err } = await train(...needed, '--mixed-precision', 'bf16');
  assert.equal(status, 2);
  assert.match(err, /^--mixed-precision bf16: expected no or fp16\. .*no convolution in bfloat16/);
  assert.equal(
    (await train(...needed, '--mixed-precision', 'half')).err,
    '--mixed-precision half: expected no or fp16.\n',
  );
});

test('--dry-run tells the memory by phase and trains nothing', async () => {
  let asked: PersonaliseOptions | undefined;
  const parts = [
    { what: 'denoiser: activations', bytes: 3 * 2 ** 30 },
    { what: 'denoiser: engine', bytes: 2 ** 20 },
  ];
  const peak = { name: 'training', parts, total: 3 * 2 ** 30 + 2 ** 20 };
  const command = entry((terminal) =>
    createTrainCommand(
      terminal,
      () => assert.fail('it trains'),
      async ({ onEvent, ...options }) => {
        assert.ok(onEvent);
        asked = options;
        return { phases: [peak], peak, available: 2 ** 33, drawsInTurn: false, encodesAhead: false };
      },
    ),
  );
  const { status, out } = await callMain(['train', ...needed, '--dry-run'], { train: command });
  assert.equal(status, 0);
  assert.deepEqual(asked, asNeeded);
  assert.deepEqual(out.split('\n'), [
    '    3073 MiB  training',
    '    3072 MiB    denoiser: activations',
    '    8192 MiB  can be had',
    '',
  ]);
});
