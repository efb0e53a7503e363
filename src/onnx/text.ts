import type { Attribute, Graph, Value } from './graph.js';

function attributeText(attribute: Attribute): string {
  if ('ints' in attribute) return `[${attribute.ints.join(', ')}]`;
  return String(Object.values(attribute)[0]);
}

function operandText(value: Value | undefined): string {
  if (!value) return '_';
  if (value.origin.kind === 'constant' && value.size <= 8) {
    const { data } = value.origin.tensor;
    const text = Array.from(data as ArrayLike<number | bigint>, String).join(', ');
    return value.rank === 0 ? text : `[${text}]`;
  }
  return `%${value.name}`;
}

/** The live part of a graph as readable text, one node a line, small constants inline. */
export function printGraph(graph: Graph): string {
  const { inputs, initializers } = graph.liveSources();
  const large = initializers.filter((v) => v.origin.kind === 'external' || v.size > 8);
  const lines = [
    `graph ${graph.name}(${inputs.join(', ')})`,
    ...large.map((v) => `  ${v} = ${v.origin.kind === 'external' ? 'external' : 'constant'}`),
    ...graph.liveNodes().map((node) => {
      const attributes = Object.entries(node.attributes).map(([k, a]) => `${k}=${attributeText(a)}`);
      const region = node.region ? ` @${node.region.name}` : '';
      const call = `${node.operator}(${[...node.inputs.map(operandText), ...attributes].join(', ')})`;
      return `  ${node.outputs.join(', ')} = ${call}${region}`;
    }),
    ...[...graph.updates].map(([name, value]) => `  update %${name} <- %${value.name}`),
    `  return ${[...graph.outputs].map(([name, value]) => `${name}=${operandText(value)}`).join(', ')}`,
  ];
  return `${lines.join('\n')}\n`;
}
