import assert from 'node:assert/strict';
import { test } from 'node:test';
import { UsageError } from '../../src/errors.js';
import { completeSettings, isOfficial } from '../../src/workflows/personalisation-settings.js';
import { completeRewards, parseReward, rewardsAsJson } from '../../src/workflows/reward-spec.js';

test('a reward on the command line: name, source, weight, discount', () => {
  const rows: [string, object][] = [
    ['look-forward', { kind: 'look-forward' }],
    ['look-forward=2@0.99', { kind: 'look-forward', weight: 2, gamma: 0.99 }],
    ['dino:enc/vit=0.5', { kind: 'image-similarity', encoder: 'enc/vit', name: 'dino', weight: 0.5 }],
    [
      'dino:C:\\enc\\vit@1e-1',
      { kind: 'image-similarity', encoder: 'C:\\enc\\vit', name: 'dino', gamma: 0.1 },
    ],
    [
      'clip-text:a=b/clip=-.5',
      { kind: 'text-alignment', encoder: 'a=b/clip', name: 'clip-text', weight: -0.5 },
    ],
    ['embedding:face.onnx', { kind: 'image-similarity', encoder: 'face.onnx', name: 'embedding' }],
    ['onnx:taste.onnx=3', { kind: 'onnx', file: 'taste.onnx', name: 'onnx', weight: 3 }],
    ['jpeg-size=-1', { kind: 'jpeg-size', weight: -1 }],
    ['./my-reward.mjs=0.1', { kind: 'module', path: './my-reward.mjs', weight: 0.1 }],
    ['http://localhost:8000/score=2', { kind: 'endpoint', url: 'http://localhost:8000/score', weight: 2 }],
    ['https://u@host/score?a=1', { kind: 'endpoint', url: 'https://u@host/score?a=1' }],
  ];
  for (const [text, expected] of rows) assert.deepEqual(parseReward(text), expected, text);
});

test('what is no reward is refused with what would be', () => {
  const refused = (text: string, message: RegExp): void => {
    assert.throws(
      () => parseReward(text),
      (e) => e instanceof UsageError && message.test(e.message),
    );
  };
  refused('look-backward', /not a known reward. Expected look-forward, dino:DIR/);
  refused('dino', /needs a source, as in dino:path/);
  refused('dino:', /needs a source/);
  refused('http://', /is not a URL/);
  const settings = (change: object, message: RegExp): void => {
    assert.throws(
      () => completeSettings(change),
      (e) => e instanceof UsageError && message.test(e.message),
    );
  };
  settings({ reward: [] }, /list of rewards is empty/);
  settings({ reward: 'jpeg-size=0' }, /weight 0/);
  settings({ reward: 'jpeg-size@1.5' }, /discount 1.5/);
  settings({ reward: ['look-forward', 'jpeg-size=-1'], rewardCombination: 'harmonic' }, /weight -1.*above 0/);
  settings({ reward: 'jpeg-size', policyGradient: 'reward' }, /jpeg-size has no gradient of its own/);
  settings({ reward: 'jpeg-size', objective: 'official' }, /look-forward reward alone/);
  settings({ reward: { kind: 'telepathy' } }, /"telepathy" is not known/);
});

test('every reward has a name of its own, and functions are kept by it', () => {
  const rewards = completeRewards(
    ['dino:a', 'dino:b', './x/my reward.mjs', { kind: 'function', name: 'mine', score: () => [] }],
    'sum',
  );
  assert.deepEqual(
    rewards.map((r) => r.name),
    ['dino', 'dino-2', 'my-reward', 'mine'],
  );
  assert.deepEqual((rewardsAsJson(rewards) as object[])[3], { kind: 'function', name: 'mine', weight: 1 });
  assert.equal(rewardsAsJson(completeRewards('look-forward', 'sum')), 'look-forward');
});

test("the authors' code is what is run where nothing else is asked for", () => {
  const official = (change: object): boolean => isOfficial(completeSettings(change));
  assert.equal(official({}), true);
  assert.equal(official({ reward: ['look-forward'] }), true);
  assert.equal(isOfficial(completeSettings({}, 'official')), true);
  for (const change of [
    { objective: 'paper' },
    { reward: 'look-forward=2' },
    { reward: 'jpeg-size' },
    { lambda: 1 },
    { policyGradient: 'critic' },
    { criticTarget: 'return' },
  ]) {
    assert.equal(official(change), false, JSON.stringify(change));
  }
});
