import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ModelError } from '../../src/errors.js';
import { type Config, parseConfig } from '../../src/formats/json-config.js';

const read = (values: object): Config => parseConfig(JSON.stringify(values), 'unet/config.json');

function message(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof ModelError, String(error));
    return error.message;
  }
  assert.fail('nothing was thrown');
}

test('values come out typed; fallbacks stand for absent keys only', () => {
  const config = read({
    n: 3,
    x: 0.5,
    flag: true,
    name: 'a',
    act: 'silu',
    list: [1, 2],
    nothing: null,
    inner: { k: 2 },
  });
  assert.equal(config.integer('n'), 3);
  assert.equal(config.integer('absent', 7), 7);
  assert.equal(config.number('x'), 0.5);
  assert.equal(config.boolean('flag', false), true);
  assert.equal(config.string('name'), 'a');
  assert.equal(config.oneOf('act', ['silu', 'gelu']), 'silu');
  assert.equal(config.oneOf('absent', ['silu', 'gelu'], 'gelu'), 'gelu');
  assert.deepEqual(config.integers('list', { length: 2 }), [1, 2]);
  assert.deepEqual(config.integerOrIntegers('list', 2), [1, 2]);
  assert.deepEqual(config.integerOrIntegers('n', 2), [3, 3]);
  assert.deepEqual(config.booleanOrBooleans('flag', 2), [true, true]);
  assert.equal(config.optionalInteger('nothing'), undefined);
  assert.equal(config.optionalNumber('absent'), undefined);
  assert.equal(config.object('inner').integer('k'), 2);
  assert.equal(config.object('absent', true).has('k'), false);
  assert.equal(config.has('nothing'), false);
  assert.equal(config.has('toString'), false);
  config.must('nothing', null);
  config.must('list', [1, 2]);
  config.must('absent', 'x', 'x');
  config.finish();
});

test('a wrong value is named with file, key, value and what is supported', () => {
  const cases: [object, (config: Config) => unknown, RegExp][] = [
    [
      {},
      (c) => c.integer('n'),
      /unet\/config\.json: the setting "n" is missing; supported: a whole number of at least 1\./,
    ],
    [
      { n: '3' },
      (c) => c.integer('n', 1),
      /the setting "n" is "3", which is not supported; supported: a whole number of at least 1/,
    ],
    [{ n: 2.5 }, (c) => c.integer('n'), /is 2\.5/],
    [{ n: 0 }, (c) => c.integer('n'), /is 0/],
    [{ n: null }, (c) => c.integer('n', 1), /is null/],
    [{ x: true }, (c) => c.number('x'), /is true.*supported: a number/],
    [{ f: 1 }, (c) => c.boolean('f'), /is 1.*supported: true or false/],
    [
      { a: 'mish' },
      (c) => c.oneOf('a', ['silu', 'gelu'], 'silu'),
      /"a" is "mish".*supported: "silu", "gelu"\./,
    ],
    [{ l: [1, 2] }, (c) => c.integers('l', { length: 3 }), /is \[1,2\].*a list of 3 times whole numbers/],
    [{ l: [] }, (c) => c.integers('l'), /is \[\]/],
    [
      { l: ['Down', 'Odd'] },
      (c) => c.listOf('l', ['Down']),
      /is \["Down","Odd"\].*supported: a list of "Down"/,
    ],
    [{ l: [1, '2'] }, (c) => c.integerOrIntegers('l', 2), /is \[1,"2"\]/],
    [{ m: 'b' }, (c) => c.must('m', 'a'), /"m" is "b".*supported: "a"\./],
    [{}, (c) => c.must('m', 'a', 'b'), /"m" is missing; supported: "a"\./],
    [{ o: { k: 'x' } }, (c) => c.object('o').integer('k'), /the setting "o\.k" is "x"/],
    [{ o: [] }, (c) => c.object('o'), /"o" is \[\].*an object/],
    [{ long: 'x'.repeat(500) }, (c) => c.integer('long'), /"x{70,80}\.\.\./],
  ];
  for (const [values, use, expected] of cases)
    assert.match(
      message(() => use(read(values))),
      expected,
    );
});

test('finish rejects what nobody looked at, unless it is neutral', () => {
  const neutral = read({
    _class_name: 'X',
    off: false,
    none: null,
    empty: [],
    nothing: {},
    seen: 5,
    ignored: 'x',
  });
  neutral.integer('seen');
  neutral.ignore('ignored').finish();
  const config = read({ seen: 5, new_trick: 'on' });
  config.integer('seen');
  assert.match(
    message(() => config.finish()),
    /unet\/config\.json: the setting "new_trick" is "on", which is not known here/,
  );
});

test('a file that is not one JSON object', () => {
  assert.match(
    message(() => parseConfig('{"a": 1', 'x.json')),
    /^x\.json is not valid JSON .*cut short/,
  );
  assert.match(
    message(() => parseConfig('', 'x.json')),
    /not valid JSON/,
  );
  assert.match(
    message(() => parseConfig('[1]', 'x.json')),
    /expected a JSON object, found \[1\]/,
  );
  assert.match(
    message(() => parseConfig('null', 'x.json')),
    /found null/,
  );
  assert.match(
    message(() => parseConfig(`{"a":${'['.repeat(9999)}${']'.repeat(9999)}}`, 'x.json')),
    /nested more than 100 deep/,
  );
  assert.equal(parseConfig('\uFEFF{"a": 1}', 'x.json').integer('a'), 1);
});

test("Python's NaN is no number, and is named", () => {
  const config = parseConfig('{"factor": NaN, "text": "NaN"}', 'x.json');
  assert.equal(config.string('text'), 'NaN');
  assert.match(
    message(() => config.number('factor')),
    /x\.json.*"factor" is "NaN", which is not supported; supported: a number/,
  );
});

test("Python's infinities are read, outside of texts, and are no finite numbers", () => {
  const config = parseConfig('{"low": -Infinity, "high": Infinity, "text": "a \\"Infinity\\""}', 'x.json');
  assert.equal(config.raw('low'), Number.NEGATIVE_INFINITY);
  assert.equal(config.raw('high'), Number.POSITIVE_INFINITY);
  assert.equal(config.string('text'), 'a "Infinity"');
  assert.match(
    message(() => config.number('low')),
    /"low" is -Infinity, which is not supported; supported: a number/,
  );
});
