import { BinaryReader, WireType } from '@bufbuild/protobuf/wire';
import { ModelError } from '../../errors.js';
import { bytesPerElement, type DType } from '../../tensor/dtype.js';

/** A tensor of an ONNX file: its bytes, little-endian, or where in another file they lie. */
export interface FileTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** What it is stored as; `double` is read as float32. */
  readonly type: DType | 'double';
  readonly bytes: Uint8Array | ExternalTensor;
}

/** A place in a file beside the model. */
export interface ExternalTensor {
  /** Relative to the model's folder. */
  readonly location: string;
  readonly offset: number;
}

export type FileAttribute = {
  readonly float?: number;
  readonly int?: number;
  readonly string?: string;
  readonly tensor?: FileTensor;
  readonly floats?: readonly number[];
  readonly ints?: readonly number[];
  readonly strings?: readonly string[];
  /** Holds a graph, as control flow does. */
  readonly graph?: true;
};

export interface FileNode {
  readonly name: string;
  readonly operator: string;
  readonly domain: string;
  /** '' where an optional input is left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, FileAttribute>;
}

/** An input or output as the file declares it; an extent that is open is a name, or '?'. */
export interface FileValue {
  readonly name: string;
  readonly type: DType | 'double' | 'other';
  readonly shape: readonly (number | string)[] | undefined;
}

/** An ONNX file, decoded and not yet understood. */
export interface FileModel {
  /** Version of the default operator set. */
  readonly opset: number;
  readonly nodes: readonly FileNode[];
  readonly initializers: ReadonlyMap<string, FileTensor>;
  /** Inputs that have to be fed. */
  readonly inputs: readonly FileValue[];
  readonly outputs: readonly FileValue[];
}

/** Numbers of element types in TensorProto. */
const types: Readonly<Record<number, DType | 'double'>> = {
  1: 'float32',
  2: 'uint8',
  6: 'int32',
  7: 'int64',
  9: 'bool',
  10: 'float16',
  11: 'double',
  16: 'bfloat16',
};

const widths: Readonly<Record<DType | 'double', number>> = {
  ...bytesPerElement,
  double: 8,
};

const LEAST_OPSET = 11;
const LAST_OPSET = 21;

type Field = (reader: BinaryReader, wire: WireType) => void;

/** Reads a message field by field; what is not asked for is skipped. */
function read(
  reader: BinaryReader,
  length: number | undefined,
  fields: Readonly<Record<number, Field>>,
): void {
  const end = length === undefined ? reader.len : reader.pos + length;
  if (end > reader.len) throw new RangeError('a part is longer than the file');
  while (reader.pos < end) {
    const [number, wire] = reader.tag();
    const field = fields[number];
    if (field) field(reader, wire);
    else reader.skip(wire, number);
  }
  if (reader.pos !== end) throw new RangeError('a part ends in the middle of a field');
}

const message =
  (fields: () => Readonly<Record<number, Field>>): Field =>
  (r) =>
    read(r, r.uint32(), fields());

/** A repeated number, packed or one by one. */
function numbers(into: number[], next: (r: BinaryReader) => number): Field {
  return (r, wire) => {
    if (wire !== WireType.LengthDelimited) {
      into.push(next(r));
      return;
    }
    const end = r.uint32() + r.pos;
    while (r.pos < end) into.push(next(r));
  };
}

const integer = (r: BinaryReader): number => {
  const value = Number(r.int64());
  if (!Number.isSafeInteger(value)) {
    // "To the end" is written as the largest integer of 64 bits.
    return value > 0 ? Number.MAX_SAFE_INTEGER : Number.MIN_SAFE_INTEGER;
  }
  return value;
};

function readTensor(r: BinaryReader, length: number | undefined): FileTensor {
  const shape: number[] = [];
  const [floats, doubles, int32s, int64s]: number[][] = [[], [], [], []];
  const external = new Map<string, string>();
  let [name, code] = ['', 0];
  let raw: Uint8Array | undefined;
  read(r, length, {
    1: numbers(shape, integer),
    2: (f) => {
      code = f.int32();
    },
    4: numbers(floats!, (f) => f.float()),
    5: numbers(int32s!, (f) => f.int32()),
    7: numbers(int64s!, integer),
    8: (f) => {
      name = f.string();
    },
    9: (f) => {
      raw = f.bytes();
    },
    10: numbers(doubles!, (f) => f.double()),
    13: (f) => {
      let [key, value] = ['', ''];
      read(f, f.uint32(), {
        1: (e) => {
          key = e.string();
        },
        2: (e) => {
          value = e.string();
        },
      });
      external.set(key, value);
    },
  });
  const type = types[code];
  if (!type) throw new RangeError(`the tensor ${JSON.stringify(name)} has elements of the type ${code}`);
  const count = shape.reduce((n, d) => n * d, 1);
  const location = external.get('location');
  if (location !== undefined) {
    return { name, shape, type, bytes: { location, offset: Number(external.get('offset') ?? 0) } };
  }
  const bytes = raw
    ? new Uint8Array(raw)
    : packed(type, { floats: floats!, doubles: doubles!, int32s: int32s!, int64s: int64s! });
  if (bytes.length !== count * widths[type]) {
    throw new RangeError(
      `the tensor ${JSON.stringify(name)} [${shape.join(', ')}] needs ${count * widths[type]} bytes and has ${bytes.length}`,
    );
  }
  return { name, shape, type, bytes };
}

/** Elements that were written as numbers instead of bytes. */
function packed(
  type: DType | 'double',
  n: { floats: number[]; doubles: number[]; int32s: number[]; int64s: number[] },
): Uint8Array {
  const array = {
    float32: () => Float32Array.from(n.floats),
    double: () => Float64Array.from(n.doubles),
    int64: () => BigInt64Array.from(n.int64s, BigInt),
    int32: () => Int32Array.from(n.int32s),
    uint8: () => Uint8Array.from(n.int32s),
    bool: () => Uint8Array.from(n.int32s),
    float16: () => Uint16Array.from(n.int32s),
    bfloat16: () => Uint16Array.from(n.int32s),
  }[type]();
  return new Uint8Array(array.buffer);
}

function readAttribute(r: BinaryReader): [string, FileAttribute] {
  let name = '';
  let attribute: FileAttribute = {};
  const [floats, ints]: [number[], number[]] = [[], []];
  const strings: string[] = [];
  const set = (part: FileAttribute): void => {
    attribute = { ...attribute, ...part };
  };
  const text = (f: BinaryReader): string => new TextDecoder().decode(f.bytes());
  read(r, r.uint32(), {
    1: (f) => {
      name = f.string();
    },
    2: (f) => set({ float: f.float() }),
    3: (f) => set({ int: integer(f) }),
    4: (f) => set({ string: text(f) }),
    5: (f) => set({ tensor: readTensor(f, f.uint32()) }),
    6: (f, wire) => {
      f.skip(wire, 6);
      set({ graph: true });
    },
    7: numbers(floats, (f) => f.float()),
    8: numbers(ints, integer),
    9: (f) => {
      strings.push(text(f));
    },
  });
  if (floats.length > 0) set({ floats });
  if (ints.length > 0) set({ ints });
  if (strings.length > 0) set({ strings });
  return [name, attribute];
}

function readNode(r: BinaryReader): FileNode {
  const [inputs, outputs]: [string[], string[]] = [[], []];
  const attributes = new Map<string, FileAttribute>();
  let [name, operator, domain] = ['', '', ''];
  read(r, r.uint32(), {
    1: (f) => {
      inputs.push(f.string());
    },
    2: (f) => {
      outputs.push(f.string());
    },
    3: (f) => {
      name = f.string();
    },
    4: (f) => {
      operator = f.string();
    },
    5: (f) => {
      attributes.set(...readAttribute(f));
    },
    7: (f) => {
      domain = f.string();
    },
  });
  return { name, operator, domain: domain === 'ai.onnx' ? '' : domain, inputs, outputs, attributes };
}

function readValue(r: BinaryReader): FileValue {
  let name = '';
  let type: FileValue['type'] = 'other';
  let shape: (number | string)[] | undefined;
  const extent = (): Field => (d) => {
    let value: number | string = '?';
    read(d, d.uint32(), {
      1: (f) => {
        value = integer(f);
      },
      2: (f) => {
        value = f.string() || '?';
      },
    });
    shape!.push(value);
  };
  const tensorType = message(() => ({
    1: (f) => {
      type = types[f.int32()] ?? 'other';
    },
    2: (f) => {
      shape = [];
      read(f, f.uint32(), { 1: extent() });
    },
  }));
  read(r, r.uint32(), {
    1: (f) => {
      name = f.string();
    },
    2: message(() => ({ 1: tensorType })),
  });
  return { name, type, shape };
}

/**
 * Decodes an ONNX file (onnx.proto, operator sets 11 to 21).
 *
 * @param file how errors name it
 * @throws ModelError when it is not one, is cut short, or of another operator set
 */
export function decodeModel(bytes: Uint8Array, file: string): FileModel {
  const nodes: FileNode[] = [];
  const initializers = new Map<string, FileTensor>();
  const [inputs, outputs]: [FileValue[], FileValue[]] = [[], []];
  const opsets = new Map<string, number>();
  const graph = message(() => ({
    1: (f) => {
      nodes.push(readNode(f));
    },
    5: (f) => {
      const tensor = readTensor(f, f.uint32());
      initializers.set(tensor.name, tensor);
    },
    11: (f) => {
      inputs.push(readValue(f));
    },
    12: (f) => {
      outputs.push(readValue(f));
    },
  }));
  try {
    read(new BinaryReader(bytes), undefined, {
      7: graph,
      8: (f) => {
        let [domain, version] = ['', 0];
        read(f, f.uint32(), {
          1: (d) => {
            domain = d.string();
          },
          2: (v) => {
            version = integer(v);
          },
        });
        opsets.set(domain === 'ai.onnx' ? '' : domain, version);
      },
    });
  } catch (error) {
    throw new ModelError(
      `${file} is not a whole ONNX file (${error instanceof Error ? error.message : error}). Export or copy it again.`,
      { cause: error },
    );
  }
  if (nodes.length === 0 || outputs.length === 0) {
    throw new ModelError(
      `${file} is not an ONNX model: it holds no graph with an output. Export or copy it again.`,
    );
  }
  const opset = opsets.get('');
  if (opset === undefined || opset < LEAST_OPSET || opset > LAST_OPSET) {
    throw new ModelError(
      `${file}: the operator set is ${opset ?? 'not given'}; supported: ${LEAST_OPSET} to ${LAST_OPSET}. Export it again with opset_version=17.`,
    );
  }
  return { opset, nodes, initializers, outputs, inputs: inputs.filter((v) => !initializers.has(v.name)) };
}
