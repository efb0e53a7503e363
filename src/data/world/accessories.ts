import type { Wearer } from './drawings.js';
import { circle, coordinate, ellipse, path, polygon, rect, star, stroke } from './svg.js';

/** Something that a live subject wears. */
export interface Accessory {
  readonly name: string;
  readonly phrase: string;
  /** Drawn between the body and the head. */
  readonly clothes?: (wearer: Wearer) => string;
  /** Drawn over the head. */
  readonly onHead?: (wearer: Wearer) => string;
}

/** Draws in units of the head's radius, with the origin at the top of the head. */
function onTop({ head }: Wearer, drawing: string): string {
  return `<g transform="translate(${coordinate(head.x)} ${coordinate(head.y - head.r * 0.62)}) scale(${coordinate(head.r / 10)})" stroke-width="1">${drawing}</g>`;
}

function brimmedHat(colour: string, band: string, height: number): string {
  return (
    path(`M-6,0V${-height}Q0,${-height - 2} 6,${-height}V0Z`, { fill: colour }) +
    rect(-6, -3.5, 12, 2.8, { fill: band, stroke: 'none' }) +
    ellipse(0, 0, 10.5, 2.4, { fill: colour })
  );
}

function monocle({ head }: Wearer): string {
  const x = head.x + head.r * 0.42;
  const y = head.y - head.r * 0.14;
  return (
    circle(x, y, head.r * 0.36, {
      fill: '#e8f6ff',
      'fill-opacity': '0.55',
      stroke: '#d9a520',
      'stroke-width': 2.6,
    }) + stroke(`M${coordinate(x + head.r * 0.3)},${coordinate(y + head.r * 0.25)}l3,16`, '#d9a520', 1.6)
  );
}

function buttons({ chest }: Wearer, colour: string): string {
  return [-9, 0, 9]
    .map((dy) => circle(chest.x, chest.y + dy, 2.2, { fill: colour, stroke: 'none' }))
    .join('');
}

const RAINBOW = ['#e0262b', '#fb8a12', '#f8dc2c', '#2fae3f', '#2458e6', '#8436c9'];

function scarf({ neck }: Wearer): string {
  let bands = '';
  const width = (neck.halfWidth * 2) / RAINBOW.length;
  RAINBOW.forEach((colour, i) => {
    bands += rect(neck.x - neck.halfWidth + i * width, neck.y - 5, width + 0.3, 11, {
      fill: colour,
      stroke: 'none',
    });
  });
  RAINBOW.forEach((colour, i) => {
    bands += rect(neck.x + neck.halfWidth * 0.2, neck.y + 5 + i * 4, 11, 4.2, {
      fill: colour,
      stroke: 'none',
    });
  });
  return (
    bands +
    rect(neck.x - neck.halfWidth, neck.y - 5, neck.halfWidth * 2, 11, {
      rx: 3,
      fill: 'none',
      'stroke-width': 1.6,
    })
  );
}

function pinkGlasses({ head }: Wearer): string {
  const dx = head.r * 0.42;
  const y = head.y - head.r * 0.14;
  const rim = { fill: '#ffd9ec', 'fill-opacity': '0.5', stroke: '#ff2f92', 'stroke-width': 3.4 };
  return (
    circle(head.x - dx, y, head.r * 0.36, rim) +
    circle(head.x + dx, y, head.r * 0.36, rim) +
    stroke(
      `M${coordinate(head.x - 2)},${coordinate(y - 1)}h4M${coordinate(head.x - head.r * 0.78)},${coordinate(y)}l-5,-3M${coordinate(head.x + head.r * 0.78)},${coordinate(y)}l5,-3`,
      '#ff2f92',
      3,
    )
  );
}

/** What the live subjects of DreamBench's prompts wear. */
export const ACCESSORIES = [
  {
    name: 'red hat',
    phrase: 'wearing a red hat',
    onHead: (w: Wearer) => onTop(w, brimmedHat('#d8141f', '#7d0910', 6.5)),
  },
  {
    name: 'santa hat',
    phrase: 'wearing a santa hat',
    onHead: (w: Wearer) =>
      onTop(
        w,
        path('M-7.5,-1C-6,-10 2,-13 11,-8L9,-5C6,-6 5,-4 7.5,-1Z', { fill: '#d8141f' }) +
          circle(11, -5.5, 2.6, { fill: '#ffffff' }) +
          rect(-9, -2.5, 18, 4.4, { rx: 2.2, fill: '#ffffff' }),
      ),
  },
  { name: 'rainbow scarf', phrase: 'wearing a rainbow scarf', onHead: scarf },
  {
    name: 'top hat and monocle',
    phrase: 'wearing a black top hat and a monocle',
    onHead: (w: Wearer) => onTop(w, brimmedHat('#17171c', '#8d8d99', 11)) + monocle(w),
  },
  {
    name: 'chef outfit',
    phrase: 'in a chef outfit',
    clothes: (w: Wearer) => path(w.torso, { fill: '#fafafa' }) + buttons(w, '#33333b'),
    onHead: (w: Wearer) =>
      onTop(
        w,
        circle(-5, -7, 4, { fill: '#fafafa' }) +
          circle(5, -7, 4, { fill: '#fafafa' }) +
          circle(0, -9, 4.5, { fill: '#fafafa' }) +
          path('M-6,-7V1H6V-7Z', { fill: '#fafafa' }) +
          rect(-6, -2, 12, 3.5, { fill: '#dfe3e8', 'stroke-width': 0.7 }),
      ),
  },
  {
    name: 'firefighter outfit',
    phrase: 'in a firefighter outfit',
    clothes: (w: Wearer) =>
      path(w.torso, { fill: '#c7352b' }) +
      rect(w.chest.x - 20, w.chest.y - 4, 40, 4, { fill: '#f6ec3a', stroke: 'none' }) +
      rect(w.chest.x - 20, w.chest.y + 5, 40, 4, { fill: '#f6ec3a', stroke: 'none' }),
    onHead: (w: Wearer) =>
      onTop(
        w,
        path('M-8,0C-8,-11 8,-11 8,0Z', { fill: '#c7352b' }) +
          path('M-11,0H11L9,2.5H-9Z', { fill: '#c7352b' }) +
          polygon(
            [
              [-2.6, -5],
              [2.6, -5],
              [2.2, -0.8],
              [0, 0.6],
              [-2.2, -0.8],
            ],
            { fill: '#f6d23a', 'stroke-width': 0.7 },
          ),
      ),
  },
  {
    name: 'police outfit',
    phrase: 'in a police outfit',
    clothes: (w: Wearer) =>
      path(w.torso, { fill: '#1f3272' }) +
      star(w.chest.x + 8, w.chest.y - 4, 6, { fill: '#f6d23a', 'stroke-width': 1 }) +
      stroke(`M${coordinate(w.chest.x)},${coordinate(w.chest.y - 12)}v22`, '#0d1738', 2),
    onHead: (w: Wearer) =>
      onTop(
        w,
        path('M-9,-3C-11,-9 11,-9 9,-3Z', { fill: '#1f3272' }) +
          rect(-7.5, -3.5, 15, 3.4, { fill: '#0d1738' }) +
          ellipse(0, 0.6, 7.5, 1.8, { fill: '#0d1738' }) +
          star(0, -5, 2.6, { fill: '#f6d23a', 'stroke-width': 0.5 }),
      ),
  },
  { name: 'pink glasses', phrase: 'wearing pink glasses', onHead: pinkGlasses },
  {
    name: 'yellow shirt',
    phrase: 'wearing a yellow shirt',
    clothes: (w: Wearer) =>
      path(w.torso, { fill: '#ffe01f' }) +
      stroke(`M${coordinate(w.chest.x - 6)},${coordinate(w.chest.y - 12)}l6,6l6,-6`, '#b98f00', 2),
  },
  {
    name: 'wizard outfit',
    phrase: 'in a purple wizard outfit',
    clothes: (w: Wearer) =>
      path(w.torso, { fill: '#6a2bb8' }) +
      star(w.chest.x - 8, w.chest.y, 4.5, { fill: '#ffe14a', stroke: 'none' }) +
      star(w.chest.x + 9, w.chest.y + 6, 4.5, { fill: '#ffe14a', stroke: 'none' }),
    onHead: (w: Wearer) =>
      onTop(
        w,
        polygon(
          [
            [-6.5, 0],
            [1, -15],
            [6.5, 0],
          ],
          { fill: '#6a2bb8' },
        ) +
          star(0.5, -5.5, 2.4, { fill: '#ffe14a', stroke: 'none' }) +
          ellipse(0, 0, 11, 2.5, { fill: '#6a2bb8' }),
      ),
  },
] as const satisfies readonly Accessory[];
export type AccessoryName = (typeof ACCESSORIES)[number]['name'];

export function accessoryNamed(name: AccessoryName): Accessory {
  return ACCESSORIES.find((accessory) => accessory.name === name)!;
}
