import { readFile, stat } from 'node:fs/promises';
import { basename, dirname, join, relative, resolve, sep } from 'node:path';
import { gradients } from '../autodiff/gradient.js';
import { rules } from '../autodiff/rules.js';
import { ModelError } from '../errors.js';
import { readConfigFile } from '../formats/json-config-file.js';
import { pathExists } from '../formats/path-exists.js';
import {
  type ImagePreprocessing,
  preprocess,
  readImagePreprocessing,
} from '../models/image-preprocessing.js';
import { type ExternalData, Graph, GraphError, type Value } from '../onnx/graph.js';
import { importModel } from '../onnx/import/import-model.js';
import { decodeModel, type FileModel, type FileTensor, type FileValue } from '../onnx/import/model.js';
import { concat, reshape, slice } from '../onnx/movement.js';
import { sum } from '../onnx/reduction.js';
import { linearKernel } from '../onnx/resampling.js';

/** An ONNX file that judges or embeds pictures, opened, checked and differentiable. */
export interface OnnxModel {
  /** Pictures [B, 3, H, W] in [-1, 1] to one number each, [B]. */
  score(pixels: Value): Value;
  /** Pictures [B, 3, H, W] in [-1, 1] to embeddings [B, D]. */
  embed(pixels: Value): Value;
}

export interface OnnxModelOptions {
  /** Whether it is to give a number for each picture, or an embedding. */
  readonly gives: 'number' | 'embedding';
  /** Side of the pictures that it will be given, in pixels. */
  readonly resolution: number;
}

/**
 * Opens an `.onnx` file as a differentiable function of pictures. It has one input, pictures [N, 3, H, W], and its first output is one number ([N] or [N, 1]) or one
 * embedding ([N, D]) for each.
 *
 * Pictures are prepared as a `preprocessor_config.json` beside the file says. Without one they are RGB in [0, 1], and where the file fixes a height and width,
 * they are resized to it (bilinear, antialiased). A file for one picture at a time is built once for each.
 *
 * @throws ModelError naming at once all that cannot be taken over or differentiated, or why the file is of no use for pictures
 */
export async function openOnnxModel(path: string, options: OnnxModelOptions): Promise<OnnxModel> {
  const file = resolve(path);
  const bytes = await readFile(file).catch((error: unknown) => {
    throw new ModelError(
      `${path}: expected an ONNX file, but it cannot be read (${error instanceof Error ? error.message : error}).`,
      { cause: error },
    );
  });
  const model = decodeModel(bytes, path);
  const input = pictureInput(model, path);
  const places = await externalPlaces(file, model);
  const preprocessing = await preprocessingOf(file, input);
  const build = (pixels: Value): Value => {
    const prepared = preprocess(preprocessing, pixels);
    requireExtents(path, input, prepared);
    const run = (x: Value): Value => {
      const results = importModel(x.graph, model, new Map([[input.name, x]]), {
        file: path,
        locate: (tensor) => places.get(tensor.name)!,
      });
      return results.get(model.outputs[0]!.name)!;
    };
    const rows = prepared.shape[0]!;
    if (input.shape?.[0] !== 1 || rows === 1) return run(prepared);
    return concat(
      Array.from({ length: rows }, (_, i) => run(slice(prepared, 0, i, i + 1))),
      0,
    );
  };
  const opened: OnnxModel = {
    score: (pixels) => asNumbers(build(pixels), path),
    embed: (pixels) => asEmbeddings(build(pixels), path),
  };
  const { resolution, gives } = options;
  const graph = new Graph('check');
  const pixels = graph.input('pixels', 'float32', [1, 3, resolution, resolution]);
  requireGradient(gives === 'number' ? opened.score(pixels) : opened.embed(pixels), pixels, path);
  return opened;
}

function pictureInput(model: FileModel, path: string): FileValue {
  const [input, ...more] = model.inputs;
  const shown = ({ name, type, shape }: FileValue): string => `${name}: ${type}[${shape?.join(', ') ?? '…'}]`;
  if (!input || more.length > 0) {
    throw new ModelError(
      `${path}: expected one input, pictures [N, 3, H, W]; it has ${model.inputs.length}: ${model.inputs.map(shown).join(', ')}.`,
    );
  }
  const { shape, type } = input;
  const channels = shape?.[1];
  const isPicture =
    shape === undefined || (shape.length === 4 && (channels === 3 || typeof channels === 'string'));
  if (!isPicture || (type !== 'float32' && type !== 'float16' && type !== 'double')) {
    throw new ModelError(
      `${path}: expected pictures as float[N, 3, H, W], but its input is ${shown(input)}. Export it with channels first and floats.`,
    );
  }
  const batch = shape?.[0];
  if (typeof batch === 'number' && batch !== 1) {
    throw new ModelError(
      `${path}: its input is for exactly ${batch} pictures at once, ${shown(input)}. Export it for 1, or with an open batch (dynamic_axes={"${input.name}": {0: "batch"}}).`,
    );
  }
  return input;
}

/** As the file beside it says; otherwise [0, 1], at the size that the file fixes. */
async function preprocessingOf(file: string, input: FileValue): Promise<ImagePreprocessing> {
  const beside = join(dirname(file), 'preprocessor_config.json');
  if (await pathExists(beside)) return readImagePreprocessing(await readConfigFile(beside));
  const [height, width] = input.shape?.slice(2) ?? [];
  const plain = { scale: 1, mean: [0, 0, 0], std: [1, 1, 1] };
  if (typeof height !== 'number' || typeof width !== 'number') return plain;
  return { ...plain, resize: { size: [height, width], kernel: linearKernel } };
}

function requireExtents(path: string, input: FileValue, prepared: Value): void {
  const [height, width] = prepared.shape.slice(2) as [number, number];
  const fits = [height, width].every((extent, i) => {
    const declared = input.shape?.[2 + i];
    return typeof declared !== 'number' || declared === extent;
  });
  if (fits) return;
  throw new ModelError(
    `${path}: its input is [${input.shape?.join(', ')}], but ${join(dirname(path), 'preprocessor_config.json')} makes pictures of ${height} x ${width}. Let them agree.`,
  );
}

function asNumbers(output: Value, path: string): Value {
  const [rows] = output.shape;
  if (output.dtype === 'float32' && rows !== undefined && output.size === rows)
    return reshape(output, [rows]);
  throw new ModelError(
    `${path}: expected one number for each picture, [N] or [N, 1], but its output is ${shapeOf(output)}. If it embeds pictures, use --reward embedding:${basename(path)}.`,
  );
}

function asEmbeddings(output: Value, path: string): Value {
  const [rows, width] = output.shape;
  if (
    output.dtype === 'float32' &&
    rows !== undefined &&
    width !== undefined &&
    output.size === rows * width &&
    width > 1
  ) {
    return reshape(output, [rows, width]);
  }
  throw new ModelError(
    `${path}: expected an embedding for each picture, [N, D] with D above 1, but its output is ${shapeOf(output)}.`,
  );
}

const shapeOf = (v: Value): string => `${v.dtype}[${v.shape.join(', ')}]`;

/** Differentiates the model once, so that what cannot be is found, and named at once, before any work is done. */
function requireGradient(output: Value, pixels: Value, path: string): void {
  const { graph } = output;
  const without = new Set(
    onPath(graph, pixels, output).flatMap(({ operator, outputs }) =>
      rules[operator] === 'not differentiable' && outputs[0]!.dtype === 'float32' ? [operator] : [],
    ),
  );
  let reason = without.size > 0 ? `no gradient goes through ${[...without].join(', ')}` : undefined;
  if (!reason) {
    try {
      const [gradient] = gradients(sum(output), [pixels]);
      if (gradient!.origin.kind === 'constant')
        reason = 'no gradient reaches the picture: its output changes in steps alone';
    } catch (error) {
      if (!(error instanceof GraphError)) throw error;
      reason = error.message;
    }
  }
  if (!reason) return;
  throw new ModelError(
    `${path} cannot be differentiated: ${reason}. Give it as a black box instead, for example behind an HTTP endpoint.`,
  );
}

/** The nodes by which one value depends on another. */
function onPath(graph: Graph, from: Value, to: Value) {
  const reached = new Set<Value>([from]);
  for (const node of graph.nodes) {
    if (node.inputs.some((v) => v && reached.has(v))) for (const v of node.outputs) reached.add(v);
  }
  const wanted = new Set<Value>([to]);
  return [...graph.nodes].reverse().filter((node) => {
    if (!node.outputs.some((v) => wanted.has(v) && reached.has(v))) return false;
    for (const v of node.inputs) if (v) wanted.add(v);
    return true;
  });
}

/** Checks that tensors outside the file lie beside it and are whole. */
async function externalPlaces(file: string, model: FileModel): Promise<Map<string, ExternalData>> {
  const folder = dirname(file);
  const places = new Map<string, ExternalData>();
  for (const tensor of model.initializers.values()) {
    if (tensor.bytes instanceof Uint8Array) continue;
    const { location, offset } = tensor.bytes;
    const path = resolve(folder, location);
    if (relative(folder, path).startsWith(`..${sep}`) || relative(folder, path) === '..') {
      throw new ModelError(
        `${file}: the tensor ${JSON.stringify(tensor.name)} lies in ${location}, outside the model's folder. Put that file beside the model.`,
      );
    }
    const found = await stat(path).catch(() => undefined);
    const needed = offset + bytesOf(tensor);
    if (!found || !Number.isSafeInteger(needed) || found.size < needed) {
      throw new ModelError(
        `${file}: the tensor ${JSON.stringify(tensor.name)} lies in ${location}, which ${found ? `has ${found.size} bytes where ${needed} are needed` : 'is not there'}. Get that file of the same model, and put it beside it.`,
      );
    }
    places.set(tensor.name, { path, offset });
  }
  return places;
}

function bytesOf({ type, shape }: FileTensor): number {
  const width = { float32: 4, int32: 4, float16: 2, bfloat16: 2, int64: 8, double: 8, uint8: 1, bool: 1 }[
    type
  ];
  return shape.reduce((n, d) => n * d, width);
}
