import type { Random } from '../../tensor/random.js';
import { accessoryNamed } from './accessories.js';
import { DRAWINGS, type Drawing, MOTIF_MARKS, OUTLINE, PATTERN_TILES, type Paint } from './drawings.js';
import type { Depiction, Property } from './example.js';
import { sceneNamed } from './scenes.js';
import { COLOURS, type Subject } from './subject.js';
import { circle, coordinate, ellipse, mix, path, polygon, rect } from './svg.js';

/** How a subject is held and how large it is. */
interface Pose {
  readonly x: number;
  readonly foot: number;
  readonly scale: number;
  readonly degrees: number;
  readonly flipped: boolean;
}

function paintOf({ colour, secondColour, pattern, variant }: Subject): { paint: Paint; defs: string } {
  const main = COLOURS[colour];
  const second = COLOURS[secondColour];
  const dark = colour === 'black';
  const paint: Paint = {
    fill: pattern === 'plain' ? main : 'url(#p)',
    main,
    shade: dark ? mix(main, '#ffffff', 0.2) : mix(main, '#000000', 0.2),
    second,
    ink: dark ? '#b4b4be' : OUTLINE,
    variant,
  };
  if (pattern === 'plain') return { paint, defs: '' };
  const { width, height, marks } = PATTERN_TILES[pattern](second);
  return {
    paint,
    defs: `<defs><pattern id="p" patternUnits="userSpaceOnUse" x="-10" y="-10" width="${width}" height="${height}">${rect(0, 0, width, height, { fill: main })}${marks}</pattern></defs>`,
  };
}

/** The motifs, upright and unmirrored whatever the pose; on a disc of the main colour where a pattern would hide them. */
function motifs(subject: Subject, paint: Paint, drawing: Drawing, flipped: boolean): string {
  if (subject.motif === 'none') return '';
  const mark = MOTIF_MARKS[subject.motif];
  let marks = '';
  for (const [x, y] of drawing.motifs) {
    const r = drawing.motifRadius;
    const patterned = subject.pattern !== 'plain';
    if (patterned) marks += circle(x, y, r * 1.15, { fill: paint.main, 'stroke-width': 1.6 });
    const drawn = mark(x, y, patterned ? r * 0.85 : r, paint.second);
    marks += flipped ? `<g transform="matrix(-1 0 0 1 ${coordinate(2 * x)} 0)">${drawn}</g>` : drawn;
  }
  return marks;
}

const SPARKLES = [
  [-34, -30, 15],
  [30, -6, 12],
  [-12, 26, 11],
  [38, -44, 10],
  [-44, 18, 9],
] as const;

const DROPS = [
  [-22, -26],
  [6, -34],
  [24, -14],
  [-30, 6],
  [-6, -6],
  [14, 12],
  [30, 28],
  [-18, 30],
  [4, 36],
] as const;

/** What each property adds over a drawing. */
const OVERLAYS: Readonly<Record<Property, (drawing: Drawing, random: Random) => string>> = {
  shiny: (_, random) =>
    SPARKLES.map(([x0, y0, r]) => {
      const x = x0 + random.uniform() * 6 - 3;
      const y = y0 + random.uniform() * 6 - 3;
      const k = r * 0.22;
      return polygon(
        [
          [x, y - r],
          [x + k, y - k],
          [x + r, y],
          [x + k, y + k],
          [x, y + r],
          [x - k, y + k],
          [x - r, y],
          [x - k, y - k],
        ],
        { fill: '#ffffff', stroke: '#f2cf3c', 'stroke-width': 1.4 },
      );
    }).join(''),
  wet: (drawing, random) =>
    ellipse(0, drawing.foot, 48, 6, {
      fill: '#4db4ee',
      stroke: '#1d7fc0',
      'stroke-width': 1.4,
      'fill-opacity': '0.85',
    }) +
    DROPS.filter(([, y]) => y < drawing.foot - 6)
      .map(([x, y]) => {
        const shift = coordinate(x + random.uniform() * 6 - 3);
        return path(`M${shift},${y - 8}q9,13 0,15q-9,-2 0,-15Z`, {
          fill: '#7fd0ff',
          stroke: '#1669a8',
          'stroke-width': 1.4,
        });
      })
      .join(''),
  'cube shaped': () => '',
};

/** A cube in the subject's colours with the subject on its front. */
function cube(figure: string, { main, shade }: Paint): string {
  const front = mix(main, main === COLOURS.white ? '#6f7886' : '#ffffff', 0.55);
  return (
    polygon(
      [
        [-45, -16],
        [-24, -43],
        [45, -43],
        [24, -16],
      ],
      { fill: main },
    ) +
    polygon(
      [
        [24, -16],
        [45, -43],
        [45, 22],
        [24, 49],
      ],
      { fill: shade },
    ) +
    rect(-45, -16, 69, 65, { fill: front }) +
    `<g transform="translate(-10.5 16.5) scale(.64)">${figure}</g>`
  );
}

function figureOf(
  { subject, accessory, property }: Depiction,
  flipped: boolean,
  random: Random,
): { figure: string; defs: string; foot: number } {
  const { paint, defs } = paintOf(subject);
  const drawing = DRAWINGS[subject.noun](paint);
  const worn = accessory === undefined ? undefined : accessoryNamed(accessory);
  let figure = drawing.body;
  const clothes = drawing.wearer && worn?.clothes?.(drawing.wearer);
  figure += clothes ?? motifs(subject, paint, drawing, flipped);
  figure += drawing.head ?? '';
  if (drawing.wearer && worn?.onHead) figure += worn.onHead(drawing.wearer);
  let foot = drawing.foot;
  if (property === 'cube shaped') {
    figure = cube(figure, paint);
    foot = 49;
  } else if (property) figure += OVERLAYS[property](drawing, random);
  return {
    figure: `<g stroke="${OUTLINE}" stroke-width="2.6" stroke-linejoin="round">${figure}</g>`,
    defs,
    foot,
  };
}

/**
 * Draws a picture as SVG, `size` pixels wide and high. The subject's pose and the details of the place are drawn from `random`; what the caption can name is not.
 */
export function drawSvg(depiction: Depiction, size: number, random: Random): string {
  const scene = sceneNamed(depiction.scene);
  const turned = random.uniform() < 0.5;
  const aside = (scene.aside ?? 0) * (turned ? -1 : 1);
  const hatted = depiction.accessory !== undefined;
  const pose: Pose = {
    x: 50 + aside + (random.uniform() * 8 - 4),
    foot: scene.ground + (random.uniform() * 5 - 2.5) + (hatted && !scene.mirrored ? 4 : 0),
    scale: (hatted ? 0.65 : 0.7) + random.uniform() * 0.1 - (scene.aside || scene.mirrored ? 0.06 : 0),
    degrees: (random.uniform() * 2 - 1) * 8,
    flipped: random.uniform() < 0.5,
  };
  const { figure, defs, foot } = figureOf(depiction, pose.flipped, random);
  const placed = (upsideDown: boolean) => {
    const sx = pose.flipped ? -pose.scale : pose.scale;
    const sy = upsideDown ? -pose.scale : pose.scale;
    const y = upsideDown ? pose.foot + foot * pose.scale : pose.foot - foot * pose.scale;
    return `translate(${coordinate(pose.x)} ${coordinate(y)}) scale(${sx.toFixed(3)} ${sy.toFixed(3)}) rotate(${coordinate(pose.degrees)})`;
  };
  const behind = scene.behind(random);
  let picture = turned ? `<g transform="matrix(-1 0 0 1 100 0)">${behind}</g>` : behind;
  if (scene.shadow)
    picture += ellipse(pose.x, pose.foot - 0.5, 40 * pose.scale, 5 * pose.scale, {
      fill: '#000000',
      'fill-opacity': '0.22',
    });
  if (scene.mirrored) picture += `<g opacity=".45" transform="${placed(true)}">${figure}</g>`;
  picture += `<g transform="${placed(false)}">${figure}</g>`;
  if (scene.before) picture += scene.before(random);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${size}" height="${size}" viewBox="0 0 100 100">${defs}${picture}</svg>`;
}
