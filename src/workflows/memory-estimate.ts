import { type PictureSize, sizeName, squareOf } from '../data/aspect-buckets.js';
import { availableMemory } from '../engine/available-memory.js';
import { estimateGraphMemory, type GraphMemory } from '../engine/graph-memory.js';
import { EngineError, PortrayalError } from '../errors.js';
import type { Graph } from '../onnx/graph.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { drawingGraphs, drawnAtOnce } from '../pretrained/text-to-image.js';
import type { Adaptation } from '../pretrained/trainable.js';
import { elementCount } from '../tensor/tensor.js';
import { encoderGraph } from '../training/latent-cache.js';
import { buildStep, type StepSettings } from '../training/personalisation-step.js';
import type { PiecewiseGraphs } from '../training/piecewise-update.js';
import { referencesGraph, referencesOf } from '../training/reference-cache.js';

/** What one part of a run holds at its peak, in bytes. */
export interface MemoryPart {
  /** "training step, 512x512: activations" */
  readonly what: string;
  readonly bytes: number;
}

/** What one phase of a run holds at its peak. */
export interface MemoryPhase {
  /** "drawing", "training" */
  readonly name: string;
  readonly parts: readonly MemoryPart[];
  readonly total: number;
}

export interface MemoryEstimate {
  readonly phases: readonly MemoryPhase[];
  /** The phase that needs most. */
  readonly peak: MemoryPhase;
  /** What this machine, or the container, can give. */
  readonly available: number;
  /** Whether the programs that draw are not to be held together: with gradient checkpointing, which is asked for where memory is short, and where they would not fit. */
  readonly drawsInTurn: boolean;
  /** Whether pictures are better encoded before the step's programs are made, under the same conditions; never with random crops. */
  readonly encodesAhead: boolean;
}

/** Measured: Node with the libraries loaded, the engine's thread and JavaScript's own heap. */
const PROCESS = 140 * 2 ** 20;
/** Measured: the share of what a phase gives back that stays with the process all the same. */
const LEFT_OVER = 0.1;

/** What a personalisation builds. */
export interface MemoryNeeds {
  readonly step: StepSettings;
  /** That the photographs are brought to. */
  readonly sizes: readonly PictureSize[];
  /** Whether pictures are drawn with guidance. */
  readonly guided: boolean;
  /** Whether a picture looks the same at each use, so that it can be encoded before training. */
  readonly encodesOnce: boolean;
}

/** Estimates the memory of a personalisation on the processor from its graphs, without compiling or loading anything. */
export function estimateMemory(
  model: StableDiffusion,
  needs: MemoryNeeds,
  available = availableMemory(),
): MemoryEstimate {
  const { step: settings, sizes, guided, encodesOnce } = needs;
  const different = [...new Map(sizes.map((size) => [sizeName(size), size])).values()];
  const known = referencesOf(settings.objective.method === 'dpg' ? settings.objective.rewards : []);
  const programs: NamedProgram[] = [];
  const encoders: NamedProgram[] = [];
  const states: MemoryPart[][] = [];
  for (const size of different) {
    const { micro, apply, pieces, critic } = buildStep(model, settings, size);
    const shape = [1, 3, size.height, size.width];
    const named = (graphs: readonly [string, Graph | undefined][]): NamedProgram[] =>
      graphs.flatMap(([name, graph]) =>
        graph ? [{ name: `${name}, ${sizeName(size)}`, memory: estimateGraphMemory(graph) }] : [],
      );
    const added = named([
      ['training step', micro],
      ["critic's turn", critic?.graph],
      ['update', size === different[0] ? apply : undefined],
    ]);
    programs.push(...added);
    encoders.push(
      ...named([
        ['encoder', encoderGraph(model, shape)],
        ['photographs in the eyes of rewards', known.size > 0 ? referencesGraph(known, shape) : undefined],
      ]),
    );
    states.push(
      pieces
        ? piecewiseState(pieces, added[0]!.memory)
        : [
            {
              what: 'what is trained, moments and critic, with copies',
              bytes: STATE_COPIES * added.reduce((sum, { memory }) => sum + memory.state, 0),
            },
          ],
    );
  }
  const [state] = states.sort((a, b) => sumOf(b) - sumOf(a));
  const { resolution, trainable: adaptation } = settings;
  const drawing = drawingPrograms(model, { resolution, adaptation, guided });
  // States that the policy visits are drawn between the steps, and not decoded.
  if (settings.rollouts) programs.push(drawing.text, drawing.denoiser);
  const drawn = takingTurns(Object.values(drawing));
  const together = takingTurns([...programs, ...encoders]);
  const before = drawn.flatMap(partsOf);
  const after = [...together.flatMap(partsOf), ...state!];
  const drawingTogether = phase('drawing', drawn, [], after);
  const trainingTogether = phase('training', together, state!, before);
  const isApart = (held: MemoryPhase): boolean => settings.gradientCheckpointing || held.total > available;
  const drawsInTurn = isApart(drawingTogether);
  const encodesAhead = encodesOnce && isApart(trainingTogether);
  const phases = [
    ...(drawsInTurn ? drawingPhases(drawing, after) : [drawingTogether]),
    ...(encodesAhead ? trainingPhases(programs, encoders, state!, before) : [trainingTogether]),
  ];
  const peak = phases.reduce((most, one) => (one.total > most.total ? one : most));
  return { phases, peak, available, drawsInTurn, encodesAhead };
}

/** What is drawn. */
export interface DrawingNeeds {
  /** Side of the pictures in pixels. */
  readonly resolution: number;
  readonly adaptation: Adaptation;
  /** Whether pictures are drawn with guidance. */
  readonly guided: boolean;
  /** Pictures drawn at once. */
  readonly batchSize?: number;
}

/** Whether the processor's memory is too short to hold the programs that draw together. */
export function drawsInTurn(
  model: StableDiffusion,
  needs: DrawingNeeds,
  available = availableMemory(),
): boolean {
  return phase('drawing', takingTurns(Object.values(drawingPrograms(model, needs)))).total > available;
}

interface NamedProgram {
  /** "training step, 512x512" */
  readonly name: string;
  readonly memory: GraphMemory;
}

/** The state stands in the engine, comes out of a run as new copies, and is copied once more when it is saved. */
const STATE_COPIES = 3;

/** One program runs at a time and gives back what its run took, so that only the largest one's activations count. */
function takingTurns(programs: readonly NamedProgram[]): NamedProgram[] {
  const largest = Math.max(...programs.map(({ memory }) => memory.activations));
  return programs.map(({ name, memory }) => ({
    name,
    memory: { ...memory, activations: memory.activations === largest ? largest : 0 },
  }));
}

/**
 * What a step holds beside its activations where the update goes piece by piece. Among those are the weights, which it is fed, and the gradients as the step makes
 * them; at its end they come out as copies, when little else of it is left.
 */
function piecewiseState({ pieces, sums }: PiecewiseGraphs, step: GraphMemory): MemoryPart[] {
  const weights = pieces
    .flatMap(({ parameters }) => parameters)
    .reduce((sum, { shape }) => sum + 4 * elementCount(shape), 0);
  const updated = pieces.reduce((sum, { graph }) => sum + estimateGraphMemory(graph).state, 0);
  const intermediate = step.activations - (sums ? 2 : 1) * weights;
  return [
    { what: 'moments and averages', bytes: updated - weights },
    { what: 'gradients as they are handed over', bytes: Math.max(0, 2 * weights - intermediate) },
  ];
}

/** A change that leaves more than this share is not worth telling. */
const WORTHWHILE = 0.97;

/** @throws EngineError, with the estimate and what would fit, when the machine has less memory than a personalisation needs. */
export function requireMemory(
  model: StableDiffusion,
  needs: MemoryNeeds,
  { peak, available }: MemoryEstimate,
): void {
  if (peak.total <= available) return;
  const changes = [...smaller(model, needs)].flatMap(({ flag, needs: less }) => {
    const total = totalOf(model, less, available);
    if (total === undefined || total > WORTHWHILE * peak.total) return [];
    return [`${flag} (about ${gigabytes(total)}${total <= available ? '' : ', still too much'})`];
  });
  const largest = [...peak.parts].sort((a, b) => b.bytes - a.bytes)[0]!;
  throw new EngineError(
    `This run needs about ${gigabytes(peak.total)} of memory while ${peak.name}, most of it for ${largest.what} (${gigabytes(largest.bytes)}), and ${gigabytes(available)} can be had. ` +
      `What takes less: ${changes.length > 0 ? `${changes.join(', ')}, ` : ''}or closing other programs. --no-memory-check starts it all the same.`,
  );
}

/** What a change would take; undefined where it is not possible, as for a reward's network that takes pictures of one size only. */
function totalOf(model: StableDiffusion, needs: MemoryNeeds, available: number): number | undefined {
  try {
    return estimateMemory(model, needs, available).peak.total;
  } catch (error) {
    if (error instanceof PortrayalError) return undefined;
    throw error;
  }
}

/** What one could change, one thing at a time. */
function* smaller(
  model: StableDiffusion,
  needs: MemoryNeeds,
): Generator<{ flag: string; needs: MemoryNeeds }> {
  const { step } = needs;
  if (!step.gradientCheckpointing) {
    yield {
      flag: '--gradient-checkpointing',
      needs: { ...needs, step: { ...step, gradientCheckpointing: true } },
    };
  }
  if (step.instances > 1) {
    const batch = { ...step, instances: 1, priors: Math.min(1, step.priors) };
    yield { flag: '--train-batch-size 1', needs: { ...needs, step: batch } };
  }
  if (new Set(needs.sizes.map(sizeName)).size > 1) {
    yield { flag: '--no-enable-bucket', needs: { ...needs, sizes: [squareOf(step.resolution)] } };
  }
  const resolution = Math.floor((step.resolution * 0.75) / model.granularity) * model.granularity;
  if (resolution > 0) {
    const sizes = [squareOf(resolution)];
    yield { flag: `--resolution ${resolution}`, needs: { ...needs, step: { ...step, resolution }, sizes } };
  }
}

function gigabytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(bytes < 10 * 2 ** 30 ? 2 : 1)} GiB`;
}

type DrawingPrograms = Readonly<Record<'text' | 'denoiser' | 'decoder', NamedProgram>>;

function drawingPrograms(
  model: StableDiffusion,
  { resolution, adaptation, guided, batchSize = drawnAtOnce(resolution) }: DrawingNeeds,
): DrawingPrograms {
  const { text, denoiser, decoder } = drawingGraphs(model, { resolution, adaptation });
  const named = (name: string, graph: Graph): NamedProgram => ({ name, memory: estimateGraphMemory(graph) });
  return {
    text: named('text encoder', text()),
    denoiser: named('denoiser', denoiser((guided ? 2 : 1) * batchSize)),
    decoder: named('decoder', decoder(batchSize)),
  };
}

/** Drawing where one program is held at a time. @param before what was there before and has been given back */
function drawingPhases(programs: DrawingPrograms, before: readonly MemoryPart[]): MemoryPhase[] {
  const one = (name: string, program: NamedProgram): MemoryPhase => {
    const others = Object.values(programs).filter((other) => other !== program);
    // What runs took is there for the next program's runs.
    const held = others.map((other) => ({ ...other, memory: { ...other.memory, activations: 0 } }));
    return phase(name, [program], [], [...before, ...held.flatMap(partsOf)]);
  };
  return [
    one('reading prompts', programs.text),
    one('drawing', programs.denoiser),
    one('decoding what was drawn', programs.decoder),
  ];
}

/** Training where all pictures are encoded before the step's programs are made. @param before what was there before and has been given back */
function trainingPhases(
  programs: readonly NamedProgram[],
  encoders: readonly NamedProgram[],
  state: readonly MemoryPart[],
  before: readonly MemoryPart[],
): MemoryPhase[] {
  const encoded = takingTurns(encoders);
  return [
    phase('encoding pictures', encoded, state, before),
    phase('training', takingTurns(programs), state, [...before, ...encoded.flatMap(partsOf)]),
  ];
}

const partsOf = ({ name, memory }: NamedProgram): MemoryPart[] => [
  { what: `${name}: weights`, bytes: memory.weights },
  { what: `${name}: activations`, bytes: memory.activations },
  { what: `${name}: engine`, bytes: memory.engine },
];

const sumOf = (parts: readonly MemoryPart[]): number => parts.reduce((sum, { bytes }) => sum + bytes, 0);

/** @param others what was there before and has been given back */
function phase(
  name: string,
  programs: readonly NamedProgram[],
  more: readonly MemoryPart[] = [],
  others: readonly MemoryPart[] = [],
): MemoryPhase {
  const all = [
    { what: 'process', bytes: PROCESS },
    ...programs.flatMap(partsOf),
    ...more,
    { what: 'left over from before', bytes: LEFT_OVER * sumOf(others) },
  ];
  // Nothing runs while a program is compiled, so that the two do not add up.
  const running = Math.max(...programs.map(({ memory }) => memory.activations));
  const compiling = programs.map(({ name, memory }) => ({
    what: `${name}: weights while compiling, beyond activations`,
    bytes: memory.compiling - running,
  }));
  const [largest] = compiling.sort((a, b) => b.bytes - a.bytes);
  if (largest && largest.bytes > 0) all.push(largest);
  return { name, parts: all, total: sumOf(all) };
}
