import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as portrayal from '../src/index.js';

test('the public API is small, and exactly this', () => {
  assert.deepEqual(Object.keys(portrayal).sort(), [
    'CancelledError',
    'DivergedError',
    'EngineError',
    'HubError',
    'InputError',
    'ModelError',
    'OutputError',
    'PortrayalError',
    'RewardError',
    'RunError',
    'StableDiffusion',
    'TextToImage',
    'UsageError',
    'convertLora',
    'convertModel',
    'createNodeEngine',
    'devices',
    'estimatePersonalisation',
    'evaluate',
    'generate',
    'locateModel',
    'mergeLoras',
    'personalise',
    'personaliseDefaults',
    'presets',
    'readSubjects',
    'schedulerNames',
    'shippedModelPath',
  ]);
});

test('errors that a user can cause have exit codes of their own', () => {
  const codes = Object.entries(portrayal).flatMap(([name, value]) =>
    typeof value === 'function' && value.prototype instanceof portrayal.PortrayalError
      ? [
          [
            name,
            new (value as new (message: string) => InstanceType<typeof portrayal.PortrayalError>)('')
              .exitCode,
          ] as const,
        ]
      : [],
  );
  assert.equal(codes.length, 10);
  assert.equal(new Set(codes.map(([, code]) => code)).size, 10);
  assert.ok(codes.every(([, code]) => code > 1));
});
