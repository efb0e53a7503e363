import type { Random } from '../../tensor/random.js';
import { circle, coordinate, ellipse, mix, path, polygon, rect, star, stroke } from './svg.js';

/** Where a subject is: what its caption says and what is drawn about it, on a 100 by 100 canvas. */
export interface Scene {
  readonly name: string;
  /** What follows the subject in a caption; empty for a plain studio background. */
  readonly phrase: string;
  /** What is behind the subject. */
  readonly behind: (random: Random) => string;
  /** What is in front of it. */
  readonly before?: (random: Random) => string;
  /** Where the subject's foot stands. */
  readonly ground: number;
  /** How far right of the middle the subject stands, to leave sight of what is behind it. */
  readonly aside?: number;
  /** Whether the subject lies mirrored below itself. */
  readonly mirrored?: boolean;
  readonly shadow: boolean;
}

/** Lets a random value lie about a middle. */
function about(random: Random, middle: number, spread: number): number {
  return middle + (random.uniform() * 2 - 1) * spread;
}

function sky(colour: string): string {
  return rect(0, 0, 100, 100, { fill: colour });
}

function ground(top: number, colour: string): string {
  return rect(0, top, 100, 100 - top, { fill: colour });
}

const STUDIO_COLOURS = [
  '#f3e4d4',
  '#d8e6f2',
  '#e4f0d9',
  '#f2dce6',
  '#e6e0f2',
  '#ececec',
  '#fbf3cf',
  '#d5efe9',
  '#cfd3da',
  '#c9bfb3',
];

function studio(random: Random): string {
  const wall = random.pick(STUDIO_COLOURS);
  const edge = about(random, 78, 5);
  return sky(wall) + ground(edge, mix(wall, '#000000', 0.09));
}

function jungle(random: Random): string {
  let leaves = sky('#0f5a2c');
  for (let i = 0; i < 4; i++) leaves += rect(about(random, 12 + 25 * i, 6), 0, 3, 60, { fill: '#3f3a1c' });
  for (let i = 0; i < 14; i++) {
    const x = about(random, (i % 7) * 16.5, 5);
    const y = i < 7 ? about(random, 6, 6) : about(random, 88, 6);
    const turn = coordinate(about(random, 0, 60));
    leaves += ellipse(x, y, 6, 17, {
      fill: random.pick(['#1f8a3d', '#3aa648', '#0b4220']),
      transform: `rotate(${turn} ${coordinate(x)} ${coordinate(y)})`,
    });
  }
  return leaves;
}

function jungleFront(random: Random): string {
  let leaves = '';
  for (const x of [4, 96]) {
    for (let i = 0; i < 3; i++) {
      const turn = coordinate(about(random, x < 50 ? 35 : -35, 25));
      const y = 100 - i * 10;
      leaves += ellipse(x, y, 5, 20, {
        fill: ['#6cc551', '#3aa648', '#1f8a3d'][i],
        transform: `rotate(${turn} ${x} ${y})`,
      });
    }
  }
  return leaves;
}

function pine(x: number, y: number, height: number): string {
  const half = height * 0.3;
  return (
    polygon(
      [
        [x - half, y],
        [x, y - height],
        [x + half, y],
      ],
      { fill: '#2f6650' },
    ) +
    polygon(
      [
        [x - half * 0.5, y - height * 0.5],
        [x, y - height],
        [x + half * 0.5, y - height * 0.5],
      ],
      { fill: '#ffffff' },
    )
  );
}

function snow(random: Random): string {
  return (
    sky('#b4cfe8') +
    pine(about(random, 12, 4), 56, 44) +
    pine(about(random, 88, 4), 56, 48) +
    pine(about(random, 32, 4), 54, 30) +
    ellipse(20, 66, 60, 16, { fill: '#e8f1fa' }) +
    ellipse(80, 70, 60, 18, { fill: '#f6fafd' }) +
    ground(70, '#f6fafd')
  );
}

function snowFront(random: Random): string {
  let flakes = ellipse(50, 96, 46, 8, { fill: '#ffffff' });
  for (let i = 0; i < 16; i++)
    flakes += circle(about(random, (i % 4) * 28 + 8, 9), about(random, Math.floor(i / 4) * 22 + 8, 8), 1.7, {
      fill: '#ffffff',
    });
  return flakes;
}

function beach(random: Random): string {
  const shore = about(random, 58, 3);
  return (
    sky('#8fd6f7') +
    circle(about(random, 84, 5), about(random, 13, 3), 9, { fill: '#fff09a' }) +
    rect(0, 36, 100, 30, { fill: '#1d8fd1' }) +
    path(
      `M0,${coordinate(shore)}Q25,${coordinate(shore - 5)} 50,${coordinate(shore)}T100,${coordinate(shore)}V100H0Z`,
      { fill: '#ffffff' },
    ) +
    path(
      `M0,${coordinate(shore + 4)}Q25,${coordinate(shore - 1)} 50,${coordinate(shore + 4)}T100,${coordinate(shore + 4)}V100H0Z`,
      { fill: '#f3d795' },
    ) +
    stroke('M12,62C11,44 13,30 9,18', '#8b6337', 3.5) +
    stroke('M9,18Q-2,14 -4,24M9,18Q4,6 -4,8M9,18Q18,6 26,14M9,18Q22,16 26,26', '#2d9148', 4)
  );
}

function cobblestone(random: Random): string {
  let stones = sky('#55504c');
  for (let row = 0; row < 7; row++) {
    for (let column = 0; column < 7; column++) {
      const x = column * 17 - (row % 2) * 8.5;
      stones += rect(x, row * 14.5 + 0.8, 15, 12.6, {
        rx: 5,
        fill: random.pick(['#a39b92', '#8b837b', '#b7aea3', '#978a80']),
      });
    }
  }
  return stones;
}

function fabric(random: Random): string {
  let folds = sky('#f7a8c9');
  for (let i = 0; i < 6; i++) {
    const x = about(random, i * 20, 4);
    const sway = about(random, 12, 6);
    folds += stroke(
      `M${coordinate(x)},-5C${coordinate(x + sway)},30 ${coordinate(x - sway)},65 ${coordinate(x + 8)},105`,
      i % 2 === 0 ? '#e67fae' : '#fdd3e4',
      5,
    );
  }
  return folds;
}

function wooden(random: Random): string {
  let planks = sky('#e9dcc8') + ground(26, '#b9773d');
  for (let i = 0; i < 6; i++) {
    const y = 26 + i * 13;
    planks += rect(0, y, 100, 12, { fill: i % 2 === 0 ? '#c58548' : '#ad6b34' });
    const joint = about(random, 20 + ((i * 37) % 60), 8);
    planks += stroke(`M0,${y}H100M${coordinate(joint)},${y}v12`, '#6d3d18', 1.3);
  }
  return planks;
}

function city(random: Random): string {
  let towers = sky('#f6c9a0');
  for (let i = 0; i < 7; i++) {
    const height = about(random, [44, 62, 38, 50, 34, 66, 48][i]!, 5);
    const x = i * 14.5 - 1;
    towers += rect(x, 74 - height, 13.5, height, { fill: i % 2 === 0 ? '#4a5a78' : '#5f7193' });
    for (let y = 78 - height; y < 68; y += 9)
      towers += rect(x + 2.5, y, 3, 4, { fill: '#ffe88a' }) + rect(x + 8, y, 3, 4, { fill: '#ffe88a' });
  }
  return towers + ground(74, '#6b6b70') + rect(0, 74, 100, 3, { fill: '#c8c8c8' });
}

function mountain(random: Random): string {
  const x = about(random, 28, 5);
  return (
    sky('#9fd3f5') +
    polygon(
      [
        [40, 66],
        [84, 22],
        [128, 66],
      ],
      { fill: '#7c83a3' },
    ) +
    polygon(
      [
        [73, 33],
        [84, 22],
        [95, 33],
        [88, 31],
        [83, 36],
        [79, 31],
      ],
      { fill: '#ffffff' },
    ) +
    polygon(
      [
        [x - 48, 66],
        [x, 6],
        [x + 48, 66],
      ],
      { fill: '#626a8e' },
    ) +
    polygon(
      [
        [x - 14, 23.5],
        [x, 6],
        [x + 14, 23.5],
        [x + 6, 20],
        [x, 27],
        [x - 6, 20],
      ],
      { fill: '#ffffff' },
    ) +
    ground(64, '#74b65a')
  );
}

function blueHouse(random: Random): string {
  const x = about(random, 26, 4);
  return (
    sky('#d9eefb') +
    ground(66, '#83c764') +
    rect(x - 25, 28, 50, 42, { fill: '#3f7fe0' }) +
    polygon(
      [
        [x - 31, 29],
        [x, 4],
        [x + 31, 29],
      ],
      { fill: '#b5382f' },
    ) +
    rect(x - 19, 36, 12, 12, { fill: '#fff6c2' }) +
    rect(x + 4, 36, 12, 12, { fill: '#fff6c2' }) +
    rect(x - 19, 53, 10, 17, { fill: '#ffffff' })
  );
}

function purpleRug(random: Random): string {
  let trunks = sky('#a9cf9b');
  for (let i = 0; i < 6; i++) {
    const x = about(random, i * 19 + 2, 3);
    trunks += rect(x - 3.5, 0, 7, 64, { fill: i % 2 === 0 ? '#6a4a2f' : '#7d5a3b' });
  }
  return (
    trunks +
    rect(0, 0, 100, 12, { fill: '#2c7a3e' }) +
    ground(60, '#5c8a43') +
    ellipse(50, 84, 48, 15, { fill: '#e3c53f' }) +
    ellipse(50, 84, 44, 12.5, { fill: '#8a3fd0' }) +
    ellipse(50, 84, 34, 8.5, { fill: '#a868e6' })
  );
}

function wheat(random: Random): string {
  let stalks = sky('#8cc4ef') + ground(30, '#e3b63d');
  for (let i = 0; i < 18; i++) {
    const x = about(random, i * 6, 2);
    const top = about(random, 28, 5);
    stalks +=
      stroke(`M${coordinate(x)},100V${coordinate(top)}`, i % 2 === 0 ? '#c08f22' : '#f3d067', 2) +
      ellipse(x, top, 2, 6, { fill: '#f0c850' });
  }
  return stalks;
}

function autumn(random: Random): string {
  const x = about(random, 20, 4);
  let leaves =
    sky('#dbe7ee') +
    ground(70, '#b8793a') +
    path(`M${coordinate(x - 6)},74L${coordinate(x - 3)},30H${coordinate(x + 3)}L${coordinate(x + 6)},74Z`, {
      fill: '#5b3a22',
    }) +
    circle(x - 12, 24, 17, { fill: '#e8731c' }) +
    circle(x + 13, 23, 17, { fill: '#d9481c' }) +
    circle(x, 11, 16, { fill: '#f2a51e' });
  for (let i = 0; i < 16; i++) {
    const cx = i < 6 ? about(random, 72, 26) : about(random, (i - 6) * 11, 4);
    const cy = i < 6 ? about(random, 28, 24) : about(random, 86, 10);
    leaves += ellipse(cx, cy, 3.6, 2.2, { fill: random.pick(['#e8731c', '#d9331c', '#f2b51e']) });
  }
  return leaves;
}

function eiffel(random: Random): string {
  const x = about(random, 20, 3);
  const at = (dx: number, y: number) => `${coordinate(x + dx)},${y}`;
  return (
    sky('#bfe3f7') +
    ellipse(74, 16, 16, 5, { fill: '#ffffff' }) +
    ground(72, '#8fbf6f') +
    path(
      `M${at(-1, 3)}L${at(1, 3)}L${at(4, 34)}L${at(8, 54)}L${at(17, 76)}H${coordinate(x + 9)}Q${at(0, 54)} ${at(-9, 76)}H${coordinate(x - 17)}L${at(-8, 54)}L${at(-4, 34)}Z`,
      {
        fill: '#6b4a35',
      },
    ) +
    rect(x - 6.5, 33, 13, 3.5, { fill: '#4e3424' }) +
    rect(x - 11, 53, 22, 4, { fill: '#4e3424' })
  );
}

function ripples(random: Random, from: number, to: number, colour: string): string {
  let lines = '';
  for (let y = from; y < to; y += 9) {
    const x = about(random, 0, 10);
    lines += stroke(
      `M${coordinate(x - 10)},${coordinate(y)}q8,-5 16,0t16,0t16,0t16,0t16,0t16,0t16,0`,
      colour,
      2,
    );
  }
  return lines;
}

function water(random: Random): string {
  return sky('#cfeefc') + ground(24, '#2a86d8') + ripples(random, 32, 100, '#7cc3f5');
}

function waterFront(random: Random): string {
  const y = 84;
  return (
    path(`M0,${y}q12.5,-6 25,0t25,0t25,0t25,0V100H0Z`, { fill: '#2a86d8' }) +
    ripples(random, y + 5, 100, '#bfe4fb')
  );
}

function milk(random: Random): string {
  return (
    sky('#b9d4ea') +
    path('M0,28q12.5,-8 25,0t25,0t25,0t25,0V100H0Z', { fill: '#fbf6e6' }) +
    ripples(random, 40, 100, '#e4d8b8')
  );
}

function milkFront(): string {
  return path('M0,84q12.5,-7 25,0t25,0t25,0t25,0V100H0Z', {
    fill: '#fffcf0',
    stroke: '#e4d8b8',
    'stroke-width': 1.5,
  });
}

function sunflower(x: number, y: number, r: number): string {
  return (
    stroke(`M${coordinate(x)},${coordinate(y)}v${coordinate(r * 2.4)}`, '#2f7a2f', 2.5) +
    star(x, y, r * 1.25, {
      fill: '#ffcf1f',
      stroke: '#ffcf1f',
      'stroke-width': r * 0.7,
      'stroke-linejoin': 'round',
    }) +
    circle(x, y, r * 0.62, { fill: '#5e3512' })
  );
}

function sunflowers(random: Random): string {
  let flowers = sky('#5cc247');
  for (let i = 0; i < 14; i++)
    flowers += stroke(
      `M${coordinate(about(random, (i % 7) * 16, 4))},${coordinate(about(random, i < 7 ? 35 : 70, 9))}l2,-8`,
      '#3c9a2e',
      2.4,
    );
  for (const [x, y] of [
    [10, 12],
    [36, 8],
    [64, 9],
    [90, 13],
    [7, 46],
    [93, 47],
  ] as const)
    flowers += sunflower(about(random, x, 3), about(random, y, 3), 6.5);
  return flowers;
}

function sunflowersFront(random: Random): string {
  return (
    sunflower(about(random, 9, 2), about(random, 80, 2), 7) +
    sunflower(about(random, 91, 2), about(random, 81, 2), 7)
  );
}

function mirror(random: Random): string {
  const glass = random.pick(['#d3ecf5', '#dcf0f0']);
  return (
    sky('#7b5a66') +
    rect(0, 0, 100, 40, { fill: '#94717e' }) +
    ellipse(50, 78, 49, 22, { fill: '#d9a441' }) +
    ellipse(50, 78, 45, 19, { fill: glass }) +
    stroke('M13,76L26,65M77,91L89,80', '#ffffff', 3)
  );
}

function crowd(random: Random): string {
  let people = sky('#cdb8a2') + rect(0, 0, 100, 18, { fill: '#8d6f5c' });
  for (let i = 0; i < 5; i++) people += rect(4 + i * 20, 3, 9, 11, { fill: '#f2e3b0' });
  for (let i = 0; i < 8; i++) {
    const x = about(random, i * 13.5 + 3, 2);
    const y = about(random, 26, 3);
    people +=
      rect(x - 6, y + 5, 12, 38, {
        rx: 5,
        fill: ['#3a4a6b', '#a33b3b', '#3f6f52', '#c98a2e'][(i + random.int(2)) % 4],
      }) + circle(x, y, 5, { fill: random.pick(['#f1c9a5', '#8d5a3a', '#c98f66']) });
  }
  people += ground(64, '#b9b9bd') + rect(0, 64, 100, 3, { fill: '#8a8a90' });
  return people + stroke('M0,82H100M20,67L8,100M50,67V100M80,67L92,100', '#93939a', 1.6);
}

function dirtRoad(random: Random): string {
  const bend = about(random, 50, 5);
  return (
    sky('#aadcf5') +
    ground(30, '#5fa544') +
    polygon(
      [
        [bend - 7, 30],
        [bend + 7, 30],
        [108, 100],
        [-8, 100],
      ],
      { fill: '#a8743f' },
    ) +
    stroke(`M${coordinate(bend - 3)},31L22,100M${coordinate(bend + 3)},31L78,100`, '#84562a', 3.5) +
    circle(about(random, 10, 3), 44, 6, { fill: '#2f7a35' }) +
    circle(about(random, 90, 3), 46, 7, { fill: '#2f7a35' }) +
    circle(about(random, 25, 3), 36, 4, { fill: '#2f7a35' })
  );
}

function whiteRug(random: Random): string {
  let fringe = '';
  const shift = about(random, 0, 2);
  for (let i = 0; i < 9; i++) fringe += stroke(`M${coordinate(6 + i * 11 + shift)},52V98`, '#dedbd4', 2.4);
  return (
    sky('#7d8f86') +
    ground(40, '#5d4638') +
    rect(0, 38, 100, 3.5, { fill: '#e9e2d6' }) +
    fringe +
    rect(2, 56, 96, 38, { rx: 5, fill: '#f8f6f1' }) +
    rect(8, 61, 84, 28, { rx: 3, fill: 'none', stroke: '#d3cfc6', 'stroke-width': 2 })
  );
}

/** Every place a subject can be in; the first is the plain studio. Labels of the classifier are places in this list. */
export const SCENES = [
  { name: 'studio', phrase: '', behind: studio, ground: 86, shadow: true },
  { name: 'jungle', phrase: 'in the jungle', behind: jungle, before: jungleFront, ground: 88, shadow: true },
  { name: 'snow', phrase: 'in the snow', behind: snow, before: snowFront, ground: 90, shadow: false },
  { name: 'beach', phrase: 'on the beach', behind: beach, ground: 88, aside: 5, shadow: true },
  {
    name: 'cobblestone street',
    phrase: 'on a cobblestone street',
    behind: cobblestone,
    ground: 85,
    shadow: true,
  },
  { name: 'pink fabric', phrase: 'on top of pink fabric', behind: fabric, ground: 84, shadow: true },
  { name: 'wooden floor', phrase: 'on top of a wooden floor', behind: wooden, ground: 86, shadow: true },
  { name: 'city', phrase: 'with a city in the background', behind: city, ground: 90, shadow: true },
  {
    name: 'mountain',
    phrase: 'with a mountain in the background',
    behind: mountain,
    ground: 91,
    aside: 9,
    shadow: true,
  },
  {
    name: 'blue house',
    phrase: 'with a blue house in the background',
    behind: blueHouse,
    ground: 91,
    aside: 11,
    shadow: true,
  },
  {
    name: 'purple rug',
    phrase: 'on top of a purple rug in a forest',
    behind: purpleRug,
    ground: 87,
    shadow: false,
  },
  {
    name: 'wheat field',
    phrase: 'with a wheat field in the background',
    behind: wheat,
    ground: 90,
    shadow: false,
  },
  {
    name: 'autumn leaves',
    phrase: 'with a tree and autumn leaves in the background',
    behind: autumn,
    ground: 90,
    aside: 10,
    shadow: true,
  },
  {
    name: 'eiffel tower',
    phrase: 'with the Eiffel Tower in the background',
    behind: eiffel,
    ground: 91,
    aside: 10,
    shadow: true,
  },
  {
    name: 'water',
    phrase: 'floating on top of water',
    behind: water,
    before: waterFront,
    ground: 92,
    shadow: false,
  },
  {
    name: 'milk',
    phrase: 'floating in an ocean of milk',
    behind: milk,
    before: milkFront,
    ground: 92,
    shadow: false,
  },
  {
    name: 'sunflowers',
    phrase: 'on top of green grass with sunflowers around it',
    behind: sunflowers,
    before: sunflowersFront,
    ground: 88,
    shadow: true,
  },
  { name: 'mirror', phrase: 'on top of a mirror', behind: mirror, ground: 77, mirrored: true, shadow: false },
  {
    name: 'crowded street',
    phrase: 'on top of the sidewalk in a crowded street',
    behind: crowd,
    ground: 90,
    shadow: true,
  },
  { name: 'dirt road', phrase: 'on top of a dirt road', behind: dirtRoad, ground: 89, shadow: true },
  { name: 'white rug', phrase: 'on top of a white rug', behind: whiteRug, ground: 84, shadow: true },
] as const satisfies readonly Scene[];
export type SceneName = (typeof SCENES)[number]['name'];

export function sceneNamed(name: SceneName): Scene {
  return SCENES.find((scene) => scene.name === name)!;
}
