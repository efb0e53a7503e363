import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Config, parseConfig } from '../src/formats/json-config.js';
import { writeSafetensorsFile } from '../src/formats/safetensors-file.js';
import { decodeLatents, encodeLatents, readAutoencoderKLConfig } from '../src/models/autoencoder-kl.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../src/models/unet-2d-condition.js';
import { readViTConfig, vit } from '../src/models/vit.js';
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

/** The shape of facebook/dino-vits16, 22 M parameters. */
const DINO_SMALL = {
  model_type: 'vit',
  architectures: ['ViTModel'],
  hidden_size: 384,
  intermediate_size: 1536,
  num_hidden_layers: 12,
  num_attention_heads: 6,
  hidden_act: 'gelu',
  image_size: 224,
  patch_size: 16,
  num_channels: 3,
  layer_norm_eps: 1e-12,
  qkv_bias: true,
};

/** Writes an image encoder of DINO's small shape, with weights drawn at random, into a folder that is made. */
export async function writeRandomEncoder(folder: string): Promise<void> {
  await mkdir(folder);
  const config = JSON.stringify(DINO_SMALL);
  await writeFile(join(folder, 'config.json'), config);
  const preprocessor = {
    do_resize: true,
    do_rescale: true,
    do_normalize: true,
    size: { height: 224, width: 224 },
    resample: 3,
    rescale_factor: 1 / 255,
    image_mean: [0.485, 0.456, 0.406],
    image_std: [0.229, 0.224, 0.225],
  };
  await writeFile(join(folder, 'preprocessor_config.json'), JSON.stringify(preprocessor));
  const graph = new Graph('encoder');
  const parameters = new InputParameters(graph);
  const shape = readViTConfig(parseConfig(config, folder));
  vit(new Scope(parameters), shape, graph.input('pixels', 'float32', [1, 3, 224, 224]));
  await writeSafetensorsFile(
    join(folder, 'model.safetensors'),
    initialParameters(parameters.specs, new Random(1, 'encoder')),
  );
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
