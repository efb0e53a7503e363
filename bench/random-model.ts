import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Config, parseConfig } from '../src/formats/json-config.js';
import { writeSafetensorsFile } from '../src/formats/safetensors-file.js';
import { decodeLatents, encodeLatents, readAutoencoderKLConfig } from '../src/models/autoencoder-kl.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../src/models/unet-2d-condition.js';
import { initialParameters } from '../src/nn/initialize.js';
import { InputParameters, Scope } from '../src/nn/parameters.js';
import { Graph } from '../src/onnx/graph.js';
import { Random } from '../src/tensor/random.js';
import { shippedModelPath } from '../src/workflows/shipped.js';

/** What differs from the shipped base's networks, as keys of their `config.json`. */
export interface RandomModel {
  readonly unet: Readonly<Record<string, unknown>>;
  readonly vae: Readonly<Record<string, unknown>>;
}

/** Writes a model of another size than the shipped base, with its text encoder and weights drawn at random: memory and time do not depend on them. */
export async function writeRandomModel(folder: string, { unet, vae }: RandomModel): Promise<void> {
  await cp(shippedModelPath(), folder, { recursive: true });
  const configure = async (component: string, changes: object): Promise<Config> => {
    const path = join(folder, component, 'config.json');
    const config = JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...changes });
    await writeFile(path, config);
    return parseConfig(config, path);
  };
  const save = async (component: string, build: (graph: Graph, scope: Scope) => void): Promise<void> => {
    const graph = new Graph(component);
    const parameters = new InputParameters(graph);
    build(graph, new Scope(parameters));
    await mkdir(join(folder, component), { recursive: true });
    const weights = initialParameters(parameters.specs, new Random(1, component));
    await writeSafetensorsFile(join(folder, component, 'diffusion_pytorch_model.safetensors'), weights);
  };
  const unetConfig = readUNet2DConditionConfig(await configure('unet', unet));
  const vaeConfig = readAutoencoderKLConfig(await configure('vae', vae));
  await save('unet', (graph, scope) => {
    unet2DCondition(
      scope,
      unetConfig,
      {
        sample: graph.input('sample', 'float32', [1, unetConfig.inChannels, 16, 16]),
        timestep: graph.input('timestep', 'int64', [1]),
        encoderHiddenStates: graph.input('text', 'float32', [1, 1, unetConfig.crossAttentionDim]),
      },
      { gradientCheckpointing: false },
    );
  });
  await save('vae', (graph, scope) => {
    encodeLatents(scope, vaeConfig, graph.input('pixels', 'float32', [1, 3, 64, 64]));
    decodeLatents(scope, vaeConfig, graph.input('latents', 'float32', [1, vaeConfig.latentChannels, 16, 16]));
  });
}
