import type { Motif, Noun, Pattern } from './subject.js';
import { circle, ellipse, mix, path, polygon, rect, star, stroke } from './svg.js';

/** The colours a drawing is painted with. */
export interface Paint {
  /** The main colour or its pattern, as a fill. */
  readonly fill: string;
  readonly main: string;
  /** The main colour in the shade. */
  readonly shade: string;
  readonly second: string;
  /** For lines on the main colour. */
  readonly ink: string;
  readonly variant: number;
}

/** Where things that are worn go, for a live subject. */
export interface Wearer {
  readonly head: { readonly x: number; readonly y: number; readonly r: number };
  readonly neck: { readonly x: number; readonly y: number; readonly halfWidth: number };
  /** Path of the part of the body that clothes cover. */
  readonly torso: string;
  /** Middle of the torso. */
  readonly chest: { readonly x: number; readonly y: number };
}

/** A subject about the origin, between -50 and 50 both ways. */
export interface Drawing {
  readonly body: string;
  /** Drawn over clothes. */
  readonly head?: string;
  /** Centres and radius of the motifs. */
  readonly motifs: readonly (readonly [x: number, y: number])[];
  readonly motifRadius: number;
  /** How far below the origin it stands. */
  readonly foot: number;
  readonly wearer?: Wearer;
}

export const OUTLINE = '#1c1920';

function backpack({ fill, second, shade, ink, variant }: Paint): Drawing {
  const pockets = [
    rect(-21, 14, 42, 25, { rx: 6, fill: shade }) + stroke('M-15,21H15', second, 4),
    rect(-23, 14, 21, 25, { rx: 5, fill: shade }) +
      rect(2, 14, 21, 25, { rx: 5, fill: shade }) +
      stroke('M-17,20H-8M8,20H17', second, 4),
    path('M-22,12H22V30Q22,39 12,39H-12Q-22,39 -22,30Z', { fill: shade }) +
      rect(-4, 18, 8, 11, { rx: 2, fill: second }),
  ];
  return {
    body:
      stroke('M-11,-36C-11,-51 11,-51 11,-36', OUTLINE, 8) +
      stroke('M-11,-36C-11,-51 11,-51 11,-36', second, 4) +
      rect(-41, 4, 14, 34, { rx: 6, fill: second }) +
      rect(27, 4, 14, 34, { rx: 6, fill: second }) +
      path('M-32,-12C-32,-48 32,-48 32,-12V38Q32,46 24,46H-24Q-32,46 -32,38Z', { fill }) +
      pockets[variant % 3] +
      stroke('M-27,-20C-20,-34 20,-34 27,-20', ink, 1.8),
    motifs: [[0, -7]],
    motifRadius: 13,
    foot: 46,
  };
}

function stuffedAnimal({ fill, main, second, shade, ink, variant }: Paint): Drawing {
  const ear = [11, 13, 9][variant % 3]!;
  const eyes = ink === OUTLINE ? OUTLINE : '#f4f4f4';
  return {
    body:
      circle(-21, -38, ear, { fill: main }) +
      circle(21, -38, ear, { fill: main }) +
      circle(-21, -38, ear * 0.5, { fill: second, stroke: 'none' }) +
      circle(21, -38, ear * 0.5, { fill: second, stroke: 'none' }) +
      ellipse(-31, 8, 9, 17, { fill: main, transform: 'rotate(35 -31 8)' }) +
      ellipse(31, 8, 9, 17, { fill: main, transform: 'rotate(-35 31 8)' }) +
      ellipse(0, 20, 26, 26, { fill }) +
      ellipse(-23, 39, 13, 11, { fill: main }) +
      ellipse(23, 39, 13, 11, { fill: main }) +
      circle(-24, 40, 6, { fill: second, stroke: 'none' }) +
      circle(24, 40, 6, { fill: second, stroke: 'none' }) +
      ellipse(0, -23, 27, 23, { fill: main }) +
      ellipse(0, -15, 12, 9, { fill: mix(main, '#ffffff', 0.45), stroke: shade, 'stroke-width': 1 }) +
      ellipse(0, -19, 4.5, 3.2, { fill: OUTLINE, stroke: 'none' }) +
      circle(-11, -27, 3.2, { fill: eyes, stroke: 'none' }) +
      circle(11, -27, 3.2, { fill: eyes, stroke: 'none' }) +
      stroke('M-5,-12Q0,-8 5,-12', OUTLINE, 1.8),
    motifs: [[0, 18]],
    motifRadius: 12,
    foot: 49,
  };
}

function bowl({ fill, second, shade, variant }: Paint): Drawing {
  const depth = [38, 42, 34][variant % 3]!;
  return {
    body:
      path(`M-16,${depth - 6}H16L20,${depth + 5}H-20Z`, { fill: shade }) +
      path(`M-47,-12C-46,18 -30,${depth} 0,${depth}C30,${depth} 46,18 47,-12Z`, { fill }) +
      ellipse(0, -12, 47, 13, { fill: second }) +
      ellipse(0, -11, 40, 8.5, { fill: mix(shade, '#000000', 0.3), stroke: 'none' }),
    motifs: [[0, 16]],
    motifRadius: 13,
    foot: depth + 5,
  };
}

function can({ fill, second, variant }: Paint): Drawing {
  const half = [27, 30, 24][variant % 3]!;
  return {
    body:
      path(`M-${half},-38V38C-${half},50 ${half},50 ${half},38V-38Z`, { fill }) +
      stroke(`M-${half},34C-${half},46 ${half},46 ${half},34`, second, 5) +
      stroke(`M-${half},-28C-${half},-18 ${half},-18 ${half},-28`, second, 5) +
      ellipse(0, -38, half, 9, { fill: '#d5d9de' }) +
      ellipse(0, -38, half - 7, 5.5, { fill: '#aeb4bc', stroke: 'none' }) +
      ellipse(2, -38, 8, 2.4, { fill: '#f2f4f6', 'stroke-width': 1.2 }),
    motifs: [[0, 8]],
    motifRadius: 15,
    foot: 47,
  };
}

function candle({ fill, main, second, variant }: Paint): Drawing {
  const half = [19, 22, 17][variant % 3]!;
  return {
    body:
      ellipse(0, 41, 40, 8, { fill: second }) +
      path(`M-${half},-12V36C-${half},44 ${half},44 ${half},36V-12Z`, { fill }) +
      ellipse(0, -12, half, 6, { fill: mix(main, '#ffffff', 0.4) }) +
      stroke('M0,-12V-20', OUTLINE, 2.5) +
      path('M0,-50C9,-37 12,-31 9,-24C6,-17 -6,-17 -9,-24C-12,-31 -9,-37 0,-50Z', {
        fill: '#ff9d1e',
        'stroke-width': 1.8,
      }) +
      path('M0,-38C4,-30 5,-27 4,-24C2,-20 -2,-20 -4,-24C-5,-27 -4,-30 0,-38Z', {
        fill: '#fff3a0',
        stroke: 'none',
      }),
    motifs: [[0, 14]],
    motifRadius: 12,
    foot: 48,
  };
}

function cat({ fill, main, second, shade, ink, variant }: Paint): Drawing {
  const eye = variant % 3 === 1 ? '#ffe14a' : '#a8f06a';
  const torso = 'M-14,-2C-26,14 -30,30 -26,45H26C30,30 26,14 14,-2Z';
  return {
    body:
      stroke('M22,40C46,44 48,18 36,8', OUTLINE, 11) +
      stroke('M22,40C46,44 48,18 36,8', main, 6.5) +
      stroke('M36.5,8.5L36,8', second, 6.5) +
      path(torso, { fill }) +
      ellipse(-11, 44, 9, 5.5, { fill: main }) +
      ellipse(11, 44, 9, 5.5, { fill: main }),
    head:
      polygon(
        [
          [-26, -25],
          [-25, -50],
          [-5, -39],
        ],
        { fill: main },
      ) +
      polygon(
        [
          [26, -25],
          [25, -50],
          [5, -39],
        ],
        { fill: main },
      ) +
      polygon(
        [
          [-21, -32],
          [-21, -43],
          [-12, -38],
        ],
        { fill: second, stroke: 'none' },
      ) +
      polygon(
        [
          [21, -32],
          [21, -43],
          [12, -38],
        ],
        { fill: second, stroke: 'none' },
      ) +
      ellipse(0, -20, 28, 22, { fill: main }) +
      ellipse(-11, -23, 5.5, 6, { fill: eye, stroke: OUTLINE, 'stroke-width': 1.4 }) +
      ellipse(11, -23, 5.5, 6, { fill: eye, stroke: OUTLINE, 'stroke-width': 1.4 }) +
      ellipse(-11, -23, 1.9, 5, { fill: OUTLINE, stroke: 'none' }) +
      ellipse(11, -23, 1.9, 5, { fill: OUTLINE, stroke: 'none' }) +
      polygon(
        [
          [-4, -13],
          [4, -13],
          [0, -9],
        ],
        { fill: '#f58bb0', stroke: shade, 'stroke-width': 1 },
      ) +
      stroke('M-14,-10L-36,-13M-14,-7L-34,-3M14,-10L36,-13M14,-7L34,-3', ink, 1.5),
    motifs: [[0, 22]],
    motifRadius: 12,
    foot: 49,
    wearer: {
      head: { x: 0, y: -20, r: 27 },
      neck: { x: 0, y: 1, halfWidth: 20 },
      torso,
      chest: { x: 0, y: 22 },
    },
  };
}

function dog({ fill, main, second, shade, variant }: Paint): Drawing {
  const ear = [30, 34, 26][variant % 3]!;
  const torso = 'M-42,6Q-42,-2 -30,-2H24Q32,4 30,16Q30,27 18,27H-32Q-42,26 -42,14Z';
  return {
    body:
      stroke('M-38,4C-46,-6 -46,-16 -42,-24', OUTLINE, 10.5) +
      stroke('M-38,4C-46,-6 -46,-16 -42,-24', main, 6) +
      rect(-28, 20, 10, 28, { rx: 4, fill: shade }) +
      rect(6, 20, 10, 28, { rx: 4, fill: shade }) +
      rect(-41, 18, 11, 31, { rx: 4, fill: main }) +
      rect(18, 18, 11, 31, { rx: 4, fill: main }) +
      path(torso, { fill }),
    head:
      ellipse(21, -18, 21, 20, { fill: main }) +
      ellipse(0, -12, 7.5, ear * 0.62, { fill: second, transform: 'rotate(14 0 -12)' }) +
      ellipse(42, -12, 7.5, ear * 0.62, { fill: second, transform: 'rotate(-14 42 -12)' }) +
      path('M17,-1H25V5Q21,11 17,5Z', { fill: '#f0637e', 'stroke-width': 1.4 }) +
      ellipse(21, -7, 12, 8.5, { fill: mix(main, '#ffffff', 0.5), 'stroke-width': 1.2 }) +
      ellipse(21, -11, 5.5, 4, { fill: OUTLINE, stroke: 'none' }) +
      circle(12, -22, 4, { fill: '#ffffff', 'stroke-width': 1 }) +
      circle(30, -22, 4, { fill: '#ffffff', 'stroke-width': 1 }) +
      circle(12.5, -21.5, 2.2, { fill: OUTLINE, stroke: 'none' }) +
      circle(29.5, -21.5, 2.2, { fill: OUTLINE, stroke: 'none' }),
    motifs: [[-16, 12]],
    motifRadius: 12,
    foot: 49,
    wearer: {
      head: { x: 21, y: -18, r: 21 },
      neck: { x: 21, y: 4, halfWidth: 16 },
      torso,
      chest: { x: -12, y: 12 },
    },
  };
}

function clock({ fill, main, second, ink, variant }: Paint): Drawing {
  const hands = ['M0,2V-22M0,2L15,2', 'M0,2L-14,-16M0,2L10,10', 'M0,2L14,-16M0,2L-12,2'][variant % 3]!;
  return {
    body:
      path('M-26,34L-34,48M26,34L34,48', { fill: 'none', 'stroke-width': 6, 'stroke-linecap': 'round' }) +
      path('M-40,-24A15,15 0 0 1 -16,-40Z', { fill: second }) +
      path('M40,-24A15,15 0 0 0 16,-40Z', { fill: second }) +
      rect(-4, -46, 8, 8, { rx: 2, fill: second }) +
      circle(0, 3, 41, { fill: second }) +
      circle(0, 3, 34, { fill }) +
      stroke('M0,-27V-22M0,33V28M-30,3H-25M30,3H25', ink, 3) +
      stroke(hands, OUTLINE, 7) +
      stroke(hands, main === '#f8f8f6' ? '#e0262b' : '#ffffff', 3.6) +
      circle(0, 2, 4, { fill: OUTLINE, stroke: 'none' }),
    motifs: [[0, 19]],
    motifRadius: 9,
    foot: 49,
  };
}

function sneaker({ fill, second, shade, ink, variant }: Paint): Drawing {
  const collar = [-20, -25, -16][variant % 3]!;
  return {
    body:
      path(
        `M-45,22C-45,2 -42,${collar + 6} -40,${collar}C-30,${collar + 8} -20,${collar + 8} -8,${collar}C0,-6 18,0 32,4C44,8 48,14 48,22Z`,
        { fill },
      ) +
      path('M22,22C22,10 30,4 34,4.5C44,8 48,14 48,22Z', { fill: second }) +
      stroke(`M-6,${collar + 8}L8,-10M1,${collar + 13}L15,-5M8,${collar + 18}L22,-1`, OUTLINE, 5.5) +
      stroke(`M-6,${collar + 8}L8,-10M1,${collar + 13}L15,-5M8,${collar + 18}L22,-1`, '#ffffff', 3) +
      path('M-47,21H49Q51,33 44,33H-42Q-48,33 -47,21Z', { fill: second === '#2a2a32' ? '#e9e9e6' : second }) +
      stroke('M-45,27H48', ink === OUTLINE ? shade : ink, 1.6),
    motifs: [[-22, 5]],
    motifRadius: 11.5,
    foot: 34,
  };
}

function boot({ fill, second, shade, variant }: Paint): Drawing {
  const top = [-46, -42, -48][variant % 3]!;
  return {
    body:
      path(`M-28,${top}H14V2C18,10 44,8 46,28V38H-28Z`, { fill }) +
      rect(-31, top, 48, 12, { rx: 4, fill: second }) +
      path('M-30,36H48V45H4V40H-10V48H-30Z', {
        fill: second === '#2a2a32' ? '#3d3d46' : mix(second, '#000000', 0.25),
      }) +
      stroke('M2,-12H12M2,-3H13', OUTLINE, 4.5) +
      stroke('M2,-12H12M2,-3H13', '#ffffff', 2.2) +
      stroke('M-28,20C-20,12 -10,12 -4,20', shade, 2),
    motifs: [[-11, -15]],
    motifRadius: 12,
    foot: 48,
  };
}

function glasses({ fill, second, shade, variant }: Paint): Drawing {
  const lens = [
    (x: number) => circle(x, 2, 21, { fill, stroke: OUTLINE, 'stroke-width': 2.4 }),
    (x: number) => rect(x - 22, -15, 44, 33, { rx: 9, fill }),
    (x: number) => ellipse(x, 2, 23, 18, { fill }),
  ][variant % 3]!;
  return {
    body:
      stroke('M-46,0L-49,-22L-40,-30M46,0L49,-22L40,-30', OUTLINE, 7.5) +
      stroke('M-46,0L-49,-22L-40,-30M46,0L49,-22L40,-30', second, 4) +
      stroke('M-6,-2Q0,-10 6,-2', OUTLINE, 8.5) +
      stroke('M-6,-2Q0,-10 6,-2', second, 4.5) +
      lens(-25) +
      lens(25) +
      stroke('M-39,-4Q-37,-9 -32,-11M11,-4Q13,-9 18,-11', mix(shade, '#ffffff', 0.75), 2.6),
    motifs: [
      [-25, 3],
      [25, 3],
    ],
    motifRadius: 11,
    foot: 22,
  };
}

function cartoon({ fill, main, second, variant }: Paint): Drawing {
  const horns = [
    polygon(
      [
        [-24, -30],
        [-30, -49],
        [-11, -38],
      ],
      { fill: second },
    ) +
      polygon(
        [
          [24, -30],
          [30, -49],
          [11, -38],
        ],
        { fill: second },
      ),
    stroke('M-10,-36L-18,-47M10,-36L18,-47', OUTLINE, 2.6) +
      circle(-18, -46, 4.5, { fill: second }) +
      circle(18, -46, 4.5, { fill: second }),
    polygon(
      [
        [-9, -36],
        [0, -51],
        [9, -36],
      ],
      { fill: second },
    ),
  ];
  return {
    body:
      stroke('M-30,8L-46,-8M30,8L46,-8M-12,36V45M12,36V45', OUTLINE, 7) +
      stroke('M-30,8L-46,-8M30,8L46,-8M-12,36V45M12,36V45', main, 3) +
      circle(-45, -9, 5.5, { fill: '#ffffff' }) +
      circle(45, -9, 5.5, { fill: '#ffffff' }) +
      ellipse(-15, 46, 10, 4.5, { fill: second }) +
      ellipse(15, 46, 10, 4.5, { fill: second }) +
      horns[variant % 3] +
      path('M0,-40C26,-40 32,-16 33,4C34,28 24,40 0,40C-24,40 -34,28 -33,4C-32,-16 -26,-40 0,-40Z', {
        fill,
      }) +
      ellipse(-11, -19, 10, 12, { fill: '#ffffff', 'stroke-width': 2 }) +
      ellipse(11, -19, 10, 12, { fill: '#ffffff', 'stroke-width': 2 }) +
      circle(-8, -16, 4.5, { fill: OUTLINE, stroke: 'none' }) +
      circle(8, -16, 4.5, { fill: OUTLINE, stroke: 'none' }) +
      path('M-17,0H17Q14,13 0,13Q-14,13 -17,0Z', { fill: '#7c1626', 'stroke-width': 2 }) +
      rect(-12, 0, 24, 4, { fill: '#ffffff', stroke: 'none' }),
    motifs: [[0, 25]],
    motifRadius: 10.5,
    foot: 50,
  };
}

function toy({ fill, second, variant }: Paint): Drawing {
  const roof = [-26, -30, -22][variant % 3]!;
  return {
    body:
      stroke(`M-8,${roof}V${roof - 12}`, OUTLINE, 4) +
      circle(-14, roof - 13, 6, { fill: second }) +
      circle(-2, roof - 13, 6, { fill: second }) +
      path(`M-26,-2L-18,${roof}H14L28,-2Z`, { fill }) +
      path(`M-18,-3L-13,${roof + 5}H-4V-3ZM2,-3V${roof + 5}H11L20,-3Z`, {
        fill: '#bfe9ff',
        'stroke-width': 2,
      }) +
      path('M-48,6Q-48,-3 -38,-3H32Q48,-2 48,12V24Q48,28 44,28H-44Q-48,28 -48,24Z', { fill }) +
      rect(-50, 20, 100, 7, { rx: 3, fill: second }) +
      circle(44, 8, 4.5, { fill: '#fff3a0', 'stroke-width': 1.6 }) +
      circle(-26, 29, 14, { fill: '#33333b' }) +
      circle(26, 29, 14, { fill: '#33333b' }) +
      circle(-26, 29, 6.5, { fill: second, stroke: 'none' }) +
      circle(26, 29, 6.5, { fill: second, stroke: 'none' }),
    motifs: [[0, 9]],
    motifRadius: 11,
    foot: 43,
  };
}

function teapot({ fill, main, second, shade, variant }: Paint): Drawing {
  const half = [30, 33, 28][variant % 3]!;
  return {
    body:
      stroke('M-26,-12C-54,-18 -54,28 -24,24', OUTLINE, 10.5) +
      stroke('M-26,-12C-54,-18 -54,28 -24,24', second, 6) +
      path('M20,20C36,16 34,-6 40,-18L50,-15C48,2 48,26 22,34Z', { fill: main }) +
      ellipse(0, 41, 20, 5, { fill: shade }) +
      ellipse(0, 11, half, 30, { fill }) +
      path('M-19,-15C-16,-28 16,-28 19,-15Z', { fill: second }) +
      circle(0, -29, 6, { fill: second }),
    motifs: [[0, 13]],
    motifRadius: 14,
    foot: 45,
  };
}

function vase({ fill, second, variant }: Paint): Drawing {
  const half = [29, 25, 32][variant % 3]!;
  const bloom = (x: number, y: number) =>
    circle(x, y, 7.5, { fill: second }) + circle(x, y, 3, { fill: '#ffe36b', stroke: 'none' });
  return {
    body:
      stroke('M0,-18V-38M-4,-18L-18,-34M4,-18L18,-34', '#1f7a35', 3) +
      bloom(-18, -35) +
      bloom(18, -35) +
      bloom(0, -42) +
      path(
        `M-13,-19H13C9,-6 ${half},-4 ${half},18C${half},34 18,40 15,48H-15C-18,40 -${half},34 -${half},18C-${half},-4 -9,-6 -13,-19Z`,
        { fill },
      ) +
      rect(-15, -23, 30, 7, { rx: 3, fill: second }),
    motifs: [[0, 19]],
    motifRadius: 14,
    foot: 48,
  };
}

/** How each noun is drawn. */
export const DRAWINGS: Readonly<Record<Noun, (paint: Paint) => Drawing>> = {
  backpack,
  'stuffed animal': stuffedAnimal,
  bowl,
  can,
  candle,
  cat,
  clock,
  sneaker,
  dog,
  toy,
  boot,
  glasses,
  cartoon,
  teapot,
  vase,
};

/** The tile of each pattern: its size and what is drawn on the main colour. */
export const PATTERN_TILES: Readonly<
  Record<Exclude<Pattern, 'plain'>, (second: string) => { width: number; height: number; marks: string }>
> = {
  striped: (second) => ({ width: 20, height: 15, marks: rect(0, 0, 20, 5.5, { fill: second }) }),
  dotted: (second) => ({ width: 17, height: 17, marks: circle(8.5, 8.5, 4.6, { fill: second }) }),
  checked: (second) => ({
    width: 20,
    height: 20,
    marks: rect(0, 0, 8.5, 8.5, { fill: second }) + rect(10, 10, 8.5, 8.5, { fill: second }),
  }),
  zigzag: (second) => ({ width: 18, height: 17, marks: stroke('M-2,15L9,4L20,15', second, 4.6) }),
};

/** Each motif about a centre, within a radius. */
export const MOTIF_MARKS: Readonly<
  Record<Exclude<Motif, 'none'>, (x: number, y: number, r: number, colour: string) => string>
> = {
  star: (x, y, r, fill) => star(x, y, r * 1.1, { fill, 'stroke-width': 1.4 }),
  heart: (x, y, r, fill) => {
    const at = (dx: number, dy: number) => `${(x + dx * r).toFixed(1)},${(y + dy * r).toFixed(1)}`;
    return path(
      `M${at(0, 0.95)}C${at(-1.5, -0.1)} ${at(-0.8, -1.3)} ${at(0, -0.4)}C${at(0.8, -1.3)} ${at(1.5, -0.1)} ${at(0, 0.95)}Z`,
      { fill, 'stroke-width': 1.4 },
    );
  },
  moon: (x, y, r, fill) => {
    const at = (dx: number, dy: number) => `${(x + dx * r).toFixed(1)},${(y + dy * r).toFixed(1)}`;
    return path(
      `M${at(0.35, -0.95)}A${r.toFixed(1)},${r.toFixed(1)} 0 1 0 ${at(0.35, 0.95)}A${(r * 1.05).toFixed(1)},${(r * 1.05).toFixed(1)} 0 0 1 ${at(0.35, -0.95)}Z`,
      {
        fill,
        'stroke-width': 1.4,
      },
    );
  },
  flower: (x, y, r, fill) => {
    let petals = '';
    for (let i = 0; i < 5; i++) {
      const angle = (i * 2 * Math.PI) / 5 - Math.PI / 2;
      petals += circle(x + 0.6 * r * Math.cos(angle), y + 0.6 * r * Math.sin(angle), r * 0.42, {
        fill,
        'stroke-width': 1,
      });
    }
    return (
      petals + circle(x, y, r * 0.36, { fill: fill === '#f8dc2c' ? '#fb8a12' : '#f8dc2c', stroke: 'none' })
    );
  },
  face: (x, y, r, fill) => {
    const features = fill === '#2a2a32' ? '#f8f8f6' : OUTLINE;
    return (
      circle(x, y, r, { fill, 'stroke-width': 1.4 }) +
      circle(x - r * 0.38, y - r * 0.25, r * 0.19, { fill: features, stroke: 'none' }) +
      circle(x + r * 0.38, y - r * 0.25, r * 0.19, { fill: features, stroke: 'none' }) +
      stroke(
        `M${(x - r * 0.5).toFixed(1)},${(y + r * 0.25).toFixed(1)}Q${x.toFixed(1)},${(y + r * 0.85).toFixed(1)} ${(x + r * 0.5).toFixed(1)},${(y + r * 0.25).toFixed(1)}`,
        features,
        r * 0.2,
      )
    );
  },
  number: (x, y, r, colour) => {
    const at = (dx: number, dy: number) => `${(x + dx * r).toFixed(1)},${(y + dy * r).toFixed(1)}`;
    const seven = `M${at(-0.6, -0.8)}L${at(0.6, -0.8)}L${at(-0.15, 0.9)}`;
    return stroke(seven, OUTLINE, r * 0.55) + stroke(seven, colour, r * 0.36);
  },
};
