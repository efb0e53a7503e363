import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Augmentation } from '../../src/data/augmentation.js';
import { Random } from '../../src/tensor/random.js';

const SIDE = 64;
const PLANE = SIDE ** 2;
const augmentation = new Augmentation(SIDE, new Random(1, 'grain'));

/** Black, with a white square of 16 pixels in the middle of every channel. */
function square(): Float32Array {
  return Float32Array.from({ length: 3 * PLANE }, (_, i) => {
    const [y, x] = [Math.floor((i % PLANE) / SIDE), i % SIDE];
    return Math.abs(y - 31.5) < 8 && Math.abs(x - 31.5) < 8 ? 1 : -1;
  });
}

test('augmentation follows from its random stream, and every stream gives another picture', () => {
  const pictures = [1, 2, 3, 1].map((stream) => {
    const picture = square();
    augmentation.apply(picture, new Random(5, stream));
    return picture;
  });
  assert.deepEqual(pictures[3], pictures[0]);
  assert.notDeepEqual(pictures[1], pictures[0]);
  assert.notDeepEqual(pictures[2], pictures[1]);
});

test('augmentation is small: values stay in range, and the square stays white and near where it was', () => {
  for (let stream = 0; stream < 20; stream++) {
    const picture = square();
    augmentation.apply(picture, new Random(6, stream));
    let [mass, left, top] = [0, 0, 0];
    picture.forEach((value, i) => {
      if (value < -1 || value > 1) assert.fail(`stream ${stream}: a value of ${value}`);
      if (value <= 0) return;
      mass++;
      left += i % SIDE;
      top += Math.floor((i % PLANE) / SIDE);
    });
    // Grain lets a few pixels cross the middle; the edges of the square soften.
    assert.ok(Math.abs(mass / 3 - 256) < 40, `stream ${stream}: ${mass / 3} white pixels of 256`);
    assert.ok(Math.abs(left / mass - 31.5) < 4.7, `stream ${stream}: ${left / mass} from the left`);
    assert.ok(Math.abs(top / mass - 31.5) < 4.7, `stream ${stream}: ${top / mass} from the top`);
  }
});
