/** Attributes of one SVG element; undefined ones are left out. */
export type Attributes = Readonly<Record<string, string | number | undefined>>;

/** A coordinate with one decimal, so that drawings are short and the same on every platform. */
export function coordinate(value: number): string {
  return String(Math.round(value * 10) / 10 + 0);
}

function element(name: string, attributes: Attributes): string {
  let text = `<${name}`;
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) text += ` ${key}="${typeof value === 'number' ? coordinate(value) : value}"`;
  }
  return `${text}/>`;
}

export function circle(cx: number, cy: number, r: number, paint: Attributes = {}): string {
  return element('circle', { cx, cy, r, ...paint });
}

export function ellipse(cx: number, cy: number, rx: number, ry: number, paint: Attributes = {}): string {
  return element('ellipse', { cx, cy, rx, ry, ...paint });
}

/** A rectangle by its left, top, width and height. */
export function rect(x: number, y: number, width: number, height: number, paint: Attributes = {}): string {
  return element('rect', { x, y, width, height, ...paint });
}

export function path(d: string, paint: Attributes = {}): string {
  return element('path', { d, ...paint });
}

export function polygon(points: readonly (readonly [number, number])[], paint: Attributes = {}): string {
  return element('polygon', {
    points: points.map(([x, y]) => `${coordinate(x)},${coordinate(y)}`).join(' '),
    ...paint,
  });
}

/** An unfilled stroke along a path. */
export function stroke(d: string, colour: string, width: number): string {
  return element('path', {
    d,
    fill: 'none',
    stroke: colour,
    'stroke-width': width,
    'stroke-linecap': 'round',
  });
}

/** A five-pointed star. */
export function star(cx: number, cy: number, r: number, paint: Attributes = {}): string {
  const points: [number, number][] = [];
  for (let i = 0; i < 10; i++) {
    const radius = i % 2 === 0 ? r : r * 0.45;
    const angle = (i * Math.PI) / 5 - Math.PI / 2;
    points.push([cx + radius * Math.cos(angle), cy + radius * Math.sin(angle)]);
  }
  return polygon(points, paint);
}

/** The colour between two '#rrggbb' colours: `from` at 0, `to` at 1. */
export function mix(from: string, to: string, amount: number): string {
  let out = '#';
  for (let i = 1; i < 7; i += 2) {
    const a = Number.parseInt(from.slice(i, i + 2), 16);
    const b = Number.parseInt(to.slice(i, i + 2), 16);
    out += Math.round(a + (b - a) * amount)
      .toString(16)
      .padStart(2, '0');
  }
  return out;
}
