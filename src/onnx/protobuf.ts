import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import { bytesPerElement, type DType } from '../tensor/dtype.js';
import { int64, type Shape, type Tensor } from '../tensor/tensor.js';
import { plainAttention } from './attention.js';
import { onnxTypeCodes } from './elementwise.js';
import { type Attribute, type Graph, GraphError, type Node, type Value } from './graph.js';
import { OPSET_VERSION, operatorDomains } from './operators.js';
import { type Stage, stagesOf } from './stages.js';

/** Field numbers and constants of onnx.proto (ONNX 1.15, IR version 9). */
const IR_VERSION = 9;
const attributeTypes = { float: 1, int: 2, string: 3, graph: 5, ints: 7 } as const;
const EXTERNAL = 1;

/** A model in ONNX's binary form, and the names under which it is run. */
export interface EncodedModel {
  readonly bytes: Uint8Array;
  /** Names of the inputs that the live part of the graph reads. */
  readonly inputs: readonly string[];
  /** Encoded name of each output, by the name it was given. */
  readonly outputs: ReadonlyMap<string, string>;
  /** Encoded name of each state's next value, by the input's name. */
  readonly updates: ReadonlyMap<string, string>;
}

export interface EncodeOptions {
  /** Turns the path of an external initializer into the location that is written. */
  readonly externalLocation?: (path: string) => string;
  /** A `Split` into more pieces than this is written as one `Slice` a piece: some devices can bind no more buffers to an operator. */
  readonly mostPieces?: number;
  /** Fused attention is written as the plain operators that it stands for. */
  readonly plainAttention?: boolean;
  /** The nodes are written in stages (see `stagesOf`). */
  readonly stages?: boolean;
}

const varint = (w: BinaryWriter, field: number, value: number): void => {
  w.tag(field, WireType.Varint).int64(value);
};
const text = (w: BinaryWriter, field: number, value: string): void => {
  w.tag(field, WireType.LengthDelimited).string(value);
};
const message = (w: BinaryWriter, field: number, write: (w: BinaryWriter) => void): void => {
  w.tag(field, WireType.LengthDelimited).fork();
  write(w);
  w.join();
};

function writeAttribute(
  w: BinaryWriter,
  name: string,
  attribute: Exclude<Attribute, { readonly hint: number }>,
): void {
  text(w, 1, name);
  if ('float' in attribute) {
    w.tag(2, WireType.Bit32).float(attribute.float);
    varint(w, 20, attributeTypes.float);
  } else if ('int' in attribute) {
    varint(w, 3, attribute.int);
    varint(w, 20, attributeTypes.int);
  } else if ('string' in attribute) {
    w.tag(4, WireType.LengthDelimited).string(attribute.string);
    varint(w, 20, attributeTypes.string);
  } else {
    for (const v of attribute.ints) varint(w, 8, v);
    varint(w, 20, attributeTypes.ints);
  }
}

function rawBytes(t: Tensor): Uint8Array {
  return new Uint8Array(t.data.buffer, t.data.byteOffset, t.data.byteLength);
}

function writeInitializer(
  w: BinaryWriter,
  value: Value,
  name: string,
  locate: (path: string) => string,
): void {
  for (const d of value.shape) varint(w, 1, d);
  varint(w, 2, onnxTypeCodes[value.dtype]);
  text(w, 8, name);
  const { origin } = value;
  if (origin.kind === 'constant') {
    w.tag(9, WireType.LengthDelimited).bytes(rawBytes(origin.tensor));
    return;
  }
  if (origin.kind !== 'external') throw new GraphError(`${value} is not an initializer`);

  const entries: Record<string, string> = {
    location: locate(origin.location.path),
    offset: String(origin.location.offset),
    length: String(value.size * bytesPerElement[value.dtype]),
  };
  for (const [key, entry] of Object.entries(entries)) {
    message(w, 13, (m) => {
      text(m, 1, key);
      text(m, 2, entry);
    });
  }
  varint(w, 14, EXTERNAL);
}

function writeType(w: BinaryWriter, name: string, dtype: DType, shape: Shape): void {
  text(w, 1, name);
  message(w, 2, (type) =>
    message(type, 1, (tensorType) => {
      varint(tensorType, 1, onnxTypeCodes[dtype]);
      message(tensorType, 2, (dims) => {
        for (const d of shape) message(dims, 1, (dim) => varint(dim, 1, d));
      });
    }),
  );
}

function writeValueInfo(w: BinaryWriter, name: string, { dtype, shape }: Value): void {
  writeType(w, name, dtype, shape);
}

function writeNode(w: BinaryWriter, node: Node, nameOf: (v: Value) => string): void {
  for (const input of node.inputs) text(w, 1, input ? nameOf(input) : '');
  for (const output of node.outputs) text(w, 2, nameOf(output));
  text(w, 3, nameOf(node.outputs[0]!));
  text(w, 4, node.operator);
  for (const [name, attribute] of Object.entries(node.attributes)) {
    if (!('hint' in attribute)) message(w, 5, (m) => writeAttribute(m, name, attribute));
  }
  const domain = operatorDomains[node.operator];
  if (domain) text(w, 7, domain);
}

/** A vector of one whole number, as an initializer. */
function writeBound(w: BinaryWriter, name: string, value: number): void {
  varint(w, 1, 1);
  varint(w, 2, onnxTypeCodes.int64);
  text(w, 8, name);
  w.tag(9, WireType.LengthDelimited).bytes(rawBytes(int64([1], [value])));
}

/** A `Split`, piece by piece: each a `Slice` from its start to its end along the axis. */
function writeSlices(g: BinaryWriter, node: Node, nameOf: (v: Value) => string): void {
  const attribute = node.attributes.axis!;
  const axis = 'int' in attribute ? attribute.int : 0;
  let start = 0;
  for (const piece of node.outputs) {
    const name = nameOf(piece);
    const bounds = { start, end: start + piece.shape[axis]!, axis };
    start = bounds.end;
    message(g, 1, (m) => {
      text(m, 1, nameOf(node.inputs[0]!));
      for (const bound of Object.keys(bounds)) text(m, 1, `${bound}:${name}`);
      text(m, 2, name);
      text(m, 3, name);
      text(m, 4, 'Slice');
    });
    for (const [bound, value] of Object.entries(bounds)) {
      message(g, 5, (m) => writeBound(m, `${bound}:${name}`, value));
    }
  }
}

type Naming = (v: Value) => string;

/** Writes nodes, and what the ways around a device's limits need besides. */
function writeNodes(g: BinaryWriter, nodes: readonly Node[], nameOf: Naming, options: EncodeOptions): void {
  const { mostPieces = Number.POSITIVE_INFINITY } = options;
  for (const node of nodes) {
    if (node.operator === 'Split' && node.outputs.length > mostPieces) writeSlices(g, node, nameOf);
    else if (node.operator === 'MultiHeadAttention' && options.plainAttention)
      writePlainAttention(g, node, nameOf, options);
    else message(g, 1, (m) => writeNode(m, node, nameOf));
  }
}

function writePlainAttention(g: BinaryWriter, node: Node, nameOf: Naming, options: EncodeOptions): void {
  const graph = plainAttention(node);
  const own = nameOf(node.outputs[0]!);
  const names = new Map<Value, string>([
    ...graph.inputs.map((v, i) => [v, nameOf(node.inputs[i]!)] as const),
    [graph.outputs.get('0')!, own],
  ]);
  const inner: Naming = (v) => names.get(v) ?? `${v.name}:${own}`;
  writeNodes(g, graph.liveNodes(), inner, options);
  for (const value of graph.liveSources().initializers) {
    message(g, 5, (m) => writeInitializer(m, value, inner(value), (path) => path));
  }
}

/** Constants of up to so many elements are written in each stage: kernels in blocked layout, and what shapes follow from, have to be a stage's own. */
const COPIED_CONSTANT = 1 << 12;

const ALWAYS = 'stage:always';
/** A yes that the runtime cannot count on, as it could be fed at any run. */
function writeAlways(g: BinaryWriter): void {
  message(g, 5, (m) => {
    varint(m, 2, onnxTypeCodes.bool);
    text(m, 8, ALWAYS);
    m.tag(9, WireType.LengthDelimited).bytes(new Uint8Array([1]));
  });
  message(g, 11, (m) => writeType(m, ALWAYS, 'bool', []));
}

/**
 * A stage as the branch of an `If` that is always taken. The other branch gives results of other ranks, so that the outer plan knows no shapes and keeps no places for them;
 * within the branch all shapes are written down, as they do not follow from those of its inputs.
 */
function writeStage(
  g: BinaryWriter,
  { nodes, views, outgoing }: Stage,
  nameOf: Naming,
  options: EncodeOptions,
): void {
  const leaving = new Set(outgoing);
  const name = nameOf(outgoing[0]!);
  const again = new Set(views.flatMap(({ outputs }) => outputs));
  const inner: Naming = (v) => {
    if (leaving.has(v)) return `made:${nameOf(v)}`;
    return again.has(v) || constants.has(v) ? `${v.name}:${name}` : nameOf(v);
  };
  const written = [...views, ...nodes];
  const constants = new Set(
    written
      .flatMap(({ inputs }) => inputs)
      .filter((v) => v?.origin.kind === 'constant' && v.size <= COPIED_CONSTANT),
  );
  message(g, 1, (m) => {
    text(m, 1, ALWAYS);
    for (const v of outgoing) text(m, 2, nameOf(v));
    text(m, 3, `stage:${name}`);
    text(m, 4, 'If');
    writeBranch(m, 'then_branch', (branch) => {
      writeNodes(branch, written, inner, options);
      text(branch, 2, `stage:${name}`);
      for (const v of constants)
        if (v) message(branch, 5, (i) => writeInitializer(i, v, inner(v), (path) => path));
      for (const v of outgoing) message(branch, 12, (r) => writeValueInfo(r, inner(v), v));
      for (const v of written.flatMap(({ outputs }) => outputs))
        if (!leaving.has(v)) message(branch, 13, (i) => writeValueInfo(i, inner(v), v));
    });
    writeBranch(m, 'else_branch', (branch) => {
      for (const v of outgoing) {
        message(branch, 1, (n) => {
          text(n, 1, ALWAYS);
          text(n, 2, `none:${nameOf(v)}`);
          text(n, 4, 'Cast');
          message(n, 5, (a) => writeAttribute(a, 'to', { int: onnxTypeCodes[v.dtype] }));
        });
      }
      text(branch, 2, `none:${name}`);
      for (const v of outgoing) message(branch, 12, (r) => writeType(r, `none:${nameOf(v)}`, v.dtype, []));
    });
  });
}

function writeBranch(node: BinaryWriter, name: string, write: (graph: BinaryWriter) => void): void {
  message(node, 5, (attribute) => {
    text(attribute, 1, name);
    message(attribute, 6, write);
    varint(attribute, 20, attributeTypes.graph);
  });
}

/** Writes the live part of a graph as an ONNX model. */
export function encodeModel(graph: Graph, options: EncodeOptions = {}): EncodedModel {
  const { externalLocation = (path) => path } = options;
  const nodes = graph.liveNodes();
  const { inputs, initializers } = graph.liveSources();
  const exported = new Map<Value, string>();
  const copies: { from: Value; to: string }[] = [];
  const results: { name: string; value: Value }[] = [];
  const publish = (value: Value, name: string): string => {
    // A value can be an output under one name only, and an input cannot be an output at all: further names are copies.
    if (value.producer && !exported.has(value)) exported.set(value, name);
    else copies.push({ from: value, to: name });
    results.push({ name, value });
    return name;
  };
  const outputs = new Map(
    [...graph.outputs].map(([name, value]) => [name, publish(value, `output:${name}`)]),
  );
  const updates = new Map([...graph.updates].map(([name, value]) => [name, publish(value, `next:${name}`)]));
  const nameOf = (v: Value): string => exported.get(v) ?? v.name;

  const w = new BinaryWriter();
  varint(w, 1, IR_VERSION);
  text(w, 2, 'portrayal');
  message(w, 7, (g) => {
    if (options.stages) {
      const { frozen, stages } = stagesOf(graph, nodes);
      writeNodes(g, frozen, nameOf, options);
      for (const stage of stages) writeStage(g, stage, nameOf, options);
      writeAlways(g);
    } else writeNodes(g, nodes, nameOf, options);
    for (const { from, to } of copies) {
      message(g, 1, (m) => {
        text(m, 1, nameOf(from));
        text(m, 2, to);
        text(m, 3, to);
        text(m, 4, 'Identity');
      });
    }
    text(g, 2, graph.name);
    for (const value of initializers)
      message(g, 5, (m) => writeInitializer(m, value, value.name, externalLocation));
    for (const value of inputs) message(g, 11, (m) => writeValueInfo(m, value.name, value));
    // An initializer that is an input too could be fed at any run, so the runtime neither folds it nor copies it into another layout.
    for (const value of initializers.filter((v) => graph.stored.has(v)))
      message(g, 11, (m) => writeValueInfo(m, value.name, value));
    for (const { name, value } of results) message(g, 12, (m) => writeValueInfo(m, name, value));
  });
  for (const [domain, version] of [
    ['', OPSET_VERSION] as const,
    ...domainsOf(nodes).map((d) => [d, 1] as const),
  ]) {
    message(w, 8, (m) => {
      text(m, 1, domain);
      varint(m, 2, version);
    });
  }
  return { bytes: w.finish(), inputs: inputs.map((v) => v.name), outputs, updates };
}

function domainsOf(nodes: readonly Node[]): string[] {
  return [...new Set(nodes.flatMap((n) => operatorDomains[n.operator] ?? []))];
}
