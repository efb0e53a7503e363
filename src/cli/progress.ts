import { formatBytes } from '../formats/byte-size.js';
import { formatDuration } from '../training/duration.js';
import type {
  DownloadEvent,
  ProgressEvent,
  StageEvent,
  TrainingEvent,
  TrainingListener,
} from '../training/events.js';

/** What a terminal listener writes to; `process.stderr` is one. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

/** Share of the whole after which a line is due where lines cannot be rewritten. */
const PLAIN_SHARE = 0.1;
const BAR_WIDTH = 20;
/** Between rewrites of the line, in milliseconds: enough for the eye, little for the terminal. */
const REWRITE_INTERVAL = 100;

/**
 * Shows a run's events to a person. On a terminal one line is rewritten, with a bar, the loss and the time left; in a pipe or a log file a plain line appears
 * about every tenth of the way.
 */
export function progressListener(stream: ProgressStream, now: () => number = Date.now): TrainingListener {
  const live = stream.isTTY ? liveLine(stream, now) : plainLines(stream);
  return (event) => {
    const text = lasting(event);
    if (text !== undefined) live.say(text);
    else if (event.kind === 'progress') live.at('training', event.step, event.steps, describeProgress(event));
    else if (event.kind === 'download')
      live.at(`download ${event.model}`, event.bytes, event.totalBytes, describeDownload(event));
    else if (event.kind === 'stage') live.at(event.name, event.done, event.total, describeStage(event));
  };
}

/** The line of an event that stays on the screen; undefined for those that only move the bar, and for being stopped, which is told as an error. */
function lasting(event: TrainingEvent): string | undefined {
  switch (event.kind) {
    case 'started': {
      const from = event.fromStep > 0 ? `, going on from step ${event.fromStep}` : '';
      return `${event.method}: ${event.images} pictures, ${count(event.trainableParameters)} trainable parameters, ${event.steps} steps${from} -> ${event.folder}`;
    }
    case 'warning':
      return `note: ${event.message}`;
    case 'samples':
      return `step ${event.step}: samples in ${event.path}`;
    case 'validation':
      return `step ${event.step}: ${Object.entries(event.scores)
        .map(([name, value]) => `${name} ${short(value)}`)
        .join(', ')}`;
    case 'finished':
      return [
        `finished ${event.steps} steps in ${formatDuration(event.seconds)}`,
        ...event.files.map((f) => `  ${f}`),
      ].join('\n');
    default:
      return undefined;
  }
}

function describeProgress(event: ProgressEvent): string {
  const parts = [
    `step ${event.step}/${event.steps}`,
    `loss ${Number.isFinite(event.loss) ? short(event.loss) : 'overflowed'}`,
  ];
  if (event.reward !== undefined) parts.push(`reward ${short(event.reward)}`);
  if (event.critic !== undefined) parts.push(`critic ${short(event.critic)}`);
  parts.push(`${event.secondsPerStep.toFixed(2)} s/step`, `${formatDuration(event.secondsLeft)} left`);
  return parts.join('  ');
}

function describeStage({ name, done, total, secondsLeft }: StageEvent): string {
  const left = secondsLeft === undefined || done >= total ? '' : `  ${formatDuration(secondsLeft)} left`;
  return `${name} ${done}/${total}${left}`;
}

function describeDownload(event: DownloadEvent): string {
  const { model, bytes, totalBytes, bytesPerSecond, secondsLeft } = event;
  const parts = [`downloading ${model}  ${formatBytes(bytes)} of ${formatBytes(totalBytes)}`];
  if (bytes < totalBytes && secondsLeft !== undefined) {
    parts.push(`${formatBytes(bytesPerSecond)}/s`, `${formatDuration(secondsLeft)} left`);
  }
  return parts.join('  ');
}

interface Display {
  say(text: string): void;
  /** What is going on moved: `text` says where it is. */
  at(what: string, done: number, total: number, text: string): void;
}

function liveLine(stream: ProgressStream, now: () => number): Display {
  let shown = '';
  let drawnAt = Number.NEGATIVE_INFINITY;
  const clear = () => {
    if (shown !== '') stream.write('\r\x1b[2K');
    shown = '';
  };
  return {
    say(text) {
      clear();
      stream.write(`${text}\n`);
    },
    at(_, done, total, text) {
      const ended = done >= total;
      if (!ended && now() - drawnAt < REWRITE_INTERVAL) return;
      drawnAt = now();
      const line = `${bar(done / Math.max(1, total))} ${text}`.slice(0, (stream.columns ?? 80) - 1);
      clear();
      stream.write(line);
      shown = line;
      if (ended) {
        stream.write('\n');
        shown = '';
      }
    },
  };
}

function plainLines(stream: ProgressStream): Display {
  const lastTenth = new Map<string, number>();
  return {
    say(text) {
      stream.write(`${text}\n`);
    },
    at(what, done, total, text) {
      const tenth = Math.floor(done / Math.max(1, total) / PLAIN_SHARE + 1e-9);
      const last = lastTenth.get(what);
      lastTenth.set(what, tenth);
      // The first step is shown too: it tells that something goes on, and how long it will take.
      if (last === undefined || tenth !== last) stream.write(`${text}\n`);
    },
  };
}

function bar(share: number): string {
  const full = Math.round(Math.min(1, share) * BAR_WIDTH);
  return `${'━'.repeat(full)}${'╌'.repeat(BAR_WIDTH - full)}`;
}

/** Four significant digits, whatever the size. */
function short(value: number): string {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(4);
}

function count(n: number): string {
  if (n >= 1e6) return `${(n / 1e6).toFixed(1)} M`;
  return n >= 1e4 ? `${(n / 1e3).toFixed(0)} k` : String(n);
}
